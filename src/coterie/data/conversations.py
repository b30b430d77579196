"""Conversations to imitate: rows of messages, of a prompt and its completion, or of a prompt, steps and an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coterie.config.data import ColumnNames
from coterie.config.imitation import SftConfig
from coterie.data.columns import (
    BadRowError,
    plain_value,
    read_id,
    read_instruction,
    read_messages,
    with_instruction,
    with_system,
)
from coterie.data.layouts import CONVERSATIONS, PROMPTS, listed, lookup, plain, recognised
from coterie.types import Message

COMPLETIONS = ("completion", "response", "output", "solution")
"""Columns that are recognised as the reply to a prompt, the first that a row has."""
STEPS = "steps"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A row that can be imitated."""

    id: str | None
    """The row's own, if it has a usable one."""
    messages: tuple[Message, ...]
    """The last one is the assistant's."""
    prompt: int
    """Number of messages that are the prompt: assistant's turns among them are not imitated."""
    steps: tuple[str, ...] = ()
    """Annotated steps, which the last message holds in this order."""
    answer: str | None = None
    """Gold answer of the row, where it has one as text."""

    def turns(self, which: str) -> list[int]:
        """Indices of the messages to imitate.

        Args:
            which: `all` or `last`; see `SftConfig.turns`.
        """
        spoken = [index for index, message in enumerate(self.messages) if message["role"] == "assistant"]
        trained = [index for index in spoken if index >= self.prompt]
        return trained[-1:] if which == "last" else trained


def read_conversation(
    data: Mapping[str, Any],
    names: ColumnNames,
    settings: SftConfig,
    *,
    instruction: str = "",
    system: str | None = None,
) -> Conversation:
    """Check a row.

    Args:
        data: the columns.
        names: columns of the prompt, the answer and the system message, where they are set.
        instruction: added to the last message of the prompt.
        system: put before a conversation without a system message.

    Raises:
        BadRowError: with the reason.
    """
    messages, prompt = _prompt_of(data, names)
    reply = _reply_of(data, messages, prompt, settings)
    steps = _steps_of(data, settings)
    answer = _answer_of(data, names)
    if not reply and steps and prompt == len(messages):
        if answer is None:
            raise BadRowError("has steps, but neither a completion nor an answer that they lead to")
        text = settings.layout.format(steps="\n".join(step.strip() for step in steps), answer=answer)
        reply = (Message(role="assistant", content=text),)
    messages = (*messages, *reply)
    if not any(message["role"] == "assistant" for message in messages[prompt:]):
        raise BadRowError(
            "has no turn of the assistant; expected one among its messages, a completion, or steps and an answer "
            f"(columns: {listed(list(data))})"
        )
    while messages[-1]["role"] != "assistant":  # what nobody answers teaches nothing
        messages = messages[:-1]
    step_ends(messages[-1]["content"], steps)
    first = next(index for index, message in enumerate(messages) if index >= prompt and message["role"] == "assistant")
    asked = with_instruction(messages[:first], instruction) if first else ()
    if system is not None and (not asked or asked[0]["role"] != "system"):
        asked = (Message(role="system", content=system), *asked)
    return Conversation(
        id=read_id(data.get("id")),
        messages=(*asked, *messages[first:]),
        prompt=len(asked),
        steps=steps,
        answer=answer,
    )


def _prompt_of(data: Mapping[str, Any], names: ColumnNames) -> tuple[tuple[Message, ...], int]:
    """The messages of the prompt's column, and how many of them are only the prompt."""
    path = names.prompt or next(iter(recognised(data, (*CONVERSATIONS, *PROMPTS))), None)
    value = None if path is None else plain_value(lookup(data, path))
    if path is None or value is None:
        raise BadRowError(f"has no {path or 'messages and no prompt'}; its columns are {listed(list(data))}")
    layout = plain(path)
    if layout == "instruction":
        messages = read_instruction(data, value, path)
    else:
        messages = read_messages(value, path)
    for index, message in enumerate(messages):
        if message["role"] == "system" and index > 0:
            raise BadRowError(f"has a system message at {path}[{index}]; it must come first")
    column = names.system or next(iter(recognised(data, ("system",))), None)
    complete = with_system(messages, lookup(data, column) if column else None, column)
    whole = layout in CONVERSATIONS or (names.prompt is not None and messages[-1]["role"] == "assistant")
    return complete, 0 if whole else len(complete)


def _reply_of(
    data: Mapping[str, Any], messages: Sequence[Message], prompt: int, settings: SftConfig
) -> tuple[Message, ...]:
    """The messages of the completion's column; none where the conversation has its replies already."""
    if settings.completion_column is None and any(message["role"] == "assistant" for message in messages[prompt:]):
        return ()
    path = settings.completion_column or next(iter(recognised(data, COMPLETIONS)), None)
    value = None if path is None else plain_value(lookup(data, path))
    if path is None or value is None:
        return ()
    if isinstance(value, str):
        if not value.strip():
            raise BadRowError(f"has an empty {path}, expected the reply to its prompt")
        read_messages(value, path)  # refuses characters that no tokenizer takes
        return (Message(role="assistant", content=value),)
    return read_messages(value, path)


def _steps_of(data: Mapping[str, Any], settings: SftConfig) -> tuple[str, ...]:
    path = settings.steps_column or next(iter(recognised(data, (STEPS,))), None)
    value = None if path is None else plain_value(lookup(data, path))
    if value is None:
        if settings.steps_column is not None:
            raise BadRowError(f"has no {settings.steps_column}; its columns are {listed(list(data))}")
        return ()
    texts = [] if isinstance(value, str | bytes) or not isinstance(value, Sequence) else [plain_value(x) for x in value]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise BadRowError(f"has {value!r:.60} as {path}, expected a list of texts, a step each")
    return tuple(texts)


def _answer_of(data: Mapping[str, Any], names: ColumnNames) -> str | None:
    value = plain_value(lookup(data, names.answer or "answer")) if names.answer != "" else None
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    return value.strip() if isinstance(value, str) and value.strip() else None


def step_ends(completion: str, steps: Sequence[str]) -> tuple[int, ...]:
    """Where each step ends in a completion, in characters.

    Raises:
        BadRowError: the steps do not stand in it, one after the other with nothing but white space between.
    """
    farthest = 0
    start = completion.find(steps[0].strip()) if steps else -1
    while start >= 0:
        ends: list[int] = []
        at = start
        for step in steps:
            at += len(completion[at:]) - len(completion[at:].lstrip())
            if not completion.startswith(step.strip(), at):
                break
            at += len(step.strip())
            ends.append(at)
        if len(ends) == len(steps):
            return tuple(ends)
        farthest = max(farthest, len(ends))
        start = completion.find(steps[0].strip(), start + 1)
    if not steps:
        return ()
    where = f"after step {farthest}" if farthest else "in it"
    raise BadRowError(
        f"has steps that do not join to its completion: step {farthest + 1}, {steps[farthest].strip()!r:.60}, does not "
        f"stand {where}; expected every step in its order, with nothing but white space between"
    )
