"""Data layouts: columns of the prompt and the gold answer, as set or as other trainers name them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from coterie.config.data import ColumnNames
from coterie.errors import DataError
from coterie.text import did_you_mean

PROMPTS = ("prompt", "question", "problem", "messages", "conversations", "conversation", "instruction")
"""Columns that are recognised as the prompt, the first that a row has."""
CONVERSATIONS = ("messages", "conversations", "conversation")
"""Those that hold a whole conversation, whose last reply is the gold answer where no column has one."""
ANSWERS = (
    "answer",
    "reward_model.ground_truth",
    "ground_truth",
    "final_answer",
    "expected_answer",
    "solution",
    "extra_info.answer",
)
"""Columns that are recognised as the gold answer, the first that a row has."""
WORKED = "solution"
"""May be a worked solution: it counts as the answer when it ends in a marked one, or is nothing else."""
REPLY = "the last reply"
"""`Layout.answer` of an answer that is the end of a conversation."""

_LIKELY_PROMPTS = ("prompt", "question", "problem", "query", "input", "instruction", "task", "text", "content")
_LIKELY_ANSWERS = (
    "answer",
    "truth",
    "gold",
    "label",
    "target",
    "solution",
    "result",
    "output",
    "response",
    "completion",
)
_DEEPEST = 3
_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Columns that a row was read from."""

    prompt: str
    answer: str | None
    """None where the row has no gold answer."""
    unmarked: bool = False
    """Its worked solution ends in no marked answer, so there is none."""

    def title(self) -> str:
        """Name of the layout; empty for columns that belong to none."""
        prompt = plain(self.prompt)
        if self.answer in ("reward_model.ground_truth", "extra_info.answer"):
            return "verl's layout"
        if prompt in ("conversations", "conversation"):
            return "ShareGPT's layout"
        if prompt == "messages":
            return "a conversation in OpenAI's format"
        if prompt == "instruction":
            return "Alpaca's layout"
        if prompt == "problem":
            return "open-r1's layout"
        if prompt == "prompt" and self.answer is not None and plain(self.answer) in ("solution", "ground_truth"):
            return "TRL's layout"
        return ""

    def native(self, names: ColumnNames) -> bool:
        """True for the documented names, or those of the settings: nothing was guessed."""
        prompt = names.prompt is not None or self.prompt in ("prompt", "question")
        answer = names.answer is not None or (self.answer in ("answer", None) and not self.unmarked)
        return prompt and answer

    def describe(self) -> str:
        """Text such as `read as verl's layout: prompt from `prompt`, answer from `reward_model.ground_truth``."""
        if self.answer is None:
            why = f" (`{WORKED}` ends neither in a box nor in a `####` line)" if self.unmarked else ""
            answer = f"no gold answer{why}"
        else:
            answer = f"answer from {self.answer if self.answer == REPLY else f'`{self.answer}`'}"
        title = f"as {self.title()}: " if self.title() else ""
        return f"read {title}prompt from `{self.prompt}`, {answer}"


def plain(name: str) -> str:
    """Normalised column name: ` Final-Answer` and `final_answer` are the same."""
    return name.strip("\ufeff \t").casefold().replace(" ", "_").replace("-", "_")


def lookup(row: Mapping[str, Any], path: str) -> Any:
    """The value of a column, or below one by a dotted path; None where there is nothing.

    A column whose own name has a dot wins. Lists are entered by index (`answers.text.0`), and so is JSON in text.
    """
    if path in row:
        return row[path]
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:length])
        if name in row:
            return _below(row[name], parts[length:])
    return None


def _below(value: Any, parts: Sequence[str]) -> Any:
    for number, part in enumerate(parts):
        if isinstance(value, str) and value[:1] in ("{", "["):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                return None
        if hasattr(value, "tolist"):  # numpy
            value = value.tolist()
        if isinstance(value, Mapping):
            return lookup({str(key): item for key, item in value.items()}, ".".join(parts[number:]))
        if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not part.isdecimal():
            return None
        if int(part) >= len(value):
            return None
        value = value[int(part)]
    return value


def recognised(row: Mapping[str, Any], candidates: Iterable[str]) -> list[str]:
    """Paths of the candidates that a row has, spelt as the row spells them; those without a value come last."""
    spelt = {plain(name): name for name in reversed(list(row))}
    paths = []
    for candidate in candidates:
        first, dot, rest = candidate.partition(".")
        name = first if first in row else spelt.get(first)
        if name is not None:
            paths.append(f"{name}{dot}{rest}")
    return sorted(paths, key=lambda path: lookup(row, path) is None)


def column_paths(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the columns, nested ones as dotted paths, in the order of their first appearance."""
    paths: dict[str, None] = {}
    for row in rows:
        for name, value in row.items():
            paths |= dict.fromkeys(_paths(name, value, 1))
    return list(paths)


def _paths(name: str, value: Any, depth: int) -> list[str]:
    if depth < _DEEPEST and isinstance(value, Mapping) and value and all(isinstance(key, str) for key in value):
        return [path for key, item in value.items() for path in _paths(f"{name}.{key}", item, depth + 1)]
    return [name]


def check_columns(rows: Sequence[Mapping[str, Any]], names: ColumnNames, source: str) -> None:
    """Refuse a source none of whose rows has a column for the prompt, or one that a setting names.

    Args:
        rows: the first ones.
    """
    if not rows:
        return
    columns = column_paths(rows)
    for setting, path in zip(("prompt_column", "answer_column", "system_column"), names, strict=True):
        if path and not any(_has(row, path) for row in rows):
            hint = did_you_mean(path, columns, cutoff=0.5)
            raise DataError(f"{source} has no column {path!r} ({setting}); its columns are {listed(columns)}{hint}")
    if names.prompt is None and not any(recognised(row, PROMPTS) for row in rows):
        likely = likely_column(columns, _LIKELY_PROMPTS) or "…"
        raise DataError(
            f"{source} has no column `prompt`, `question` or another that is recognised as the prompt; its columns are "
            f'{listed(columns)}; set prompt_column on this source, e.g. prompt_column = "{likely}"'
        )


def _has(row: Mapping[str, Any], path: str) -> bool:
    return path in row or lookup(row, path) is not None


def listed(columns: Sequence[str]) -> str:
    """The first column names, as text."""
    more = f" and {len(columns) - _SHOWN} more" if len(columns) > _SHOWN else ""
    return (", ".join(islice(map(str, columns), _SHOWN)) or "none") + more


def likely_answer(columns: Sequence[str]) -> str | None:
    """Likely column of the gold answer, by its name."""
    return likely_column(columns, _LIKELY_ANSWERS)


def likely_column(columns: Sequence[str], words: Sequence[str]) -> str | None:
    """The first column whose last name has one of the words in it, earlier words first."""
    for word in words:
        for column in columns:
            if word in plain(column.rpartition(".")[2]):
                return column
    return None
