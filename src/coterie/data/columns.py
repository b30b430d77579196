"""Columns of a row → messages, gold answer and attributes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

from coterie.config.data import ColumnNames
from coterie.data.answers import boxed_at_end, hashed_answer
from coterie.data.characters import plain_mathematics
from coterie.data.layouts import (
    ANSWERS,
    CONVERSATIONS,
    PROMPTS,
    REPLY,
    WORKED,
    Layout,
    listed,
    lookup,
    plain,
    recognised,
)
from coterie.data.numerals import parse_number
from coterie.types import Message

_ROLES = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
"""Roles of messages as OpenAI, ShareGPT and Gemma name them."""
_LONGEST_ANSWER = 80
"""Characters of a `solution` on one line that is taken for the answer itself."""
NO_NAMES = ColumnNames()
_GROUPED = re.compile(r"\$?[ ]?(-?\d[\d,' ]*(?:\.\d+)?)\.?")
"""A number in plain characters, perhaps with separated thousands."""
_DEEPEST = 64


class BadRowError(Exception):
    """A row that cannot be used; the message ends the sentence `row 7 …`."""


class NotJsonError(BadRowError):
    """A value that has no JSON form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A usable row."""

    id: str | None
    """The row's own, if it has a usable one."""
    messages: tuple[Message, ...]
    answer: str | None
    attributes: dict[str, Any]
    """All columns as JSON but the `prompt`, and but the `answer` where it is the gold answer to the letter; where it is
    not, `gold_answer` is."""
    layout: Layout
    """Columns that the row was read from."""
    dropped: tuple[str, ...] = ()
    """Columns left out because they hold bytes or objects."""


def read_columns(data: Mapping[str, Any], names: ColumnNames = NO_NAMES) -> Question:
    """Check a row.

    Args:
        data: the columns, in one of the layouts of `coterie.data.layouts`, or
        names: in any other.
    """
    path = names.prompt or next(iter(recognised(data, PROMPTS)), "prompt")
    messages, reply = _read_prompt(data, path, names)
    answer_path, answer, unmarked = _find_answer(data, names, path, reply)
    gold = answer if answer is None else _final_answer(answer)
    attributes, dropped = _attributes(data, path)
    if attributes.get("answer") == gold and isinstance(attributes.get("answer"), str | None):
        attributes.pop("answer", None)
    elif gold is not None and "answer" in attributes:
        attributes.setdefault("gold_answer", gold)
    return Question(
        id=read_id(data.get("id")),
        messages=messages,
        answer=gold,
        attributes=attributes,
        layout=Layout(prompt=path, answer=answer_path, unmarked=unmarked),
        dropped=dropped,
    )


