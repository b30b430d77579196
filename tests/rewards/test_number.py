"""Numbers in all the ways that models write them."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.data.numerals import gold_number
from coterie.rewards.number import last_number, number, parse_number

WRITTEN = [
    ("5", 5),
    ("-5", -5),
    ("\u22125", -5),
    ("+7", 7),
    ("5.", 5),
    (".5", "1/2"),
    ("1,234.5", "2469/2"),
    ("1{,}234", 1234),
    ("1\\,234", 1234),
    ("12\u202f345", 12345),
    ("$1,200", 1200),
    ("\\$3.50", "7/2"),
    ("-$5", -5),
    ("$-5", -5),
    ("$5$", 5),
    ("\\(5\\)", 5),
    ("1/2", "1/2"),
    ("-1/2", "-1/2"),
    ("1 1/2", "3/2"),
    (r"\frac{1}{2}", "1/2"),
    (r"-\dfrac{1}{2}", "-1/2"),
    (r"1\frac12", "3/2"),
    (r"\frac{-3}{4}", "-3/4"),
    ("1e3", 1000),
    ("2.5E-1", "1/4"),
]
NO_NUMBERS = ["", "abc", "12 apples", "2\\pi", "\\sqrt3", "3/0", "1e999999999", "9" * 5000, "1,2", "1 2", "x2", "٣x"]


@pytest.mark.parametrize(("text", "value"), WRITTEN)
def test_parse(text, value):
    number = parse_number(text)
    assert number is not None
    assert (number.value, number.percent) == (Fraction(value), False)
    assert last_number(f"so it is {text}") == number


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_parse_refuses(text):
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10 - 5", None),  # a difference, not a number
        ("10-3", None),
        ("(2)-3", None),
        ("15 - 10 = 5", 5),
        ("x = -3", -3),
        ("I have 3 cats and 1,234 dogs.", 1234),
        ("1, 2", 2),
        ("1,234,56", 56),
        ("step 2: 7.0.", 7),
        ("a4", None),
        ("5kg", 5),
        ("\\times5", 5),
        ("no number", None),
    ],
)
def test_last(text, value):
    number = last_number(text)
    assert (number and number.value) == value


@pytest.mark.parametrize(
    ("completion", "gold", "lenient", "strict"),
    [
        ("<answer>42</answer>", "42", 1, 1),
        ("The answer is 42.", "42", 1, 0),
        ("<think>7</think> <answer>42</answer> or 43", "42", 1, 1),
        ("<think>42</think> <answer>7</answer>", "42", 0, 0),
        ("40 + 2 = 42\n#### 42", "42.0", 1, 1),
        ("\\boxed{\\frac{1}{2}}", "0.5", 1, 1),
        ("0.333333", "1/3", 1, 1),
        ("0.33", "1/3", 0, 0),
        ("1000001", "1000000", 0, 0),
        ("50%", "50", 1, 0),
        ("50%", "0.5", 1, 1),
        ("50%", "50 %", 1, 1),
        ("42 apples", "42", 1, 0),
        ("", "42", 0, 0),
        ("none", "42", 0, 0),
        ("0", "0.0", 1, 1),
        ("Paris", "Paris", None, None),
        ("42", None, None, None),
    ],
)
def test_number(completion, gold, lenient, strict):
    assert number([completion], [gold]) == [lenient]
    assert number([completion], [gold], strict=True) == [strict]


def test_tolerance_is_relative():
    assert number(["101", "102", "-99"], ["100", "100", "-100"], tolerance=0.01) == [1, 0, 1]


@given(value=st.integers(-(10**15), 10**15), places=st.integers(0, 6))
def test_any_decimal_survives_its_formatting(value, places):
    exact = Fraction(value, 10**places)
    for text in (f"{value}e-{places}", f"{value}/{10**places}", f"{exact.numerator:,}/{exact.denominator}"):
        number = parse_number(text)
        assert number is not None
        assert number.value == exact


@given(value=st.integers(-(10**12), 10**12), before=st.sampled_from(["", "= ", "so ", "$", "is: "]))
def test_any_integer_is_found_in_text(value, before):
    assert number([f"There are 3 ways, {before}{value:,}."], [str(value)]) == [1.0]


@given(st.text(alphabet="0123456789,.-/%$e \\{}frac\u2212x", max_size=60))
def test_never_raises(text):
    assert number([text, f"<answer>{text}</answer>"], ["1", "1"])
    parse_number(text)


@pytest.mark.parametrize(
    "text",
    [
        "1," * 20_000,
        "1,111" * 5_000,
        "9" * 50_000,
        "1/" * 20_000,
        "1e" * 20_000,
        "3万" * 2_000,
        "½" * 2_000,
        "1分の" * 2_000,
        "\\frac{" * 2_000,
        "\\text{" * 2_000,
        "#### a\n" * 2_000,
        "<think>" * 2_000,
        "1 or " * 2_000,
        "(1," * 2_000,
    ],
    ids=lambda text: text[:7],
)
def test_hostile_text_is_fast(text):
    started = time.monotonic()
    number([text], ["7"])
    parse_number(text)
    gold_number(text)
    assert time.monotonic() - started < 2
