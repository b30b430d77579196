"""Environment of a conversation whose user has a script: what comes next stands in the row.

[environment]
name = "dialogue"
params = { column = "turns" }
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from coterie.envs.base import Episode, Observation
from coterie.errors import ConfigError
from coterie.types import Message, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialogue:
    """Shows the prompt, then one message of the user after each reply of the model, as the row lists them; the reply to
    the last one ends the episode.

    The user says the same whatever the model replied, so rollouts of a prompt differ by the model's words alone. There
    is no reward of its own: functions that read `completion_turns` judge the replies. The state is all that was said.
    """

    instant: ClassVar[bool] = True
    column: str = "turns"
    """Column of the data with the user's later messages: a list of texts, which may be empty."""
    role: str = "user"
    """Role of these messages."""

    def __post_init__(self) -> None:
        if not self.column or self.role not in ("user", "system"):
            raise ConfigError(
                f"environment.params has column = {self.column!r} and role = {self.role!r}; expected the name of a "
                "column, and user or system"
            )

    def episode(self, prompt: Prompt) -> Episode:
        """Episode of one row.

        Raises:
            ValueError: the row's column is no list of texts.
        """
        turns = script_of(prompt, self.column)
        yield Observation(messages=prompt.messages)
        for text in turns:
            yield Observation(messages=(Message(role=self.role, content=text),))
        return None


def script_of(prompt: Prompt, column: str) -> list[str]:
    """The user's later messages of a row; none where it lacks the column.

    Raises:
        ValueError: the column is no list of texts.
    """
    turns: Any = prompt.attributes.get(column)
    if turns is None:
        return []
    if not isinstance(turns, list | tuple) or not all(isinstance(text, str) and text.strip() for text in turns):
        raise ValueError(
            f"prompt {prompt.id} has {column} = {turns!r:.80}; expected a list of texts, the user's later messages"
        )
    return list(turns)
