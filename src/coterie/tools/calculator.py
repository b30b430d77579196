"""The tool `calculator`: exact arithmetic on fractions, without eval."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable
from fractions import Fraction

LONGEST = 500
"""Characters of an expression."""
LARGEST = 4096
"""Bits of a numerator or denominator."""
_WRITTEN = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "^": "**", "\u00a0": " "})
_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?!\d)")
_BINARY: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction | int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_FUNCTIONS: dict[str, Callable[..., Fraction | int]] = {"abs": abs, "min": min, "max": max, "round": round}


def calculator(expression: str) -> str:
    """Calculate an arithmetic expression exactly.

    Args:
        expression: numbers with + - * / // % ** and brackets, abs, min, max, round; e.g. (3 + 4) * 2.5
    """
    if len(expression) > LONGEST:
        raise ValueError(f"the expression has {len(expression)} characters, expected at most {LONGEST}")
    text = expression.translate(_WRITTEN).strip().removesuffix("=").strip()
    if not re.search(r"[A-Za-z]", text):
        text = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(f"{expression[:60]!r} is no arithmetic expression") from error
    return written(_value(tree.body, text))


def written(value: Fraction) -> str:
    """A whole number, an exact decimal, or a fraction with its value to ten digits.

    >>> written(Fraction(7)), written(Fraction(5, 4)), written(Fraction(1, 3))
    ('7', '1.25', '1/3 (about 0.3333333333)')
    """
    if value.denominator == 1:
        return str(value.numerator)
    rest, twos, fives = value.denominator, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    places = max(twos, fives)
    if rest == 1 and places <= 30:
        digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
        return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"
    return f"{value.numerator}/{value.denominator} (about {float(value):.10g})"


def _value(node: ast.expr, text: str) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        literal = ast.get_source_segment(text, node) or str(node.value)
        return _bounded(Fraction(literal.replace("_", "")))  # the digits as written: 0.1 is a tenth
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        value = _value(node.operand, text)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, text), _value(node.right, text)
        if isinstance(node.op, ast.Pow):
            return _power(left, right)
        if type(node.op) in _BINARY:
            if right == 0 and isinstance(node.op, ast.Div | ast.FloorDiv | ast.Mod):
                raise ValueError("division by zero")
            return _bounded(Fraction(_BINARY[type(node.op)](left, right)))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        function = _FUNCTIONS.get(node.func.id)
        arguments = [_value(argument, text) for argument in node.args]
        if function is not None and arguments:
            try:
                if function is round and len(arguments) == 2:
                    return _bounded(Fraction(round(arguments[0], _whole(arguments[1]))))
                return _bounded(Fraction(function(*arguments) if function in (abs, round) else function(arguments)))
            except TypeError as error:
                raise ValueError(f"{node.func.id} takes other arguments") from error
    raise ValueError(f"{(ast.get_source_segment(text, node) or text)[:60]!r} is no arithmetic")


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        root = _root(base) if exponent == Fraction(1, 2) else None
        if root is None:
            raise ValueError("an exponent is a whole number, or 0.5 of a square number")
        return root
    if base == 0 and exponent < 0:
        raise ValueError("division by zero")
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if size * abs(exponent) > LARGEST and abs(base) != 1:
        raise ValueError("the result is too large")
    return _bounded(base ** int(exponent))


def _root(base: Fraction) -> Fraction | None:
    if base < 0:
        return None
    root = Fraction(math.isqrt(base.numerator), math.isqrt(base.denominator))
    return root if root * root == base else None


def _whole(value: Fraction) -> int:
    if value.denominator != 1 or abs(value) > 30:
        raise ValueError("the places of round are a whole number up to 30")
    return int(value)


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > LARGEST:
        raise ValueError("the result is too large")
    return value
