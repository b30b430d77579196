"""Numeric answers, compared as exact fractions. Cheap: no computer algebra."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from coterie.data.answers import extract_answer

MAX_DIGITS = 400
MAX_EXPONENT = 400
"""Bounds on what is read as a number: 1e999999999 would fill the memory."""
TOLERANCE = Fraction(1, 10**6)
"""Relative, for answers that are not integers: 0.333333 is 1/3."""

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!,?\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"""(?<!\w)(?<!\d\.)
    (?P<sign>(?<![\w)\]}}%])[-+])?(?:[$€£¥][ ]?(?P<inner>[-+])?)?
    (?:(?P<whole>\d+)[ ]+(?=\d+[ ]?/))?
    (?P<top>{_DIGITS})(?P<power>[eE][-+]?\d+)?
    (?:[ ]?/[ ]?(?P<bottom>{_DIGITS})(?![ ]?[/\d]))?
    (?P<percent>[ ]?(?:%|per[ ]?cent\b))?""",
    re.VERBOSE,
)
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{\s*([-+]?[\d.,]+)\s*\}|(\d))\s*(?:\{\s*([\d.,]+)\s*\}|(\d))")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_MINUSES = str.maketrans({"−": "-", "﹣": "-", "-": "-"})  # U+2212 and its small and full-width forms
_THIN_SPACE = re.compile(r"(?<=\d)(?:[\u00a0\u2009\u202f]|\\,|\\!|\\ |\{,\})(?=\d{3})")
_WRAPPERS = re.compile(r"^(?:\\\(|\\\[|\$\$?)\s*(.*?)\s*(?:\\\)|\\\]|\$\$?)$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Number:
    """An exact number as it was written."""

    value: Fraction
    percent: bool = False
    """A per cent sign follows, which may or may not mean a hundredth."""

    def readings(self, *, strict: bool) -> set[Fraction]:
        """What it may mean: 50% is one half, and, unless strict, fifty too."""
        if not self.percent:
            return {self.value}
        return {self.value / 100} if strict else {self.value / 100, self.value}


def number(
    completions: Sequence[str],
    answer: Sequence[str | None],
    *,
    strict: bool = False,
    tolerance: float | None = None,
) -> list[float | None]:
    """1 where the completion's number equals the gold number, else 0; None where the gold answer is no number.

    The number is sought in the marked answer (`<answer>…</answer>`, `\\boxed{…}`, `####`), or else in all that was said
    after thinking; the last one counts. Thousands separators, decimals, signs, fractions, per cent and currency signs
    are understood.

    Args:
        strict: the answer must be the number and nothing else, and 50% is 0.5, not 50.
        tolerance: allowed relative difference; by default integers must be equal and others agree to 1e-6.
    """
    return [
        None if (gold := parse_number(text or "")) is None else float(_right(completion, gold, strict, tolerance))
        for completion, text in zip(completions, answer, strict=True)
    ]


def _right(completion: str, gold: Number, strict: bool, tolerance: float | None) -> bool:
    said = extract_answer(completion)
    found = parse_number(said)
    if found is None and not strict:
        found = last_number(said)
    return found is not None and same_number(found, gold, strict=strict, tolerance=tolerance)


def same_number(one: Number, gold: Number, *, strict: bool = False, tolerance: float | None = None) -> bool:
    """Equality of any two readings: exact between integers, else to a relative tolerance."""
    if one.percent and gold.percent:
        return _near(one.value, gold.value, tolerance)
    return any(_near(a, b, tolerance) for a in one.readings(strict=strict) for b in gold.readings(strict=strict))


def _near(one: Fraction, gold: Fraction, tolerance: float | None) -> bool:
    if tolerance is None and one.denominator == gold.denominator == 1:
        return one == gold
    allowed = TOLERANCE if tolerance is None else Fraction(tolerance)
    return abs(one - gold) <= allowed * abs(gold)


@lru_cache(maxsize=4096)
def parse_number(text: str) -> Number | None:
    """The number that the whole text is; None when it says anything else.

    >>> parse_number("$1,234.50").value
    Fraction(2469, 2)
    >>> parse_number("12 apples") is None
    True
    """
    clean = _plain(text).strip().removesuffix(".").strip()
    match = _NUMBER.fullmatch(clean)
    return None if match is None else _value(match)


def last_number(text: str) -> Number | None:
    """The last number in a text; None when there is none."""
    for match in reversed(list(_NUMBER.finditer(_COMMAND.sub(" ", _plain(text))))):
        found = _value(match)
        if found is not None:
            return found
    return None


def _plain(text: str) -> str:
    """One spelling for signs, separators and LaTeX fractions."""
    text = text.strip().translate(_MINUSES)
    wrapped = _WRAPPERS.match(text)
    if wrapped is not None and "$" not in wrapped.group(1):
        text = wrapped.group(1)
    text = _THIN_SPACE.sub("", text.replace("\\$", "$").replace("\\%", "%"))
    return _FRACTION.sub(_slashed, text).strip()


def _slashed(match: re.Match[str]) -> str:
    """A digit before a fraction makes a mixed number: 1\\frac{1}{2} is one and a half."""
    space = " " if match.string[max(match.start() - 1, 0) : match.start()].isdigit() else ""
    return f"{space}{match[1] or match[2]}/{match[3] or match[4]}"


def _value(match: re.Match[str]) -> Number | None:
    power = match["power"] or "e0"
    if len(match.group()) > MAX_DIGITS or len(power) > 6 or abs(int(power[1:])) > MAX_EXPONENT:
        return None
    bottom = _fraction(match["bottom"] or "1")
    if bottom == 0:
        return None
    value = _fraction(match["top"]) * Fraction(10) ** int(power[1:]) / bottom
    value += int(match["whole"] or 0)
    if "-" in ((match["sign"] or "") + (match["inner"] or "")):
        value = -value
    return Number(value, percent=match["percent"] is not None)


def _fraction(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))
