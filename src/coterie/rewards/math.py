"""Mathematical answers: a cheap match first, then computer algebra by math-verify (needs the `train` extra).

math-verify guards itself with `signal.alarm`, which raises outside the main thread and cannot stop C code. Its
time-outs are switched off: this runs in a worker process that is killed at the deadline.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from coterie.data.answers import marked_answer, spoken
from coterie.errors import RewardError
from coterie.rewards.number import Number, parse_number, same_number
from coterie.rewards.text import same_text

try:
    from math_verify import parse, verify
except ImportError as error:
    raise RewardError(
        f"reward 'math' needs math-verify ({error}): pip install 'coterie[train]', or use the reward 'number'",
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

    A gold answer that is no mathematics is compared as text.

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
    said = spoken(completion).strip() if marked is None else marked
    if same_text(said, gold, casefold=True):
        return True
    one, other = parse_number(said), parse_number(gold)
    if one is not None and other is not None:
        return same_number(one, other, tolerance=tolerance) or _doubtful(one, other, said, gold)
    if not said or (marked is not None and len(marked) > LONGEST_ANSWER):
        return False
    text = _delimited(said) if marked is not None or "\\" in said else said
    return verify(_parsed(gold), _parse(text[-LONGEST_TEXT:]), timeout_seconds=None)


def _doubtful(one: Number, other: Number, said: str, gold: str) -> bool:
    """Whether computer algebra sees more in two different plain numbers: only per cent leaves room for it."""
    return one.percent != other.percent and verify(_parsed(gold), _parse(_delimited(said)), timeout_seconds=None)


@lru_cache(maxsize=1024)
def _parsed(gold: str) -> list[Any]:
    return _parse(_delimited(gold))


def _parse(text: str) -> list[Any]:
    return parse(text, parsing_timeout=None)  # ty: ignore[invalid-argument-type]


def _delimited(text: str) -> str:
    """math-verify only reads LaTeX that stands between delimiters."""
    return text if any(mark in text for mark in _DELIMITERS) else f"\\boxed{{{text}}}"
