"""Families of worked solutions: right answers, checkers on right and corrupted steps, splits that do not meet."""

from __future__ import annotations

import random
import re

import pytest

from coterie.config.data import ColumnNames
from coterie.config.imitation import SftConfig
from coterie.data.conversations import read_conversation
from coterie.errors import DataError
from coterie.rewards import registry
from coterie.traces.family import Family, last_number
from coterie.traces.rows import FAMILIES, NAMES, is_held_out, rows
from coterie.traces.trace_rewards import attempt, faithful, trace, unsound, valid_steps

EVERY = pytest.mark.parametrize("name", FAMILIES)
LAYOUT = "<think>\n{steps}\n</think>\n<answer>{answer}</answer>"


def completion(steps: list[str], answer: str) -> str:
    return LAYOUT.format(steps="\n".join(steps), answer=answer)


@EVERY
def test_worked_solutions_end_in_the_gold_answer(name: str) -> None:
    family = FAMILIES[name]
    for row in rows(name, 60, difficulty=(2, min(6, family.hardest)), seed=3):
        assert family.conclude(row["problem"], row["steps"]) == row["answer"], row
        assert family.judge(row["problem"], row["steps"]) == [1.0] * len(row["steps"])
        assert family.follow(row["problem"], row["steps"]) is None
        assert family.judge(row["problem"], [*row["steps"], "so"])[-1] == 0.0  # nothing follows


def corrupted(line: str, draw: random.Random) -> str:
    """The line with another result, or, where it has no number, with its words the other way round."""
    numbers = list(re.finditer(r"\d+", line))
    if not numbers:
        words = line.split()
        return " ".join(reversed(words)) if len(words) > 1 else f"{line}s"
    last = numbers[-1]
    wrong = int(last[0]) + draw.choice([1, 2, 10])
    return f"{line[: last.start()]}{wrong}{line[last.end() :]}"


@EVERY
def test_a_wrong_step_is_told_and_those_behind_it_are_judged_from_it(name: str) -> None:
    family, draw = FAMILIES[name], random.Random(0)
    for row in rows(name, 40, difficulty=(3, 4), seed=4):
        steps, place = list(row["steps"]), draw.randrange(len(row["steps"]))
        steps[place] = corrupted(steps[place], draw)
        verdicts = family.judge(row["problem"], steps)
        assert verdicts[:place] == [1.0] * place
        assert verdicts[place] == 0.0
        left_out = row["steps"][:place] + row["steps"][place + 1 :]
        assert family.judge(row["problem"], left_out) != [1.0] * len(row["steps"])
        assert set(family.judge(row["problem"], ["", "=", "∞ 7", "9" * 40])) == {0.0}


def test_an_error_counts_once() -> None:
    family, problem = FAMILIES["sums"], {"terms": [3, 5, 2, 4]}
    assert family.judge(problem, ["3 + 5 = 9", "9 + 2 = 11", "11 + 4 = 15"]) == [0.0, 1.0, 1.0]
    assert family.judge(problem, ["3 + 5 = 9", "8 + 2 = 10", "10 + 4 = 14"]) == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("name", "problem", "steps"),
    [
        ("carrying", {"terms": [58, 67]}, ["ones: 8 + 7 + 0 = 15, write 5, carry 1", "tens: 5 + 6 + 1 = 12, write 2, carry 1", "read: 125"]),  # noqa: E501
        ("products", {"factors": [23, 14]}, ["23 × 10 = 230", "23 × 4 = 92", "230 + 92 = 322"]),
        ("legs", {"animals": [["dogs", 2], ["birds", 3]]}, ["dogs: 2 × 4 = 8", "birds: 3 × 2 = 6", "8 + 6 = 14"]),
        ("sorting", {"words": ["river", "apple", "lemon"]}, ["river", "apple river", "apple lemon river"]),
        ("counting", {"word": "door", "list": ["door", "stone", "door"]}, ["door 1", "stone 1", "door 2"]),
        ("weekdays", {"day": "Friday", "after": 3}, ["1 Saturday", "2 Sunday", "3 Monday"]),
        ("dates", {"month": "December", "day": 20, "after": 30}, ["December 20 + 30 = December 50", "December 50 - 31 = January 19"]),  # noqa: E501
        ("durations", {"times": [[2, 45], [1, 30]]}, ["minutes: 45 + 30 = 75", "75 min = 1 h 15 min", "hours: 2 + 1 + 1 = 4", "4 h 15 min"]),  # noqa: E501
    ],
)  # fmt: skip
def test_by_hand(name: str, problem: dict[str, object], steps: list[str]) -> None:
    assert FAMILIES[name].solve(problem) == steps


