"""Rewards for mathematical answers: a cheap match, then computer algebra by math-verify (needs the `train` extra).

math-verify guards itself with `signal.alarm`, which raises outside the main thread and cannot stop C code. Its
time-outs are switched off: this runs in a worker process that is killed at the deadline.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from coterie.data.answers import marked_answer, spoken
from coterie.data.characters import plain_characters
from coterie.data.numerals import gold_number
from coterie.errors import RewardError, install_command
from coterie.rewards.builtin import same_text
from coterie.rewards.number import answer_of, same_number

try:
    from math_verify import parse, verify
except ImportError as error:
    raise RewardError(
        f"reward 'math' needs math-verify ({error}): {install_command('train')}, or use the reward 'number'",
        function="math",
    ) from error

# Each call without time-outs would print a warning.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)

LONGEST_ANSWER = 1000
"""Characters; a longer marked answer is wrong without a look."""
LONGEST_TEXT = 4000
"""Characters from the end in which an unmarked answer is sought."""
_DELIMITERS = ("$", "\\(", "\\[", "\\boxed")


def math(
    completions: Sequence[str], answer: Sequence[str | None], *, tolerance: float | None = None
) -> list[float | None]:
    """1 where the completion's answer equals the gold answer as mathematics, else 0; None without a gold answer.

    A gold answer that is a number is compared with the number that `number` would read, and, where that reads none,
    with what math-verify makes of the answer. A gold answer that is not mathematics is compared as text.

    Args:
        tolerance: allowed relative difference of plain numbers; see `number`.
    """
    return [
        None if gold is None else float(_right(completion, gold, tolerance))
        for completion, gold in zip(completions, answer, strict=True)
    ]


def prepare(_columns: Sequence[str]) -> None:
    """Parse once before the first deadline starts to run: the grammar is built on first use."""
    verify(_parse(r"\boxed{\frac{1}{2}}"), _parse(r"\boxed{2\sqrt{x}}"), timeout_seconds=None)


def _right(completion: str, gold: str, tolerance: float | None) -> bool:
    marked = marked_answer(completion)
    answer = spoken(completion).strip() if marked is None else marked
    if same_text(answer, gold, casefold=True):
        return True
    if not answer or (marked is not None and len(marked) > LONGEST_ANSWER):
        return False
    number = gold_number(gold)
    answered = None if number is None else answer_of(answer, marked=marked is not None)
    if number is not None and answered is not None:
        # Two plain numbers leave no room for computer algebra, but for per cent.
        return same_number(answered, number, tolerance=tolerance) or (
            answered.percent != number.percent and _verified(answer, gold, delimited=True)
        )
    if number is not None and marked is None and "\\" not in answer:
        return False  # prose without a number of its own; math-verify would take any number in it
    return _verified(answer, gold, delimited=marked is not None or "\\" in answer)


def _verified(answer: str, gold: str, *, delimited: bool) -> bool:
    text = _plain(answer)
    return verify(
        _parsed(gold), _parse((_delimited(text) if delimited else text)[-LONGEST_TEXT:]), timeout_seconds=None
    )


def _plain(text: str) -> str:
    """Text in the characters of math-verify's grammar."""
    return plain_characters(text).replace("×", r"\times ")


@lru_cache(maxsize=1024)
def _parsed(gold: str) -> list[Any]:
    return _parse(_delimited(_plain(gold)))


def _parse(text: str) -> list[Any]:
    return parse(text, parsing_timeout=None)  # ty: ignore[invalid-argument-type]


def _delimited(text: str) -> str:
    """Text between delimiters, outside of which math-verify reads no LaTeX."""
    return text if any(mark in text for mark in _DELIMITERS) else f"\\boxed{{{text}}}"
