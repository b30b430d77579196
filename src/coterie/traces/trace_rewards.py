"""Rewards of worked solutions: each step by its family's checker, and whether the answer follows from the last step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coterie.data.answers import extract_answer
from coterie.rewards.builtin import same_text
from coterie.traces import word_problems
from coterie.traces.family import spelled
from coterie.traces.rows import FAMILIES

Column = Sequence[Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A completion taken apart."""

    lines: tuple[str, ...]
    ends: tuple[int, ...]
    """Where each line ends in the completion, in characters."""
    answer: str
    family: str | None
    problem: Mapping[str, Any]

    def verdicts(self) -> list[float | None]:
        """1 or 0 for each step, None for one that says nothing that can be checked."""
        family = FAMILIES.get(self.family or "")
        return word_problems.judge(self.lines) if family is None else list(family.judge(self.problem, self.lines))

    def conclusion(self) -> str | None:
        """The answer that the last step says."""
        family = FAMILIES.get(self.family or "")
        return word_problems.conclude(self.lines) if family is None else family.conclude(self.problem, self.lines)


def attempt(completion: str, family: str | None, problem: Mapping[str, Any] | None) -> Attempt:
    """A completion as steps and an answer: the lines inside of `<think>…</think>`, or all before the answer.

    >>> attempt("<think>\\n2 + 3 = 5\\n</think>\\n<answer>5</answer>", None, None).lines
    ('2 + 3 = 5',)
    """
    tagged = "<answer>" in completion
    body = completion.partition("<answer>")[0] if tagged else completion.rstrip().rpartition("\n")[0]
    lines: list[str] = []
    ends: list[int] = []
    start = 0
    for raw in body.split("\n"):
        line = raw.replace("<think>", "").replace("</think>", "").strip()
        if line:
            lines.append(line)
            ends.append(start + len(raw.rstrip()))
        start += len(raw) + 1
    answer = extract_answer(completion) if tagged else completion.rstrip().rpartition("\n")[2].strip()
    usable = isinstance(problem, Mapping) and family in FAMILIES
    return Attempt(
        lines=tuple(lines), ends=tuple(ends), answer=answer, family=family if usable else None,
        problem=problem if usable and problem is not None else {},
    )  # fmt: skip


def _attempts(completions: Sequence[str], family: Column, problem: Column) -> list[Attempt]:
    families = family if family is not None else [None] * len(completions)
    problems = problem if problem is not None else [None] * len(completions)
    return [attempt(*given) for given in zip(completions, families, problems, strict=True)]


def trace(completions: Sequence[str], family: Column = None, problem: Column = None) -> list[list[tuple[int, float]]]:
    """Step reward: 1 for each step that follows from those before it as they are written, else 0.

    Args:
        family: column of the row's family; without one, lines with arithmetic are judged by their claims.
        problem: column of the problem's numbers or words, as `coterie.traces.rows` gives it.
    """
    judged = [(item, item.verdicts()) for item in _attempts(completions, family, problem)]
    return [
        [(end, value) for end, value in zip(item.ends, verdicts, strict=True) if value is not None]
        for item, verdicts in judged
    ]


def valid_steps(completions: Sequence[str], family: Column = None, problem: Column = None) -> list[float]:
    """Share of the steps that are valid; 0 without steps."""
    verdicts = [[x for x in item.verdicts() if x is not None] for item in _attempts(completions, family, problem)]
    return [sum(values) / len(values) if values else 0.0 for values in verdicts]


def faithful(completions: Sequence[str], family: Column = None, problem: Column = None) -> list[float]:
    """1 where the answer is what the last step says, else 0: whether either is right does not matter."""
    return [float(_follows(item)) for item in _attempts(completions, family, problem)]


def _follows(item: Attempt) -> bool:
    conclusion = item.conclusion()
    return conclusion is not None and spelled(item.answer) == spelled(conclusion)


def unsound(
    completions: Sequence[str], answer: Sequence[str | None], family: Column = None, problem: Column = None
) -> list[float | None]:
    """Of right answers: 1 where a step is wrong or the answer does not follow, else 0; None for wrong answers."""
    values: list[float | None] = []
    for item, gold in zip(_attempts(completions, family, problem), answer, strict=True):
        right = gold is not None and same_text(item.answer, gold, casefold=True)
        sound = _follows(item) and 0.0 not in item.verdicts()
        values.append(float(not sound) if right else None)
    return values
