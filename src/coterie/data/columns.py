"""The columns of one row → messages, gold answer and attributes, or the reason why not."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

from coterie.types import Message

_ROLES = ("system", "user", "assistant")
_WORKED = re.compile(r"^\s*####[ \t]*(.*\S)[ \t]*$", re.MULTILINE)
_NUMBER_WITH_COMMAS = re.compile(r"\$?\s*(-?\d{1,3}(?:,\d{3})+(?:\.\d+)?)")
_DEEPEST = 64


class BadRowError(Exception):
    """Why a row cannot be used, as the end of the sentence `row 7 …`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A usable row."""

    id: str | None
    """The row's own, if it has one."""
    messages: tuple[Message, ...]
    answer: str | None
    attributes: dict[str, Any]
    """All other columns as JSON; `worked_answer` holds the original of an answer that ended in `#### gold`."""


def read_columns(data: Mapping[str, Any]) -> Question:
    """Check a row.

    Args:
        data: `prompt` (text or messages) or `question` (text), usually `answer`, perhaps `id`, and anything else.

    Raises:
        BadRowError: with the reason.
    """
    key = "prompt" if data.get("prompt") is not None or "question" not in data else "question"
    messages = _read_messages(data.get(key), key)
    used = {key, "answer", "id"}
    attributes = {name: to_json(value, name) for name, value in data.items() if name not in used}
    answer = _read_answer(data.get("answer"))
    gold = _gold(answer)
    if gold != answer:
        attributes["worked_answer"] = answer
    return Question(id=_read_id(data.get("id")), messages=messages, answer=gold, attributes=attributes)


def with_instruction(messages: Sequence[Message], instruction: str) -> tuple[Message, ...]:
    """Add `instruction` to the last message, on a new line."""
    if not instruction:
        return tuple(messages)
    *before, last = messages
    return (*before, Message(role=last["role"], content=f"{last['content'].rstrip()}\n{instruction}"))


def _read_messages(value: Any, key: str) -> tuple[Message, ...]:
    if value is None:
        raise BadRowError(f"has no {key}; expected text in `prompt` or `question`")
    if isinstance(value, str):
        return (Message(role="user", content=_text(value, key)),)
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise BadRowError(f"has a {type(value).__name__} as {key}, expected text or a list of messages: {value!r:.60}")
    messages = tuple(_read_message(message, f"{key}[{index}]") for index, message in enumerate(value))
    if not messages:
        raise BadRowError(f"has an empty list as {key}, expected messages")
    for index, message in enumerate(messages):
        if message["role"] == "system" and index > 0:
            raise BadRowError(f"has a system message at {key}[{index}]; it must come first")
    if messages[-1]["role"] != "user":
        raise BadRowError(f"ends in a message of the role {messages[-1]['role']!r}, expected 'user'")
    return messages


def _read_message(value: Any, where: str) -> Message:
    if not isinstance(value, Mapping):
        raise BadRowError(f"has a {type(value).__name__} at {where}, expected a message with role and content")
    role, content = value.get("role"), value.get("content")
    if role not in _ROLES:
        raise BadRowError(f"has the role {role!r:.40} at {where}, expected {', '.join(_ROLES)}")
    if not isinstance(content, str):
        raise BadRowError(f"has a {type(content).__name__} as content of {where}, expected text")
    return Message(role=role, content=_text(content, where))


def _read_answer(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, str):
        return _text(value, "answer").strip()
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise BadRowError(f"has a {type(value).__name__} as answer, expected text or a number: {value!r:.60}")
    if not math.isfinite(value):
        raise BadRowError(f"has the answer {value}, expected a finite number")
    try:
        return str(int(value)) if value == int(value) else str(value)
    except ValueError as error:  # Python refuses to write integers of thousands of digits
        raise BadRowError(f"has an answer that is too long a number: {error}") from error


def _gold(answer: str | None) -> str | None:
    """GSM8K writes a worked solution and then `#### 1,234`: the gold answer is 1234."""
    found = _WORKED.findall(answer) if answer is not None else []
    if not found:
        return answer
    number = _NUMBER_WITH_COMMAS.fullmatch(found[-1])
    return number.group(1).replace(",", "") if number else found[-1].removeprefix("$")


def _read_id(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise BadRowError(f"has the id {value!r:.40}, expected text or an integer")
    text = _text(str(value), "id").strip()
    if not text.isprintable() or len(text) > 200:
        raise BadRowError(f"has the id {text!r:.40}, expected at most 200 printable characters")
    return text


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
        raise BadRowError(f"has a lone surrogate or broken UTF-8 in {where} (character {error.start})") from error


def to_json(value: Any, where: str, depth: int = 0) -> Any:
    """A column as JSON: dates as ISO text, decimals as text, NaN as null.

    Raises:
        BadRowError: bytes or objects, characters that cannot be stored, or nesting without end.
    """
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
    raise BadRowError(f"has a {type(value).__name__} in {where}, which is no JSON; leave the column out")