def _attributes(data: Mapping[str, Any], prompt: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Columns as JSON, and the names of those without a JSON form."""
    attributes: dict[str, Any] = {}
    dropped: list[str] = []
    for name, value in data.items():
        if name == prompt == "prompt":  # rewards get the messages as `prompts`
            continue
        try:
            attributes[name] = to_json(value, name)
        except NotJsonError:
            dropped.append(name)
    return attributes, tuple(dropped)


def with_instruction(messages: Sequence[Message], instruction: str) -> tuple[Message, ...]:
    """Add `instruction` to the last message, on a new line."""
    if not instruction:
        return tuple(messages)
    *before, last = messages
    return (*before, Message(role=last["role"], content=f"{last['content'].rstrip()}\n{instruction}"))


def _read_prompt(data: Mapping[str, Any], path: str, names: ColumnNames) -> tuple[tuple[Message, ...], str | None]:
    """The messages up to the user's last, and the reply to it where the column has one."""
    value = plain_value(lookup(data, path))
    if value is None:
        expected = f"`{names.prompt}`" if names.prompt else "`prompt` or `question`"
        raise BadRowError(f"has no {path}; expected text in {expected}; its columns are {listed(list(data))}")
    layout = plain(path) if names.prompt is None else ""
    if layout == "instruction":
        messages, reply = read_instruction(data, value, path), None
    else:
        messages = read_messages(value, path)
        # What a `prompt` ends in is what the model is to go on from; a conversation ends in the reply.
        talk = layout in CONVERSATIONS or (names.prompt is not None and plain(path) != "prompt")
        messages, reply = _split_reply(messages) if talk else (messages, None)
    _check_order(messages, path)
    system = names.system
    if system is None and layout in ("instruction", "conversations", "conversation"):
        system = next(iter(recognised(data, ("system",))), None)
    return with_system(messages, lookup(data, system) if system else None, system), reply


def read_instruction(data: Mapping[str, Any], value: Any, path: str) -> tuple[Message, ...]:
    """Alpaca: `input`, if there is any, below the instruction; before both the turns of `history`."""
    text = _text(value, path) if isinstance(value, str) else None
    if text is None:
        raise BadRowError(f"has a {type(value).__name__} as {path}, expected text: {value!r:.60}")
    spelt = {plain(name): data[name] for name in data}
    context = spelt.get("input")
    if isinstance(context, str) and context.strip():
        text = f"{text}\n{_text(context, 'input')}"
    messages: list[Message] = []
    history = plain_value(spelt.get("history")) or ()
    for turn in history if isinstance(history, Sequence) else (history,):
        pair = isinstance(turn, Sequence) and not isinstance(turn, str) and len(turn) == 2
        if not pair or not all(isinstance(part, str) for part in turn):
            raise BadRowError(f"has a history that is not a list of pairs of text: {turn!r:.60}")
        for role, content in zip(("user", "assistant"), turn, strict=True):
            messages.append(Message(role=role, content=_text(content, "history")))
    return (*messages, Message(role="user", content=text))


def with_system(messages: tuple[Message, ...], value: Any, column: str | None) -> tuple[Message, ...]:
    if value is None or (isinstance(value, str) and not value.strip()) or messages[0]["role"] == "system":
        return messages
    if not isinstance(value, str):
        raise BadRowError(f"has a {type(value).__name__} as {column}, expected text: {value!r:.60}")
    return (Message(role="system", content=_text(value, str(column))), *messages)


def read_messages(value: Any, key: str) -> tuple[Message, ...]:
    """Text as a user's message, or a list of messages, also as JSON in text."""
    if isinstance(value, str):
        talk = _messages_in_text(value)
        if talk is None:
            return (Message(role="user", content=_text(value, key)),)
        value = talk
    if isinstance(value, Mapping):
        raise BadRowError(
            f"has a dict with the keys {listed(list(value))} as {key}, expected text or a list of messages; "
            f'name what is in it by a dotted path, e.g. prompt_column = "{key}.{next(iter(value), "…")}"'
        )
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise BadRowError(f"has a {type(value).__name__} as {key}, expected text or a list of messages: {value!r:.60}")
    if not value:
        raise BadRowError(f"has an empty list as {key}, expected messages")
    return tuple(_read_message(plain_value(message), f"{key}[{index}]") for index, message in enumerate(value))


def _messages_in_text(text: str) -> list[Any] | None:
    """Messages of a column that holds them as JSON text."""
    if not text.lstrip().startswith("[{") and not text.lstrip().startswith("[ {"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    talk = all(isinstance(message, dict) and ({"role", "content"} <= message.keys()) for message in value)
    return value if talk else None


def _split_reply(messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], str | None]:
    """The messages up to the user's last, and the first reply to it."""
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    if not users or all(message["role"] != "assistant" for message in messages[users[-1] + 1 :]):
        return messages, None
    after = users[-1] + 1
    return messages[:after], messages[after]["content"]


def _check_order(messages: tuple[Message, ...], key: str) -> None:
    for index, message in enumerate(messages):
        if message["role"] == "system" and index > 0:
            raise BadRowError(f"has a system message at {key}[{index}]; it must come first")
    if messages[-1]["role"] != "user":
        raise BadRowError(f"ends in a message of the role {messages[-1]['role']!r}, expected 'user'")


def _read_message(value: Any, where: str) -> Message:
    if not isinstance(value, Mapping):
        raise BadRowError(f"has a {type(value).__name__} at {where}, expected a message with role and content")
    sharegpt = "from" in value and "role" not in value
    role, content = (value.get("from"), value.get("value")) if sharegpt else (value.get("role"), value.get("content"))
    spoken_by = _ROLES.get(role.strip().casefold()) if isinstance(role, str) else None
    if spoken_by is None:
        raise BadRowError(f"has the role {role!r:.40} at {where}, expected {', '.join(dict.fromkeys(_ROLES.values()))}")
    content = plain_value(content)
    if isinstance(content, Sequence) and not isinstance(content, str | bytes):
        content = _text_of_parts(content)
    if not isinstance(content, str):
        raise BadRowError(f"has a {type(content).__name__} as content of {where}, expected text")
    return Message(role=spoken_by, content=_text(content, where))


def _text_of_parts(content: Sequence[Any]) -> Any:
    """OpenAI's `[{"type": "text", "text": "…"}]` as text; other parts, such as pictures, as they are."""
    texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in content]
    return "".join(map(str, texts)) if content and all(isinstance(text, str) for text in texts) else content


def plain_value(value: Any) -> Any:
    """numpy's arrays and scalars, as pandas gives them, as Python's own."""
    return value.tolist() if hasattr(value, "tolist") else value


