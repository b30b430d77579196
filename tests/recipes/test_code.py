"""Functions to write: every reference passes, every cheap trick fails, and HumanEval's own solutions pass its tests."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from recipe_modules import recipe

from coterie.data import assets, wheels
from coterie.rewards.programs import code

functions, further = recipe("code", "functions"), recipe("code", "further")
composed = recipe("code", "composed")
two_steps = cache(lambda split: list(composed.rows(split)))
TRAIN, HELD_OUT = list(functions.rows("train")), list(functions.rows("heldout"))
SUM_EVEN = next(row for row in [*TRAIN, *HELD_OUT] if row["function"] == "sum_even")
TIER = "unsafe_rlimits"  # for programs of these tests alone; it needs nothing that may be missing


def solved(row: dict[str, Any], text: str) -> float:
    (value,) = functions.solved([text], [row["tests"]], [row["setup"]], tier=TIER)
    return value


@pytest.mark.parametrize(
    ("text", "value", "compiles"),
    [
        ("```python\ndef sum_even(numbers):\n    return sum(x for x in numbers if x % 2 == 0)\n```", 1, 1),
        ("    return sum(x for x in numbers if not x % 2)\n", 1, 0),  # goes on from the head; no program by itself
        ("def sum_even(numbers):\n    return sum(numbers)", None, 1),
        ("def sum_even(numbers):\n    return 0", 0, 0),  # names no argument
        ("def sum_even(numbers):\n    numbers\n    return 0", 0, 1),
        ('def sum_even(numbers):\n    """Return the sum."""', 0, 0),
        ("def sum_even(numbers):\n    print(170)", 0, 0),
        ("def sum_odd(numbers):\n    return sum(x for x in numbers if x % 2 == 0)", 0, 0),
        ("def sum_even(numbers):\n    while numbers: pass", 0, 1),
        ("class Same(int):\n    def __eq__(self, other): return True\ndef sum_even(numbers):\n    return Same()", 0, 0),
        ("import os\ndef sum_even(numbers):\n    os._exit(0)", 0, 0),
        ("I cannot do that.", 0, 0),
        ("", 0, 0),
    ],
)
def test_programs_that_are_right_wrong_or_cheat(text: str, value: float | None, compiles: float) -> None:
    earned = solved(SUM_EVEN, text)
    assert earned == value if value is not None else 0 <= earned < 0.4
    assert functions.compiles([text], ["sum_even"]) == [compiles]


def test_every_reference_passes_and_no_constant_earns_more_than_half_of_the_tests() -> None:
    rows = [*TRAIN, *HELD_OUT]
    assert len(TRAIN) == 65
    assert len(HELD_OUT) == 33
    for row in rows:
        scope: dict[str, Any] = {}
        exec(row["answer"], scope)
        results = [repr(eval(test["call"], scope)) for test in row["tests"]]
        assert results == [test["expected"] for test in row["tests"]]
        assert max(Counter(results).values()) <= functions.TESTS // 2
    assert all(value == 1 for value in (solved(row, row["answer"]) for row in rows[::20]))


def test_held_out_functions_are_new_pairs_of_parts_that_training_has() -> None:
    def pairs(rows: list[dict[str, Any]]) -> set[tuple[str, str]]:
        return {(row["function"], row["setup"].split("(")[1].split(")")[0]) for row in rows}

    def parts(rows: list[dict[str, Any]]) -> set[tuple[str, str]]:
        return {(part, family) for name, family in pairs(rows) for part in name.split("_", 1)}

    assert not pairs(TRAIN) & pairs(HELD_OUT)
    assert parts(HELD_OUT) <= parts(TRAIN)


def test_the_weak_test_can_be_gamed_and_the_hidden_ones_cannot() -> None:
    text = "def sum_even(numbers):\n    return len(numbers)"
    assert functions.weak([text], [SUM_EVEN["weak"]], [SUM_EVEN["setup"]], tier=TIER) == [1]
    assert solved(SUM_EVEN, text) < 0.4


def test_further_tests_refuse_what_the_hidden_ones_let_through() -> None:
    row = next(row for row in HELD_OUT if row["function"] == "largest_large")
    lucky = "def largest_large(numbers):\n    return max(numbers) if numbers else 0"
    assert solved(row, lucky) == 1  # every hidden input has a number above 10
    tests, setup = [further.further(row)] * 2, [row["setup"]] * 2
    assert code([lucky, row["answer"]], tests, setup, tier=TIER) == [0, 1]


@pytest.mark.parametrize("split", composed.SPLITS)
def test_functions_of_two_steps_pass_their_tests_and_no_constant_passes_more_than_half(split: str) -> None:
    rows = two_steps(split)
    assert len(rows) == composed.SPLITS[split]
    for row in rows:
        scope: dict[str, Any] = {}
        exec(row["answer"], scope)
        results = [repr(eval(test["call"], scope)) for test in row["tests"]]
        assert results == [test["expected"] for test in row["tests"]]
        assert len(results) == composed.TESTS
        assert max(Counter(results).values()) <= composed.TESTS // 2
        shown = row["setup"].split(">>> ")[1].split("\n")[0]
        assert shown not in [test["call"] for test in row["tests"]]
    row = rows[0]
    unwritten = f"def {row['function']}({row['family']}):\n    return {row['family']}"
    columns = ([row["tests"]] * 2, [row["setup"]] * 2)
    values = composed.solved([row["answer"], unwritten], *columns, tier=TIER, seconds=5.0)
    assert values[0] == 1
    assert values[1] < 0.4


def test_held_out_functions_of_two_steps_are_new_pairs_or_have_a_new_step() -> None:
    def names(split: str) -> set[str]:
        return {row["function"] for row in two_steps(split)}

    assert not names("train") & (names("combined") | names("new"))
    new = {step.name for parts in composed.FAMILIES.values() for steps in parts for step in steps if step.is_new}
    assert new == {"falling", "fives", "reversed", "weighted", "later", "doubled"}
    numbers = [row["function"] for row in two_steps("train") if row["family"] == "numbers"]
    unseen = ("falling", "fives", "weighted", "later", "doubled")  # a word's `reversed` is a trained step
    assert not any(step in name for name in names("train") | names("combined") for step in unseen)
    assert not any("reversed" in name for name in numbers)
    with pytest.raises(ValueError, match="split = 'all'; expected train, combined, new"):
        next(composed.rows("all"))


def test_a_row_of_humaneval_runs_its_own_check() -> None:
    row = wheels.from_humaneval(
        {
            "task_id": "HumanEval/0",
            "prompt": 'def f(x):\n    """Twice x."""\n',
            "entry_point": "f",
            "canonical_solution": "    return 2 * x\n",
            "test": "def check(candidate):\n    for x in range(5):\n        assert candidate(x) == x + x\n",
        }
    )
    assert row["question"].endswith('```python\ndef f(x):\n    """Twice x."""\n```')
    programs = [row["answer"], "    return x + x", "```python\ndef f(x):\n    return x ** 2\n```", "def check(f): pass"]
    values = code(programs, [row["tests"]] * 4, [row["setup"]] * 4, tier=TIER)
    assert values == [1, 1, 0, 0]


@pytest.mark.slow
@pytest.mark.skipif(assets.locate("humaneval") is None, reason="the asset humaneval has not been fetched")
def test_all_solutions_of_humaneval_pass() -> None:
    path = assets.locate("humaneval")
    assert isinstance(path, Path)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 164
    columns = [row["tests"] for row in rows], [row["setup"] for row in rows]
    assert code([row["answer"] for row in rows], *columns, tier=TIER, seconds=10.0) == [1] * 164
