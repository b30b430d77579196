"""Numeric answers, compared as exact fractions. Cheap: no computer algebra."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from coterie.data.answers import extract_answer, marked_answer
from coterie.data.numerals import Number, gold_number, last_number, parse_number, worded_number

__all__ = ["Number", "answered_number", "last_number", "number", "parse_number", "same_number"]

TOLERANCE = Fraction(1, 10**6)
"""Relative, for answers that are not integers: 0.333333 is 1/3."""


def number(
    completions: Sequence[str],
    answer: Sequence[str | None],
    *,
    strict: bool = False,
    tolerance: float | None = None,
) -> list[float | None]:
    """1 where the completion's number equals the gold number, else 0; None where the gold answer is no number.

    The number is sought in the marked answer (`<answer>…</answer>`, `\\boxed{…}`, `####`), or else in all that was said
    after thinking; the last one counts, unless it is one of several. The rules are those of docs/rewards.md, "How an
    answer is read". Units of measure are not compared.

    Args:
        strict: the answer must be the number and nothing else, and 50% is 0.5, not 50.
        tolerance: allowed relative difference; by default integers must be equal and others agree to 1e-6.
    """
    return [
        None if (gold := gold_number(text or "")) is None else float(_right(completion, gold, strict, tolerance))
        for completion, text in zip(completions, answer, strict=True)
    ]


def _right(completion: str, gold: Number, strict: bool, tolerance: float | None) -> bool:
    answered = parse_number(extract_answer(completion)) if strict else answered_number(completion)
    return answered is not None and same_number(answered, gold, strict=strict, tolerance=tolerance)


def same_number(number: Number, gold: Number, *, strict: bool = False, tolerance: float | None = None) -> bool:
    """Equality of any two readings: exact between integers, else to a relative tolerance."""
    if number.percent and gold.percent:
        return _near(number.value, gold.value, tolerance)
    return any(_near(a, b, tolerance) for a in number.readings(strict=strict) for b in gold.readings(strict=strict))


def _near(value: Fraction, gold: Fraction, tolerance: float | None) -> bool:
    if tolerance is None and value.denominator == gold.denominator == 1:
        return value == gold
    allowed = TOLERANCE if tolerance is None else Fraction(tolerance)
    return abs(value - gold) <= allowed * abs(gold)


def answered_number(completion: str) -> Number | None:
    """Number that a completion answers; None without one, or with several.

    The marked answer decides where there is one, else what was said after thinking. Either is the number as a whole, or
    the last number in it counts, as `numerals.last_number` reads it.
    """
    marked = marked_answer(completion)
    answer = extract_answer(completion) if marked is None else marked
    return answer_of(answer, marked=marked is not None)


def answer_of(text: str, *, marked: bool) -> Number | None:
    """Number of an answer: the whole of it, in digits or words, else the last one in it.

    Args:
        marked: the text is the content of an answer's mark, so that a list of numbers is no answer.
    """
    number = parse_number(text) or last_number(text, marked=marked)
    if number is None and (value := worded_number(text)) is not None:
        return Number(Fraction(value))
    return number
