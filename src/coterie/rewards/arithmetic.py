"""Step rewards for worked calculations: every `a op b = c` in a line is checked with exact fractions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise

from coterie.data.characters import EQUALS, plain_characters, plain_spaces
from coterie.rewards.expression import Item, Value, evaluate

MAX_DIGITS = 100
"""Longer numbers are not judged."""

_SPELLINGS = (
    (re.compile(r"\\(?:left|right|,|!|;|quad|displaystyle)(?![A-Za-z])|\\[()\[\]]|[$€£¥]"), " "),
    (re.compile(r"(?<!\S)\*\*(?=[^\s*])|(?<=[^\s*])\*\*(?=[\s.,;:!?)]|$)"), " "),  # bold
    (re.compile(r"\\[dt]?frac\s*\{([\d.,]+)\}\s*\{([\d.,]+)\}"), r"(\1/\2)"),
    (re.compile(r"\\(?:times|cdot|ast)(?![A-Za-z])|×"), "*"),
    (re.compile(r"\\div(?![A-Za-z])"), "/"),
    (re.compile(r"\^\{(\d+)\}"), r"^\1"),
    (re.compile(r"(?<=\d)'(?=\d{3}(?!\d))"), ","),
)
_MARKER = re.compile(r"\s*(?:[-*•+>#]+|\d+[.)])\s+")
_TOKEN = re.compile(
    r"""(?P<number>\d+(?:,\d+)*(?:\.\d+)?|\.\d+)(?P<glued>[\w%°]?)
    |(?P<other><=|>=|!=|=>|=<|->|\.\.\.|:=)
    |(?P<power>\*\*|\^)
    |(?P<sign>==|[-+*/=()])
    |(?P<times>(?<=[\s\d)])[xX](?=\s*[\d(.]))
    |(?P<word>[^\W\d]\w*|\S)""",
    re.VERBOSE,
)
_NUMBER = re.compile(r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+")
_BEFORE = re.compile(
    r"(?:[√∛∜_]|\b(?:of|than|by|over|plus|minus|times|sqrt|root|log|ln|exp|sin|cos|tan)\s*)$", re.IGNORECASE
)
_AFTER = re.compile(
    r"""\s*(?:\\?%|!(?=\s*[-+*/^=)])(?!=)|,?\s*(?:(?:and|with)\s+)?(?:a\s+)?(?:r\d*|rem\w*|mod\w*|per\s?cent|hundred|thousand|million|billion
    |trillion|dozen|plus|minus|times|over|divided|multiplied|squared|cubed)(?!\w))""",
    re.IGNORECASE | re.VERBOSE,
)
"""Words and signs that make another number of the one beside them."""


def arithmetic(completions: Sequence[str], *, exact: bool = False) -> list[list[tuple[int, float]]]:
    """One step per line that claims an equality between numbers: 1 where all its claims are true, else 0.

    A claim is `a op b = c` in any number of terms, with + - × ÷ / * ^ and brackets, decimals, thousands separators and
    the signs of LaTeX or Unicode, also in chains `a + b = c × d = e`. A line without a claim is no step, and what holds
    a variable, a per cent sign or a remainder is not judged. The step ends with the line's last visible character.

    Args:
        exact: `10 / 3 = 3.33` is false; otherwise a decimal that is rounded to its last digit is true where the exact
            value has no end (and only there).

    >>> arithmetic(["2 + 3 = 5\\nso\\n4 × 5 = 21"])
    [[(9, 1.0), (23, 0.0)]]
    """
    return [list(_steps(completion, exact)) for completion in completions]


def _steps(completion: str, exact: bool) -> Iterator[tuple[int, float]]:
    start = 0
    for line in completion.split("\n"):
        claims = list(_claims(line, exact))
        if claims:
            yield start + len(line.rstrip()), float(all(claims))
        start += len(line) + 1


def _claims(line: str, exact: bool) -> Iterator[bool]:
    """Whether each claim of a line is true."""
    if not any(sign in line for sign in ("=", *EQUALS)):
        return
    line = plain_spaces(plain_characters(line))
    for pattern, plain in _SPELLINGS:
        line = pattern.sub(plain, line)
    marker = _MARKER.match(line)
    for run in _runs(line[marker.end() :] if marker else line):
        sides = [evaluate(side) for side in _unwrapped(list(_split(run)))]
        if any(side is not None and side.operations > 0 for side in sides):  # `5 = 5` claims nothing
            for left, right in pairwise(sides):
                if left is not None and right is not None:
                    yield _equal(left, right, exact)


def _equal(left: Value, right: Value, exact: bool) -> bool:
    if left.exact == right.exact:
        return True
    if exact:
        return False
    for said, truth in ((right, left.exact), (left, right.exact)):
        if said.operations == 0 and said.decimals and _endless(truth):
            return abs(said.exact - truth) <= Fraction(1, 2 * 10**said.decimals)
    return False


def _endless(value: Fraction) -> bool:
    """Whether the decimal expansion has no end: the denominator has a factor besides 2 and 5."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest > 1


def _runs(line: str) -> Iterator[list[Item]]:
    """Stretches of numbers and signs without words between them. A word beside an open end of a run is part of a term
    that nobody can calculate, and the parser finds such an end incomplete: `x + 2 = 5`."""
    run: list[Item] = []
    for match in _TOKEN.finditer(line):
        item = _item(match, line)
        if item is not None and not run and item.kind == "-" and not _sign(match, line):
            run = [Item("term")]
        elif item is None:
            yield run
            run = []
        else:
            run.append(item)
    yield run


def _sign(match: re.Match[str], line: str) -> bool:
    """Whether a minus after a word belongs to the number behind it; else the word is a term: `x - 2 + 3 = 5`."""
    before, after = line[: match.start()], line[match.end() : match.end() + 1]
    return not before.strip() or (not after.isspace() and not (before[-1].isalnum() or before[-1] in ")]}"))


def _item(match: re.Match[str], line: str) -> Item | None:
    if match["number"]:
        digits = match["number"]
        before, after = line[max(match.start() - 8, 0) : match.start()], line[match.end() : match.end() + 40]
        glued = match["glued"] or before[-1:].isalpha() or _BEFORE.search(before) or _AFTER.match(after)
        if glued or len(digits) > MAX_DIGITS or not _NUMBER.fullmatch(digits):
            return None
        value = Fraction(digits.replace(",", ""))
        return Item("number", Value(value, decimals=len(digits.partition(".")[2])))
    if match["power"]:
        return Item("^")
    if match["times"]:
        return Item("*")
    if match["sign"] == "(" and line[max(match.start() - 1, 0) : match.start()].isalpha():
        return None  # a function: f(2)
    return Item(match["sign"][0]) if match["sign"] else None


def _split(run: Sequence[Item]) -> Iterator[list[Item]]:
    side: list[Item] = []
    for item in run:
        if item.kind == "=":
            yield side
            side = []
        else:
            side.append(item)
    yield side


def _unwrapped(sides: list[list[Item]]) -> list[list[Item]]:
    """An equation in brackets, `(3 + 4 = 7)`, without them."""
    first, last = sides[0], sides[-1]
    if len(sides) > 1 and first[:1] == [Item("(")] and last[-1:] == [Item(")")]:
        opened = sum((item.kind == "(") - (item.kind == ")") for item in first)
        closed = sum((item.kind == ")") - (item.kind == "(") for item in last)
        if opened == closed == 1:
            return [first[1:], *sides[1:-1], last[:-1]]
    return sides
