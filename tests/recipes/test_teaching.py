"""Exercise sheets by hand: what the solver finds, and what tries to game it."""

from __future__ import annotations

from typing import Any

import pytest
from recipe_modules import recipe

worksheet, variety = recipe("teaching", "worksheet"), recipe("teaching", "variety")
GOOD = "3 x 8 = 24\n9 x 4 = 36\n7 x 7 = 49"
PARTS = ("key", "counted", "in_range", "distinct", "level", "asked", "perfect")


def parts(text: str, *, count: int = 3, low: int = 3, high: int = 9, operation: str = "multiplication") -> list[float]:
    """Values of all parts, in the order of `PARTS`."""
    ends = ([low], [high])
    return [
        worksheet.key([text], [count])[0],
        worksheet.counted([text], [count])[0],
        worksheet.in_range([text], [count], *ends)[0],
        worksheet.distinct([text], [count])[0],
        worksheet.level([text], [count], *ends)[0],
        worksheet.asked([text], [count], [operation])[0],
        worksheet.perfect([text], [count], *ends, [operation])[0],
    ]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (GOOD, [1, 1, 1, 1, 1, 1, 1]),
        ("1. 3 x 8 = 24\n2) 9 × 4 = 36.\n\n3. 7*7=49\n", [1, 1, 1, 1, 1, 1, 1]),
        ("3 x 8 = 25\n9 x 4 = 36\n7 x 7 = 49", [2 / 3, 1, 1, 1, 1, 1, 0]),  # a wrong key
        ("3 + 8 = 11\n9 + 4 = 13\n7 + 7 = 14", [1, 1, 1, 1, 1, 0, 0]),  # additions in place of products
        ("3 x 8 = 24\n9 x 4 = 36\n7 + 7 = 14", [1, 1, 1, 1, 1, 2 / 3, 0]),
        ("3 x 8 = 24\n8 x 3 = 24\n3 x 8 = 24", [1, 1, 1, 1 / 3, 1, 1, 0]),  # the same problem again
        ("3 x 3 = 9\n3 x 4 = 12\n4 x 4 = 16", [1, 1, 1, 1, 0, 1, 0]),  # the easiest numbers alone
        ("1 x 8 = 8\n9 x 10 = 90\n7 x 7 = 49", [1, 1, 1 / 3, 1, 1, 1, 0]),  # out of range
        ("3 x 8 = 24", [1 / 3, 1 / 3, 1 / 3, 1 / 3, 2 / 3, 1 / 3, 0]),  # one line for three
        (GOOD + "\n5 x 6 = 30", [1, 2 / 3, 1, 1, 1, 1, 0]),  # one line too many
        ("Here you are:\n" + GOOD, [3 / 4, 2 / 3, 3 / 4, 3 / 4, 1, 3 / 4, 0]),  # words are lines that are no problems
        ("3 x 8 = 24, 9 x 4 = 36, 7 x 7 = 49", [0, 1 / 3, 0, 0, 0, 0, 0]),
        ("3 x 8 = 24 = 24\n9 x 4 = ?\n7 x 7 =", [0, 1, 0, 0, 0, 0, 0]),
        ("3 x 8 x 1 = 24\n= 24\n24", [0, 1, 0, 0, 0, 0, 0]),
        ("9999999 x 1 = 9999999", [0, 1 / 3, 0, 0, 0, 0, 0]),
        ("", [0, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_the_parts_of_a_sheet(text: str, values: list[float]) -> None:
    assert dict(zip(PARTS, parts(text), strict=True)) == pytest.approx(dict(zip(PARTS, values, strict=True)))


def test_nothing_is_taken_from_a_smaller_number() -> None:
    sheet: dict[str, Any] = {"low": 1, "high": 9, "operation": "subtraction"}
    assert parts("8 - 3 = 5\n9 - 9 = 0\n7 − 2 = 5", **sheet)[-1] == 1
    key, _, in_range, *_ = parts("3 - 8 = -5\n9 - 9 = 0\n7 - 2 = 5", **sheet)
    assert (key, in_range) == (1, pytest.approx(2 / 3))
    assert parts("8 - 3 = 5\n3 - 8 = -5\n7 - 2 = 5", **sheet)[3] == 1  # which is another problem


def test_ranges_of_held_out_sheets_are_of_no_training_sheet() -> None:
    train, heldout = list(worksheet.rows("train", 84)), list(worksheet.rows("heldout", 60))
    ranges = [{(row["operation"], row["low"], row["high"]) for row in rows} for rows in (train, heldout)]
    assert not ranges[0] & ranges[1]
    assert len({row["prompt"][-1]["content"] for row in train}) == 84
    assert {row["operation"] for row in heldout} == set(worksheet.SIGNS)
    assert list(worksheet.rows("train", 9)) == train[:9]
    for operation, (words, text) in worksheet.EXAMPLES.items():
        low, high = (int(word) for word in words.split()[-3::2])
        assert (operation, low, high) not in ranges[0] | ranges[1]
        assert parts(text, low=low, high=high, operation=operation)[-1] == 1


def test_every_sheet_that_is_asked_for_can_be_written() -> None:
    for row in [*worksheet.rows("train", 84), *worksheet.rows("heldout", 60)]:
        assert parts(row["answer"], **{key: row[key] for key in ("count", "low", "high", "operation")})[-1] == 1


def test_bad_params_are_named() -> None:
    with pytest.raises(ValueError, match="expected train or heldout"):
        list(worksheet.rows("test"))
    with pytest.raises(ValueError, match="there are fewer sheets in heldout"):
        list(worksheet.rows("heldout", 500))


def test_sheets_that_are_all_the_same_have_few_different_problems() -> None:
    assert variety.variety([GOOD, GOOD, "1. 8 x 3 = 24\n2. 3 + 8 = 12"]) == "3 sheets, 8 problems, 4 different ones"
