"""Exercise sheets with an answer key, and the rewards that solve them independently of the key."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SIGNS = {"addition": "+", "subtraction": "-", "multiplication": "x"}
SOLVERS: dict[str, Callable[[int, int], int]] = {
    "+": lambda first, second: first + second,
    "-": lambda first, second: first - second,
    "x": lambda first, second: first * second,
}
GRADES = {
    "addition": {1: (2, 10), 2: (2, 16)},
    "subtraction": {1: (2, 10), 2: (2, 16)},
    "multiplication": {3: (2, 10), 4: (2, 12)},
}
"""Smallest and largest number of a problem by operation and grade."""
LATER, EARLIER = 2, 4
"""A sheet's range begins up to so much later and ends up to so much earlier."""
EXAMPLES = {
    "addition": ("for grade 2 with numbers from 5 to 15", "1. 5 + 14 = 19\n2. 15 + 8 = 23\n3. 9 + 12 = 21"),
    "subtraction": ("for grade 2 with numbers from 5 to 16", "1. 16 - 5 = 11\n2. 13 - 8 = 5\n3. 15 - 6 = 9"),
    "multiplication": ("for grade 4 with numbers from 5 to 13", "1. 5 x 12 = 60\n2. 7 x 8 = 56\n3. 6 x 11 = 66"),
}
"""One worked sheet of each operation, of a range that no other has: the form of a line, and where its numbers lie."""
COUNTS = (3, 4)
HELD_OUT = 0.4
"""Share of the ranges of an operation that only held-out sheets have."""
_LINE = re.compile(r"(?:\d+[.)]\s+)?(\d+)\s*([-+x*×−])\s*(\d+)\s*=\s*(-?\d+)\.?")
_SAME_SIGN = {"*": "x", "×": "x", "−": "-"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One line of a sheet, as it is written."""

    first: int
    sign: str
    second: int
    key: int

    @property
    def right(self) -> bool:
        """True if the key is what the solver finds."""
        return SOLVERS[self.sign](self.first, self.second) == self.key

    @property
    def pair(self) -> tuple[str, int, int]:
        """The problem up to the order of numbers that may be swapped."""
        ends = (self.first, self.second) if self.sign == "-" else sorted((self.first, self.second))
        return (self.sign, ends[0], ends[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """The lines of a completion; None for a line that is no problem."""

    lines: tuple[Problem | None, ...]
    size: int
    """Lines that shares are of: as many as there are, and at least as many as were asked for."""

    def share(self, holds: Callable[[Problem], bool]) -> float:
        """Share of the lines that are problems for which this holds; a missing line counts as one for which not."""
        return sum(line is not None and holds(line) for line in self.lines) / self.size


def read(completion: str, count: int) -> Sheet:
    """The sheet in a completion. Every line with text counts: words around the problems are lines that are none."""
    lines = [line.strip() for line in completion.splitlines() if line.strip()]
    return Sheet(lines=tuple(map(_problem, lines)), size=max(len(lines), count))


def _problem(line: str) -> Problem | None:
    match = _LINE.fullmatch(line)
    if match is None or max(len(match[1]), len(match[3]), len(match[4])) > 6:
        return None
    sign = _SAME_SIGN.get(match[2], match[2])
    return Problem(first=int(match[1]), sign=sign, second=int(match[3]), key=int(match[4]))


def rows(split: str = "train", size: int = 200, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rows of a `python` source: `prompt` with one worked sheet, the sheet that it asks for, of
    one split by a hash, and as `answer` a sheet that earns everything.

    Args:
        split: train or heldout.
        size: rows.
        seed: of their choice.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"split = {split!r}; expected train or heldout")
    sheets = [sheet for sheet in _sheets() if _is_held_out(sheet) == (split == "heldout")]
    sheets.sort(key=lambda sheet: _hash(f"order {seed}", sheet))
    kinds = [(name, grade) for name, grades in GRADES.items() for grade in grades]
    for number in range(size):  # kinds take turns
        alike = [sheet for sheet in sheets if (sheet["operation"], sheet["grade"]) == kinds[number % len(kinds)]]
        if number // len(kinds) >= len(alike):
            raise ValueError(f"size = {size}; there are fewer sheets in {split}: at most {len(kinds) * len(alike)}")
        sheet = alike[number // len(kinds)]
        words, worked = EXAMPLES[sheet["operation"]]
        question = (
            f"Write {sheet['count']} {sheet['operation']} problems for grade {sheet['grade']} with numbers "
            f"from {sheet['low']} to {sheet['high']}."
        )
        example = [
            {"role": "user", "content": f"Write 3 {sheet['operation']} problems {words}."},
            {"role": "assistant", "content": worked},
        ]
        yield {"prompt": [*example, {"role": "user", "content": question}], **sheet, "answer": solution(sheet)}


def solution(sheet: Mapping[str, Any]) -> str:
    """A sheet that earns everything."""
    sign, low, high = SIGNS[sheet["operation"]], sheet["low"], sheet["high"]
    pairs = [(high, low + number) for number in range(sheet["count"] - 1)] + [(high - 1, low)]
    return "\n".join(f"{first} {sign} {second} = {SOLVERS[sign](first, second)}" for first, second in pairs)


def _sheets() -> Iterator[dict[str, Any]]:
    for operation, grades in GRADES.items():
        for grade, (smallest, largest) in grades.items():
            for low in range(smallest, smallest + LATER + 1):
                for high in range(largest - EARLIER, largest + 1):
                    for count in COUNTS:
                        yield {"operation": operation, "grade": grade, "low": low, "high": high, "count": count}


def _is_held_out(sheet: Mapping[str, Any]) -> bool:
    """By operation and range alone: grade and count tell a sheet of another split nothing."""
    return _hash("split", {name: sheet[name] for name in ("operation", "low", "high")}) < HELD_OUT


def _hash(name: str, sheet: Mapping[str, Any]) -> float:
    text = f"{name} {sorted(sheet.items())}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


def key(completions: Sequence[str], count: Sequence[int]) -> list[float]:
    """Share of the lines with the key that the solver finds."""
    return [read(text, number).share(lambda line: line.right) for text, number in zip(completions, count, strict=True)]


def counted(completions: Sequence[str], count: Sequence[int]) -> list[float]:
    """1 for as many lines as were asked for, less by the share of missing or surplus ones."""
    lengths = [len(read(text, number).lines) for text, number in zip(completions, count, strict=True)]
    return [max(0.0, 1 - abs(length - number) / number) for length, number in zip(lengths, count, strict=True)]


def in_range(completions: Sequence[str], count: Sequence[int], low: Sequence[int], high: Sequence[int]) -> list[float]:
    """Share of the lines whose two numbers are in the range; nothing is taken from a smaller number."""
    return [
        read(text, number).share(
            lambda line, least=least, most=most: (
                least <= min(line.first, line.second)
                and max(line.first, line.second) <= most
                and (line.sign != "-" or line.first >= line.second)
            )
        )
        for text, number, least, most in zip(completions, count, low, high, strict=True)
    ]


def distinct(completions: Sequence[str], count: Sequence[int]) -> list[float]:
    """Share of the lines that are problems of their own: 3 + 4 and 4 + 3 are the same."""
    sheets = [read(text, number) for text, number in zip(completions, count, strict=True)]
    return [len({line.pair for line in sheet.lines if line}) / sheet.size for sheet in sheets]


def level(completions: Sequence[str], count: Sequence[int], low: Sequence[int], high: Sequence[int]) -> list[float]:
    """1 where half of the lines or more have their larger number in the upper half of the range; else twice their
    share. Without it the smallest numbers of a range, which are the easiest, would do."""
    return [
        min(1.0, 2 * read(text, number).share(_in_upper_half(least, most)))
        for text, number, least, most in zip(completions, count, low, high, strict=True)
    ]


def _in_upper_half(low: int, high: int) -> Callable[[Problem], bool]:
    return lambda line: low + high < 2 * max(line.first, line.second) <= 2 * high


def asked(completions: Sequence[str], count: Sequence[int], operation: Sequence[str]) -> list[float]:
    """Share of the lines of the operation that was asked for: the gate."""
    return [
        read(text, number).share(lambda line, sign=SIGNS[name]: line.sign == sign)
        for text, number, name in zip(completions, count, operation, strict=True)
    ]


def perfect(
    completions: Sequence[str],
    count: Sequence[int],
    low: Sequence[int],
    high: Sequence[int],
    operation: Sequence[str],
) -> list[float]:
    """1 where every part is full: a sheet that could be handed out."""
    parts = zip(
        key(completions, count),
        counted(completions, count),
        in_range(completions, count, low, high),
        distinct(completions, count),
        level(completions, count, low, high),
        asked(completions, count, operation),
        strict=True,
    )
    return [float(min(values) == 1) for values in parts]
