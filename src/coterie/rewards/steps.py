"""Step rewards: exact checks of arithmetic lines, stages of the layout, and token positions of step ends."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from coterie.data.characters import EQUALS, plain_characters, plain_spaces

# Exact values of written-out expressions: numbers, + - * / ^ and brackets.

MAX_POWER, MAX_BITS, MAX_DEPTH = 64, 4_000, 40
"""Bounds on what is calculated: 9^9^9 would fill the memory."""


@dataclass(frozen=True, slots=True)
class Value:
    """An exact number with its number of operations and decimals."""

    exact: Fraction
    operations: int = 0
    """Two-sided signs that were calculated."""
    decimals: int = 0
    """Digits after the point, of a single number."""


@dataclass(frozen=True, slots=True)
class Item:
    """A token of an expression."""

    kind: str
    """`number`, one of `+ - * / ^ ( ) =`, or anything else, which is in no expression."""
    value: Value | None = None


def evaluate(items: list[Item]) -> Value | None:
    """Value of a whole expression; None for other text, or a value that is too large."""
    parser = _Parser(items)
    try:
        value = parser.sum(0)
    except _NotJudgedError:
        return None
    return value if parser.place == len(items) else None


class _NotJudgedError(Exception):
    """Not an expression, or one that is too large to evaluate."""


class _Parser:
    """Recursive descent: sums of products of powers of atoms."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items
        self.place = 0

    def _next(self) -> str:
        return self.items[self.place].kind if self.place < len(self.items) else ""

    def sum(self, depth: int) -> Value:
        left = self._product(depth)
        while self._next() in ("+", "-"):
            sign = 1 if self._take().kind == "+" else -1
            right = self._product(depth)
            left = _result(left.exact + sign * right.exact, left, right)
        return left

    def _product(self, depth: int) -> Value:
        left = self._signed(depth)
        while self._next() in ("*", "/"):
            times = self._take().kind == "*"
            right = self._signed(depth)
            if not times and right.exact == 0:
                raise _NotJudgedError
            left = _result(left.exact * right.exact if times else left.exact / right.exact, left, right)
        return left

    def _signed(self, depth: int) -> Value:
        if self._next() == "-":
            self._take()
            value = self._power(depth)
            return Value(-value.exact, value.operations, value.decimals)
        return self._power(depth)

    def _power(self, depth: int) -> Value:
        base = self._atom(depth)
        if self._next() != "^":
            return base
        self._take()
        exponent = self._atom(depth)
        power = exponent.exact
        size = base.exact.numerator.bit_length() + base.exact.denominator.bit_length()
        if self._next() == "^" or power.denominator != 1 or not 0 <= power <= MAX_POWER or size * power > MAX_BITS:
            raise _NotJudgedError
        return _result(base.exact ** int(power), base, exponent)

    def _atom(self, depth: int) -> Value:
        item = self._take()
        if item.value is not None:
            return item.value
        if item.kind != "(" or depth >= MAX_DEPTH:
            raise _NotJudgedError
        value = self.sum(depth + 1)
        if self._take().kind != ")":
            raise _NotJudgedError
        return value

    def _take(self) -> Item:
        if self.place >= len(self.items):
            raise _NotJudgedError
        self.place += 1
        return self.items[self.place - 1]


def _result(exact: Fraction, left: Value, right: Value) -> Value:
    if exact.numerator.bit_length() + exact.denominator.bit_length() > MAX_BITS:
        raise _NotJudgedError
    return Value(exact, left.operations + right.operations + 1)


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
    """Truth of each claim of a line."""
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
    for rounded, truth in ((right, left.exact), (left, right.exact)):
        if rounded.operations == 0 and rounded.decimals and _endless(truth):
            return abs(rounded.exact - truth) <= Fraction(1, 2 * 10**rounded.decimals)
    return False


def _endless(value: Fraction) -> bool:
    """True for an infinite decimal expansion: the denominator has a factor besides 2 and 5."""
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
    """True if a minus after a word belongs to the number behind it; else the word is a term: `x - 2 + 3 = 5`."""
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


def stages(
    completions: Sequence[str],
    completion_opening: Sequence[str] | None = None,
    *,
    tags: Sequence[str] = ("think", "answer"),
) -> list[list[tuple[int, float]]]:
    """One step per required stage `<tag>…</tag>`: 1 where it stands once, after the end of all stages before it in
    `tags`, else 0.

    A stage ends with its last closing tag. A stage that is missing or never closed is a step of value 0 at the end of
    the completion. Steps that end at the same place are one, with the lower value.

    Args:
        completion_opening: text of each completion that the chat template wrote, at its start. Left out where that
            is not known: then a first stage that is closed but not opened counts as opened by the template.
        tags: names of the stages in their order, without brackets.
    """
    if not tags or isinstance(tags, str) or len(set(tags)) != len(tags):
        raise ValueError(f"tags = {tags!r}; expected a list of different names")
    for tag in tags:
        if not re.fullmatch(r"[\w-]+", tag):
            raise ValueError(f"tags holds {tag!r}; expected a name without brackets")
    return [_stage_steps(completion, tags, lenient=completion_opening is None) for completion in completions]