@pytest.mark.parametrize("name", NAMES)
def test_splits_and_their_streams_never_meet(name: str) -> None:
    if name == "gsm_symbolic":
        pytest.importorskip("reasoning_gym")
    count = 8 if name == "gsm_symbolic" else 60
    wide = None if name == "gsm_symbolic" else (2, min(4, FAMILIES[name].hardest))
    heldout = {row["prompt"] for row in rows(name, count // 4, wide, seed=0, split="heldout")}
    for seed in (0, 1):
        trained = [row["prompt"] for row in rows(name, count, wide, seed=seed)]
        assert not heldout & set(trained)
        assert len(set(trained)) == count
    assert all(map(is_held_out, heldout))
    assert rows(name, 5, wide, seed=1) == rows(name, 6, wide, seed=1)[:5]


def test_word_problems_with_their_own_solutions() -> None:
    pytest.importorskip("reasoning_gym")
    table = rows("gsm_symbolic", 8)
    text = [completion(row["steps"], row["answer"]) for row in table]
    assert faithful(text) == [1.0] * 8
    assert all(value == 1.0 for steps in trace(text) for _, value in steps)
    assert sum(map(len, trace(text))) > 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": "sum"}, "there is no family 'sum'; expected one of sums, carrying"),
        ({"family": "sums", "difficulty": 1}, "difficulty = 1 of sums: expected a number of terms from 2 to 12"),
        ({"family": "sums", "difficulty": (4, 3)}, "or the least and the most"),
        ({"family": "sums", "split": "test"}, "expected train or heldout"),
        ({"family": "sums", "difficulty": 2, "count": 500}, "sums has 6. different problems of difficulty 2 in train"),
    ],
)
def test_what_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows(**arguments)  # ty: ignore[invalid-argument-type]


# Rewards


def test_rewards_of_right_wrong_and_unfaithful_solutions() -> None:
    problem = {"terms": [3, 5, 2]}
    texts = [
        completion(["3 + 5 = 8", "8 + 2 = 10"], "10"),
        completion(["3 + 5 = 9", "9 + 2 = 10"], "10"),  # two errors that cancel
        completion(["3 + 5 = 8", "8 + 2 = 11"], "10"),  # right, and not what the last step says
        completion(["3 + 5 = 9", "9 + 2 = 11"], "11"),
        "<answer>10</answer>",
        "3 + 5 = 8\n8 + 2 = 10\n10",
    ]
    columns = {"family": ["sums"] * 6, "problem": [problem] * 6}
    assert valid_steps(texts, **columns) == [1.0, 0.0, 0.5, 0.5, 0.0, 1.0]
    assert faithful(texts, **columns) == [1.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    assert unsound(texts, ["10"] * 6, **columns) == [0.0, 1.0, 1.0, None, 1.0, 0.0]
    steps = trace(texts, **columns)[0]
    assert [(texts[0][:end].splitlines()[-1], value) for end, value in steps] == [
        ("3 + 5 = 8", 1.0),
        ("8 + 2 = 10", 1.0),
    ]
    assert [value for _, value in trace(texts)[2]] == [1.0, 0.0]  # without a family: claims of arithmetic
    assert attempt("so\n", "sums", None).family is None


def test_they_are_built_in() -> None:
    for name in ("valid_steps", "faithful", "unsound"):
        assert callable(registry.load(name, {}).function)
    assert registry.target("trace", steps=True) == "coterie.traces.trace_rewards:trace"


@EVERY
def test_rows_are_what_fine_tuning_reads(name: str) -> None:
    row = rows(name, 1)[0]
    talk = read_conversation(row, ColumnNames(), SftConfig(layout=LAYOUT))
    assert talk.messages[-1]["content"] == completion(row["steps"], row["answer"])
    assert talk.steps == tuple(row["steps"])


def test_last_number() -> None:
    assert last_number("9" * 19) is None
    assert isinstance(FAMILIES["sums"], Family)
