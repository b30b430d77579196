"""Families of numbers: running sums, columns with a carry, products by parts, legs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from coterie.traces.family import Family, Lines, Problem, last_number

LEGS = {"birds": 2, "humans": 2, "chickens": 2, "cats": 4, "dogs": 4, "cows": 4, "bees": 6, "ants": 6, "spiders": 8}
PLACES = ("ones", "tens", "hundreds", "thousands", "ten thousands", "hundred thousands")


def sum_of_parts(parts: Sequence[str], lines: Lines) -> str | None:
    """The step after `lines`: first each part's own line, then the running sum of what these say."""
    place = len(lines)
    if place < len(parts):
        return parts[place]
    if place >= 2 * len(parts) - 1:
        return None
    behind = place - len(parts) + 1
    left = last_number(lines[0] if behind == 1 else lines[-1])
    right = last_number(lines[behind])
    return None if left is None or right is None else f"{left} + {right} = {left + right}"


# Sums of several terms, one after the other


def _make_sum(draw: random.Random, difficulty: int) -> dict[str, Any]:
    return {"terms": [draw.randint(1, 9) for _ in range(difficulty)]}


def _follow_sum(problem: Problem, lines: Lines) -> str | None:
    terms, place = problem["terms"], len(lines) + 1
    left = last_number(lines[-1]) if lines else terms[0]
    if place >= len(terms) or left is None:
        return None
    return f"{left} + {terms[place]} = {left + terms[place]}"


# Two numbers in columns


def _make_column(draw: random.Random, difficulty: int) -> dict[str, Any]:
    low, high = 10 ** (difficulty - 1), 10**difficulty - 1
    return {"terms": [draw.randint(low, high), draw.randint(low, high)]}


def _digit(number: int, place: int) -> int:
    return number // 10**place % 10


def _follow_column(problem: Problem, lines: Lines) -> str | None:
    (first, second), place = problem["terms"], len(lines)
    digits = max(len(str(first)), len(str(second)))
    if place > digits:
        return None
    carry = last_number(lines[-1]) if lines else 0
    if carry is None or carry > 9:
        return None
    if place == digits:
        written = [_written(line) for line in reversed(lines)]
        return None if None in written else f"read: {carry or ''}{''.join(str(x) for x in written)}"
    left, right = _digit(first, place), _digit(second, place)
    total = left + right + carry
    return f"{PLACES[place]}: {left} + {right} + {carry} = {total}, write {total % 10}, carry {total // 10}"


def _written(line: str) -> int | None:
    number = last_number(line.rpartition(", carry")[0])
    return number if number is not None and number <= 9 else None


# Products by parts


def _make_product(draw: random.Random, difficulty: int) -> dict[str, Any]:
    return {"factors": [draw.randint(11, 99), draw.randint(10 ** (difficulty - 1) + 1, 10**difficulty - 1)]}


def _parts_of_product(problem: Problem) -> list[str]:
    first, second = problem["factors"]
    digits = [int(digit) * 10**place for place, digit in enumerate(reversed(str(second)))]
    return [f"{first} × {part} = {first * part}" for part in reversed(digits) if part]


# Legs


def _make_legs(draw: random.Random, difficulty: int) -> dict[str, Any]:
    return {"animals": [[name, draw.randint(2, 9)] for name in draw.sample(sorted(LEGS), difficulty)]}


def _parts_of_legs(problem: Problem) -> list[str]:
    return [f"{name}: {number} × {LEGS[name]} = {number * LEGS[name]}" for name, number in problem["animals"]]


def _ask_legs(problem: Problem) -> str:
    *animals, last = (f"{number} {name}" for name, number in problem["animals"])
    return f"How many legs do {', '.join(animals)} and {last} have together?"


FAMILIES = (
    Family(
        name="sums", title="one-digit terms added one after the other", scale="terms", hardest=12,
        make=_make_sum, follow=_follow_sum,
        ask=lambda problem: f"What is {' + '.join(map(str, problem['terms']))}?",
        truth=lambda problem: str(sum(problem["terms"])),
    ),
    Family(
        name="carrying", title="two numbers added in columns, with the carry", scale="digits", hardest=6,
        make=_make_column, follow=_follow_column,
        ask=lambda problem: f"Add in columns: {problem['terms'][0]} + {problem['terms'][1]}.",
        truth=lambda problem: str(sum(problem["terms"])),
    ),
    Family(
        name="products", title="products by the parts of the second factor", scale="digits of the second factor",
        hardest=4, make=_make_product,
        follow=lambda problem, lines: sum_of_parts(_parts_of_product(problem), lines),
        ask=lambda problem: f"What is {problem['factors'][0]} × {problem['factors'][1]}?",
        truth=lambda problem: str(problem["factors"][0] * problem["factors"][1]),
    ),
    Family(
        name="legs", title="legs of animals", scale="kinds of animals", hardest=6, make=_make_legs, ask=_ask_legs,
        follow=lambda problem, lines: sum_of_parts(_parts_of_legs(problem), lines),
        truth=lambda problem: str(sum(LEGS[name] * number for name, number in problem["animals"])),
    ),
)  # fmt: skip
