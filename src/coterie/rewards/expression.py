"""Exact values of written-out expressions: numbers, + - * / ^ and brackets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

MAX_POWER, MAX_BITS, MAX_DEPTH = 64, 4_000, 40
"""Bounds on what is calculated: 9^9^9 would fill the memory."""


@dataclass(frozen=True, slots=True)
class Value:
    """An exact number and how it came about."""

    exact: Fraction
    operations: int = 0
    """Two-sided signs that were calculated."""
    decimals: int = 0
    """Digits after the point, of a single number."""


@dataclass(frozen=True, slots=True)
class Item:
    """One sign of an expression."""

    kind: str
    """`number`, one of `+ - * / ^ ( ) =`, or anything else, which is in no expression."""
    value: Value | None = None


def evaluate(items: list[Item]) -> Value | None:
    """The value of a whole expression; None where it is not one, or too large."""
    parser = _Parser(items)
    try:
        value = parser.sum(0)
    except _NotJudgedError:
        return None
    return value if parser.place == len(items) else None


class _NotJudgedError(Exception):
    """Not an expression, or one that nobody should calculate."""


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
