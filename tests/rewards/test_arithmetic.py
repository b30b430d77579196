"""The arithmetic step reward: true claims, false claims, and what it must not judge."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.rewards.steps import arithmetic

TRUE = [
    "2 + 3 = 5", "2+3=5", "4 × 5 = 20", "4 * 5 = 20", "4 · 5 = 20", "3 x 4 = 12", "8 ÷ 2 = 4", "8 / 2 = 4", "5 − 2 = 3",
    "5 – 2 = 3", "1,234 + 1 = 1,235", "1,000,000 / 10 = 100,000", "0.1 + 0.2 = 0.3", ".5 + .5 = 1", "-3 + 4 = 1",
    "5 * -2 = -10", "2 + 3 * 4 = 14", "(2 + 3) * 4 = 20", "10 - (2 + 3) = 5", "2^3 = 8", "2**3 = 8", "2 + 3 == 5",
    "12 = 3 * 4", "1 + 1 = 2 = 4 / 2", "1/2 + 1/4 = 3/4", "10 / 3 = 3.33", "2 / 3 = 0.667", "- 3 + 4 = 7",
    "1. 3 + 4 = 7.",
    "2) 3 + 4 = 7", "Step 1: 3 + 4 = 7", "So -3 + 4 = 1", "$3 + $4 = $7", r"\(3 \times 4 = 12\)", r"$3 \cdot 4 = 12$",
    r"\frac{1}{2} + \frac{1}{4} = 3/4", "(3 + 4 = 7)", "**2 + 3 = 5**", "<<3+4=7>>", "<answer>3 + 4 = 7</answer>",
    "3 + 4 = 7 apples", "3 + 4 = 7, and 7 - 2 = 5.", "1{,}000 + 1 = 1{,}001", "3 + 4 = 7!", "１ + 1 = 2 and 1 + 1 = 2",
]  # fmt: skip
FALSE = [
    "2 + 3 = 6", "4 × 5 = 21", "1,234 + 1 = 1236", "0.1 + 0.2 = 0.30001", "10 / 8 = 1.3", "10 / 3 = 3.34", "10 / 3 = 3",
    "2 + 3 = 5 + 4 = 9", "3 + 4 = 7 and 7 + 1 = 9", "3 + 4 = -7", "2 + 3 * 4 = 20", "1 + 1 = 2 = 3",
]  # fmt: skip
UNJUDGED = [
    "", "no numbers", "5 = 5", "y = 5", "x + 3 + 4 = 10", "x - 5 + 3 = 10", "x-5+3 = 10", "2x + 3 = 7", "3 + 4 = 7x",
    "3 + 4 = 7 - x", "3 + 4 =", "3 + 4 => 7", "3 + 4 != 8", "2 + 3 ≈ 6", "7 / 2 = 3 remainder 1", "7 / 2 = 3 R1",
    "50 * 20% = 10", "20% of 50 + 5 = 15", "3,5 + 1 = 4,5", "1 / 0 = 5 + 1", "2(3 + 4) = 14", "f(2) + 3 = 5",
    "√9 + 1 = 4", "sqrt 9 + 1 = 4", "5! + 1 = 121", "3,000,000 + 2,000,000 = 5 million", "9^9^9 = 1", "9^65 = 1",
    "((3 + 4 = 7", "3 apples + 4 apples = 7 apples", "9" * 500 + " + 1 = 2", "(" * 5000 + "1 + 1 = 2",
    "9*" * 30_000 + "9 = 1", "a2 + 3 = 5",
]  # fmt: skip


@pytest.mark.parametrize("line", TRUE)
def test_true_claims(line: str) -> None:
    assert arithmetic([line]) == [[(len(line), 1.0)]]


@pytest.mark.parametrize("line", FALSE)
def test_false_claims(line: str) -> None:
    assert arithmetic([line]) == [[(len(line), 0.0)]]


@pytest.mark.parametrize("line", UNJUDGED, ids=lambda line: line[:20])
def test_what_is_no_claim_or_cannot_be_judged_is_no_step(line: str) -> None:
    assert arithmetic([line]) == [[]]


def test_each_line_with_a_claim_is_a_step_that_ends_with_its_last_visible_character() -> None:
    text = "First, 2 + 3 = 5.  \n\nthen\n  4 × 5 = 21\r\nso 1 + 1 = 2, 2 + 2 = 4"
    steps = arithmetic([text])[0]
    assert [(text[:end].rpartition("\n")[2], value) for end, value in steps] == [
        ("First, 2 + 3 = 5.", 1.0),
        ("  4 × 5 = 21", 0.0),
        ("so 1 + 1 = 2, 2 + 2 = 4", 1.0),
    ]


def test_exact_takes_no_rounded_result() -> None:
    assert arithmetic(["10 / 3 = 3.33", "10 / 4 = 2.5"], exact=True) == [[(13, 0.0)], [(12, 1.0)]]


@given(st.integers(-999, 99_999), st.sampled_from("+-*/"), st.integers(1, 9_999), st.integers(-3, 3))
def test_any_claim_is_judged_as_the_fractions_say(a: int, op: str, b: int, off: int) -> None:
    exact = {"+": Fraction(a + b), "-": Fraction(a - b), "*": Fraction(a * b), "/": Fraction(a, b)}[op] + off
    result = str(exact.numerator) if exact.denominator == 1 else f"{exact.numerator} / {exact.denominator}"
    ((_, value),) = arithmetic([f"{a} {op} {b:,} = {result}"])[0]
    assert value == float(off == 0)


@given(st.text(max_size=60) | st.text("0123456789+-*/=^(). x,%$\\\n", max_size=60))
def test_any_text_gives_steps_within_it(text: str) -> None:
    ends = [end for end, _ in arithmetic([text])[0]]
    assert ends == sorted(set(ends))
    assert all(1 <= end <= len(text) for end in ends)