def _stage_steps(completion: str, tags: Sequence[str], *, lenient: bool) -> list[tuple[int, float]]:
    values: dict[int, float] = {}
    before = 0  # where the stages so far end; beyond the text once one of them is missing
    for tag in tags:
        opens = [match.start() for match in re.finditer(f"<{tag}>", completion)]
        closes = [match.end() for match in re.finditer(f"</{tag}>", completion)]
        if lenient and tag == tags[0] and not opens and closes:
            opens = [0]
        complete = bool(opens) and bool(closes) and opens[0] < closes[-1]
        end = closes[-1] if complete else len(completion)
        right = complete and len(opens) == len(closes) == 1 and opens[0] >= before
        before = max(before, end) if complete else len(completion) + 1
        if end > 0:
            values[end] = min(values.get(end, 1.0), float(right))
    return sorted(values.items())


BROKEN = "\ufffd"
"""Decoded form of bytes that are no character, or not yet."""


def token_ends(
    turns: Sequence[Sequence[int]], ends: Sequence[int], decode: Callable[[Sequence[int]], str]
) -> list[int]:
    """Index of the token with which each step of a completion is first complete.

    Found by decoding prefixes of the very tokens that were sampled, since nothing else tells what a token adds: one
    character may take several byte tokens, one token may hold the end of a step and the start of the next, end tokens
    say nothing, and encoding the text again may cut it elsewhere.

    Args:
        turns: tokens of each model turn; the completion is their decoded texts end to end.
        ends: character offsets in the completion, ascending, 1 … its length.
        decode: of the tokenizer that the model speaks with.

    Returns:
        Per end the index of a token, counted over all turns.
    """
    texts = [decode(tokens) for tokens in turns]
    length = sum(map(len, texts))
    if list(ends) != sorted(ends) or (ends and not 1 <= ends[0] <= ends[-1] <= length):
        raise ValueError(
            f"ends {list(ends)} of a completion with {length} characters; expected 1 … {length}, ascending"
        )
    tokens_of_ends: list[int] = []
    characters = tokens_before = 0
    for tokens, text in zip(turns, texts, strict=True):
        turn = _Turn(tokens, text, decode)
        inside = [end - characters for end in ends[len(tokens_of_ends) :] if end - characters <= len(text)]
        tokens_of_ends += [tokens_before + turn.token_of(end) for end in inside]
        characters, tokens_before = characters + len(text), tokens_before + len(tokens)
    return tokens_of_ends


class _Turn:
    """One turn's prefixes, each decoded at most once; ends are asked for in ascending order."""

    def __init__(self, tokens: Sequence[int], text: str, decode: Callable[[Sequence[int]], str]) -> None:
        self.tokens = tokens
        self.text = text
        self.decode = decode
        self._decoded: dict[int, str] = {len(tokens) - 1: text}

    def token_of(self, end: int) -> int:
        """Index of the first token after which `text[:end]` stands complete."""
        low, high = 0, len(self.tokens) - 1  # by bisection: high has it
        while low < high:
            middle = (low + high) // 2
            if self._has(middle, end):
                high = middle
            else:
                low = middle + 1
        # Some tokenizers take a character back while the bytes of a later one are incomplete (byte fallback decodes a
        # run of bytes as a whole), so an earlier prefix may have had it; only broken text lies between the two.
        look = high - 1
        while look >= 0 and (self._has(look, end) or self._prefix(look).endswith(BROKEN)):
            high = look if self._has(look, end) else high
            look -= 1
        # A character that stays broken is complete with the last token that does not change the text.
        while self.text[end - 1] == BROKEN and high + 1 < len(self.tokens) and self._adds_nothing(high + 1):
            high += 1
        return high

    def _has(self, index: int, end: int) -> bool:
        return self._prefix(index)[:end] == self.text[:end]

    def _adds_nothing(self, index: int) -> bool:
        return self._prefix(index) == self._prefix(index - 1) and self.decode(self.tokens[index : index + 1]) != ""

    def _prefix(self, index: int) -> str:
        if index not in self._decoded:
            self._decoded[index] = self.decode(self.tokens[: index + 1])
        return self._decoded[index]