def _find_answer(
    data: Mapping[str, Any], names: ColumnNames, prompt: str, reply: str | None
) -> tuple[str | None, str | None, bool]:
    """(path, answer, whether there is only a worked solution without one) of the row's gold answer."""
    if names.answer is not None:
        value = lookup(data, names.answer) if names.answer else None
        return (names.answer if value is not None else None), _read_answer(value, names.answer), False
    unmarked = False
    for path in recognised(data, ANSWERS):
        value = lookup(data, path)
        if path == "answer" and value is not None:
            return path, _read_answer(value, path), False
        # Nobody said that these hold an answer: what is none is passed on as a column, and no fault of the row.
        try:
            answer = _read_answer(value, path)
        except BadRowError:
            continue
        if answer is not None and plain(path) == WORKED and not _is_answer(answer):
            unmarked = True
            continue
        if answer is not None:
            return path, answer, False
    if reply is None and plain(prompt) == "instruction":
        output = next(iter(recognised(data, ("output",))), None)
        reply = lookup(data, output) if output else None
        if isinstance(reply, str) and reply.strip():
            return output, _read_answer(reply, str(output)), False
        return None, None, unmarked
    return (REPLY, _read_answer(reply, REPLY), False) if reply is not None else (None, None, unmarked)


def _read_answer(value: Any, path: str) -> str | None:
    value = plain_value(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes) and len(value) == 1:
        value = plain_value(value[0])
    if value is None:
        return None
    if isinstance(value, str):
        return _text(value, path).strip()
    if isinstance(value, Mapping):
        raise BadRowError(
            f"has a dict with the keys {listed(list(value))} as {path}, expected text or a number; name what "
            f'is in it by a dotted path, e.g. answer_column = "{path}.{next(iter(value), "…")}"'
        )
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise BadRowError(
            f"has a {type(value).__name__} as {path}, expected text or a number: {value!r:.60}; for a reward function "
            'of your own that takes it as it is, write answer_column = ""'
        )
    if not math.isfinite(value):
        raise BadRowError(f"has the {path} {value}, expected a finite number")
    try:
        return str(int(value)) if value == int(value) else str(value)
    except ValueError as error:  # Python refuses to write integers of thousands of digits
        raise BadRowError(f"has an answer that is too long a number: {error}") from error


def _is_answer(solution: str) -> bool:
    """True if a `solution` states the answer: marked at its end, or nothing else."""
    return _final_answer(solution) != solution or (len(solution) <= _LONGEST_ANSWER and "\n" not in solution)


def _final_answer(answer: str) -> str:
    """Answer of a worked solution: the text after `####` in its last line, or its last box; else all of it."""
    if answer.rpartition("\n")[2].lstrip().startswith("####"):
        return _hashed(answer)
    return boxed_at_end(answer) or answer


def _hashed(answer: str) -> str:
    """Answer of a solution in GSM8K's form, which ends in `#### 1,234`: 1234. Headings are not answers."""
    gold = hashed_answer(answer)
    if gold is None:
        return answer
    grouped = _GROUPED.fullmatch(plain_mathematics(gold))
    if grouped is None or parse_number(gold) is None:
        return gold.removeprefix("$")
    return re.sub(r"[,' ]", "", grouped[1])


def read_id(value: Any) -> str | None:
    """Id of a row: text or an integer of at most 200 printable characters; others stay a column only."""
    value = plain_value(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    text = str(value).strip()
    return text if text and text.isprintable() and len(text) <= 200 else None


def _text(value: str, where: str) -> str:
    if not value.strip():
        raise BadRowError(f"has an empty {where}, expected text")
    _check_characters(value, where)
    return value


def _check_characters(value: str, where: str) -> None:
    if "\x00" in value:
        raise BadRowError(f"has a NUL character in {where}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        if "\udc80" <= value[error.start] <= "\udcff":  # a byte that the file's reader could not decode
            raise BadRowError(
                f"is not UTF-8 in {where} (character {error.start}); save the file as UTF-8 (it may be latin-1)"
            ) from error
        raise BadRowError(f"has a lone surrogate or broken UTF-8 in {where} (character {error.start})") from error


def to_json(value: Any, where: str, depth: int = 0) -> Any:
    """A column as JSON: dates as ISO text, decimals as text, NaN as null."""
    if depth > _DEEPEST:
        raise BadRowError(f"is nested more than {_DEEPEST} deep in {where}")
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        _check_characters(value, where)
        return value
    if isinstance(value, Mapping):
        for key in value:
            _check_characters(str(key), where)
        return {str(key): to_json(item, where, depth + 1) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes | bytearray):
        return [to_json(item, where, depth + 1) for item in value]
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if hasattr(value, "tolist"):  # numpy
        return to_json(value.tolist(), where, depth + 1)
    raise NotJsonError(f"has a {type(value).__name__} in {where}, which is not JSON")
