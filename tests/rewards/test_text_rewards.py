"""exact, format, length, and the answer extraction that they share with the tasks."""

from __future__ import annotations

import pytest

from coterie.data.answers import extract_answer, marked_answer
from coterie.rewards.builtin import exact, format, length

GOOD = "<think>2 + 2</think>\n<answer>4</answer>"


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (" 4 ", "4"),
        ("<answer>4</answer> no: <answer> 5\n</answer>", "5"),
        ("<answer> <answer>6</answer>", "6"),
        (r"\boxed{3} so \boxed{\frac{1}{2}}, and \boxed{9", r"\frac{1}{2}"),
        (r"\boxed {a\}b}", r"a\}b"),
        (r"<answer>$\boxed{7}$</answer>", "7"),
        ("2 + 2 = 4\n#### 4\n", "4"),
        ("#### 1. Add\n2 + 2\n#### 2. Check\nIt is 4", "#### 1. Add\n2 + 2\n#### 2. Check\nIt is 4"),
        ("<think>9", ""),
        ("9</think> 4", "4"),
        ("<think>9</think> 4 <think>or 5", "4"),
        ("<reasoning>9</reasoning>4", "4"),
        ("<think><answer>3</answer></think> 9", "9"),
        ("<answer>4", "<answer>4"),
        ("\\boxed{" * 20_000, "\\boxed{" * 20_000),
        ("", ""),
    ],
)
def test_extract(completion, answer):
    assert extract_answer(completion) == answer


def test_marked():
    assert marked_answer("4") is None
    assert marked_answer("<answer></answer>") == ""


def test_exact():
    assert exact(["Paris", " paris", "<answer>New \n York</answer>", "x"], ["Paris", "Paris", "New York", None]) == [
        1,
        0,
        1,
        None,
    ]
    assert exact(["straße"], ["STRASSE"], casefold=True) == [1]


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        (GOOD, 1),
        (f"\n{GOOD} ", 1),
        (f"{GOOD} bye", 0),
        ("<answer>4</answer>", 0),
        ("2 + 2</think><answer>4</answer>", 1),  # the template may have opened it
        ("<think>2 + 2", 0),
        (GOOD + GOOD, 0),
        ("<think><think></think><answer></answer>", 0),
        ("", 0),
    ],
)
def test_format(completion, value):
    assert format([completion]) == [value]


def test_a_thought_that_the_template_did_not_open_is_missing():
    assert format(["2 + 2</think><answer>4</answer>", GOOD], ["", "<think>"]) == [0, 1]


def test_format_with_a_pattern():
    assert format([" a\nb ", "ab c"], pattern="a.b") == [1, 0]
    with pytest.raises(ValueError, match="is no regular expression"):
        format(["a"], pattern="(")


def test_soft_overlong_punishment_of_dapo():
    assert length(["x" * n for n in (0, 80, 90, 100, 200)], maximum=100) == [0, 0, -0.5, -1, -1]
    assert length(["a b c", "a b c d"], unit="words", maximum=4, cache=2) == [-0.5, -1]
    assert length(["<think>\n" + "x" * 90], ["<think>\n"], maximum=100) == [-0.5]  # the model did not say that


def test_length_range():
    assert length(["x" * n for n in (0, 5, 10, 20, 30, 40, 90)], low=10, high=20) == [0, 0.5, 1, 1, 0.5, 0, 0]
    assert length(["", "x"], low=0) == [1, 1]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "either maximum"),
        ({"maximum": 3, "low": 1}, "either maximum"),
        ({"cache": 3, "low": 1}, "either maximum"),
        ({"maximum": 3, "cache": 4}, "cache = 4"),
        ({"low": 5, "high": 3}, "low = 5 and high = 3"),
        ({"maximum": 3, "unit": "tokens"}, "'characters' or 'words'"),
    ],
)
def test_length_refuses(params, message):
    with pytest.raises(ValueError, match=message):
        length(["a"], **params)
