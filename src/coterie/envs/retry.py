"""Environment that asks again after a wrong answer.

[environment]
name = "retry"
params = { turns = 3, discount = 0.5 }
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from coterie.data.answers import extract_answer
from coterie.data.tasks import ATTRIBUTE, is_item
from coterie.envs.base import Episode, Observation
from coterie.errors import ConfigError
from coterie.rewards.builtin import task
from coterie.types import Message, Prompt

RIGHT = 1 - 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Shows the prompt; as long as the answer is wrong, says so and asks again. The reward `task` decides.

    The state is the list of answers given so far, so attempts that made the same mistakes meet.
    """

    instant: ClassVar[bool] = True
    turns: int = 3
    """Most answers."""
    discount: float = 0.5
    """A right answer of the k-th turn earns discount^(k-1)."""
    message: str = "That is not right. Try again."
    """Said to a wrong answer."""

    def __post_init__(self) -> None:
        if self.turns < 1 or not 0 < self.discount <= 1 or not self.message:
            raise ConfigError(
                f"environment.params has turns = {self.turns}, discount = {self.discount}, message = {self.message!r}; "
                "expected turns of at least 1, a discount above 0 and at most 1, and a message"
            )

    def episode(self, prompt: Prompt) -> Episode:
        completion = yield Observation(messages=prompt.messages, state=())
        wrong: tuple[str, ...] = ()
        for turn in range(self.turns):
            if _is_right(prompt, completion):
                return self.discount**turn
            wrong = (*wrong, extract_answer(completion))
            if turn + 1 < self.turns:
                again = Message(role="user", content=self.message)
                completion = yield Observation(messages=(again,), state=wrong)
        return 0.0


def _is_right(prompt: Prompt, completion: str) -> bool:
    record = prompt.attributes.get(ATTRIBUTE)
    if not is_item(record) and prompt.answer is None:
        raise ValueError(f"prompt {prompt.id} has no gold answer, which `retry` needs; add one, or leave the row out")
    (value,) = task([completion], [prompt.answer], None if record is None else [record])
    return value is not None and value >= RIGHT
