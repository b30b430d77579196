"""Traces of a user's file: rows of `prompt`, `steps` and `answer` from reasoning data as others publish it.

Recognised are the columns of open-r1 (OpenR1-Math: `problem`, `generations`, `correctness_math_verify`, `solution`,
`answer`; Mixture-of-Thoughts: `messages`) and of OLMo's and Tülu's reasoning sets (`messages`, or `prompt` with
`output`), and rows that have `steps` already.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie.data.answers import extract_answer, marked_answer
from coterie.data.columns import plain_value
from coterie.data.files import read_file
from coterie.errors import DataError
from coterie.text import counted

PROMPTS = ("prompt", "problem", "question")
VERDICTS = ("correctness_math_verify", "correctness_llama", "correctness")
"""open-r1's columns that say which of a row's generations is right, the first that it has."""
REPLIES = ("completion", "response", "output", "solution")
_THOUGHT = re.compile(r"<think>(.*?)</think>(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What was read of a file."""

    rows: list[dict[str, Any]]
    refused: list[tuple[int, str]]
    """(row, reason)."""


def read_traces(path: Path, max_bad_share: float = 0.1) -> Imported:
    """The usable rows of a JSON, JSONL, CSV or Parquet file.

    Args:
        max_bad_share: a larger share of refused rows is an error.

    Raises:
        DataError: the file cannot be read, too many rows are refused, or none is usable; names row and reason.
    """
    rows: list[dict[str, Any]] = []
    refused: list[tuple[int, str]] = []
    for row in read_file(path):
        try:
            if row.data is None:
                raise _RefusedError(row.problem or "cannot be read")
            rows.append(_trace(row.data))
        except _RefusedError as reason:
            refused.append((row.number, str(reason)))
    total = len(rows) + len(refused)
    if not rows or len(refused) > max_bad_share * total:
        shown = "; ".join(f"row {number} {reason}" for number, reason in refused[:5]) or "it has no rows"
        raise DataError(
            f"{path}: {len(refused)} of {counted(total, 'row')} cannot be used, more than {max_bad_share:.0%}: {shown}"
        )
    return Imported(rows=rows, refused=refused)


class _RefusedError(Exception):
    """The reason for which a row is refused."""


def _trace(data: Mapping[str, Any]) -> dict[str, Any]:
    columns = {key: plain_value(value) for key, value in data.items()}
    prompt, reply = _prompt(columns), ""
    steps = columns.get("steps")
    if steps is None:
        reply = _reply(columns)
        thought = _THOUGHT.search(reply)
        if "<think>" in reply and thought is None:
            raise _RefusedError("opens <think> and does not close it")
        steps = _paragraphs(thought[1] if thought else reply)
    if not isinstance(steps, list) or not steps or not all(isinstance(step, str) and step.strip() for step in steps):
        raise _RefusedError("has no steps: expected a column `steps`, a list of texts, or a reply that holds them")
    answer = columns.get("answer")
    if answer is None and reply:
        answer = marked_answer(reply) or (extract_answer(reply) if _THOUGHT.search(reply) else None)
    if answer is None or not str(answer).strip():
        raise _RefusedError(f"has no answer: no such column, and no boxed or tagged one in its reply ({_listed(data)})")
    return {"prompt": prompt, "steps": [step.strip() for step in steps], "answer": str(answer).strip()}


def _prompt(columns: Mapping[str, Any]) -> str:
    for name in PROMPTS:
        if isinstance(columns.get(name), str) and columns[name].strip():
            return columns[name]
    for message in _messages(columns):
        if message.get("role") == "user" and isinstance(message.get("content"), str):
            return message["content"]
    raise _RefusedError(f"has none of {', '.join(PROMPTS)} and no message of a user ({_listed(columns)})")


def _reply(columns: Mapping[str, Any]) -> str:
    """The first generation that is marked as right, else the reply's column, else the assistant's last message."""
    generations = columns.get("generations")
    if isinstance(generations, list) and generations:
        verdicts = next(
            (columns[name] for name in VERDICTS if isinstance(columns.get(name), list)), [True] * len(generations)
        )
        for text, right in zip(generations, verdicts, strict=False):
            if right and isinstance(text, str):
                return text
        raise _RefusedError(f"has {counted(len(generations), 'generation')}, and none is marked as right")
    for name in REPLIES:
        if isinstance(columns.get(name), str) and columns[name].strip():
            return columns[name]
    for message in reversed(_messages(columns)):
        if message.get("role") == "assistant" and isinstance(message.get("content"), str):
            return message["content"]
    raise _RefusedError(
        f"has neither steps nor a reply: expected steps, generations, messages or one of {', '.join(REPLIES)}"
    )


def _messages(columns: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    messages = columns.get("messages", columns.get("conversations"))
    return [message for message in messages if isinstance(message, Mapping)] if isinstance(messages, list) else []


def _paragraphs(text: str) -> list[str]:
    """Paragraphs as steps; lines, where there are no empty ones between."""
    parts = [part.strip() for part in re.split(r"\n\s*\n", text)] if "\n\n" in text.strip() else text.splitlines()
    return [" ".join(part.split()) for part in parts if part.strip()]


def _listed(data: Mapping[str, Any]) -> str:
    return f"its columns are {', '.join(map(str, data)) or 'none'}"
