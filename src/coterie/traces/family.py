"""Task families: a problem, its question, the step that follows from those so far, the answer of the last one."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

Problem = Mapping[str, Any]
"""The numbers or words of a problem, JSON-able."""
Lines = Sequence[str]
"""Steps as they are written, a line each."""

_NUMBER = re.compile(r"\d+")
_SPACES = re.compile(r"\s+")


def last_number(line: str) -> int | None:
    """The last whole number of a line; None without one or with a longer one than anybody writes.

    >>> last_number("8 + 2 = 10"), last_number("so")
    (10, None)
    """
    digits = _NUMBER.findall(line)
    return int(digits[-1]) if digits and len(digits[-1]) <= 18 else None


def spelled(text: str) -> str:
    """A step or an answer without what does not matter: case, white space, the form of ×, a full stop at the end."""
    text = text.replace("*", "×").replace(" x ", " × ")
    return _SPACES.sub(" ", text).strip().rstrip(".").casefold()


def last_result(problem: Problem, lines: Lines) -> str | None:
    """The answer of families whose last step ends with it."""
    number = last_number(lines[-1]) if lines else None
    return None if number is None else str(number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A kind of problems whose solutions are written by a rule, a line a step."""

    name: str
    title: str
    scale: str
    """What its difficulty counts."""
    hardest: int
    make: Callable[[random.Random, int], dict[str, Any]]
    """A random problem of a difficulty from 2 on."""
    ask: Callable[[Problem], str]
    """Its question."""
    follow: Callable[[Problem, Lines], str | None]
    """The step after these, from what they say and be it wrong; None at the end, and where nothing can follow."""
    truth: Callable[[Problem], str]
    """The gold answer, computed in another way than step by step."""
    conclude: Callable[[Problem, Lines], str | None] = last_result
    """The answer that the last step says; None where it says none."""

    def solve(self, problem: Problem) -> list[str]:
        """The worked solution."""
        lines: list[str] = []
        while (line := self.follow(problem, lines)) is not None:
            lines.append(line)
        return lines

    def judge(self, problem: Problem, lines: Lines) -> list[float]:
        """1 for each step that follows from those before it as they are written, else 0: an error counts once, where it
        is made."""
        expected = (self.follow(problem, lines[:place]) for place in range(len(lines)))
        return [
            float(line is not None and spelled(line) == spelled(written))
            for line, written in zip(expected, lines, strict=True)
        ]

    def problems(self, seed: int, difficulty: tuple[int, int]) -> Any:
        """An endless stream of (problem, difficulty); equal arguments give equal problems."""
        for index in count():
            draw = random.Random(f"{self.name}/{seed}/{index}")
            level = draw.randint(*difficulty)
            yield self.make(draw, level), level
