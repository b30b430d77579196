"""Answers as people write them: what each reward must say of a completion and a gold answer, both ways.

`answers.jsonl` holds a pair a line: its kind, what was said, the gold answer, the right reward, by which rewards it is
judged, and, where math-verify says otherwise of the same pair, why.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from coterie.rewards.builtin import exact, task
from coterie.rewards.number import number

PAIRS = [
    json.loads(line) for line in Path(__file__).with_name("answers.jsonl").read_text(encoding="utf-8").splitlines()
]
JUDGES: dict[str, list[Callable[..., Any]]] = {
    "number": [number, task],
    "text": [exact, task],
    "text without case": [task],
    "math": [],
}
with_math_verify = pytest.mark.skipif(find_spec("math_verify") is None, reason="needs math-verify")


def test_the_battery_asks_each_kind_in_both_directions() -> None:
    assert len(PAIRS) >= 300
    assert len({(pair["said"], pair["gold"]) for pair in PAIRS}) == len(PAIRS)
    kinds = {pair["kind"] for pair in PAIRS}
    assert all({0, 1} == {pair["right"] for pair in PAIRS if pair["kind"] == kind} for kind in kinds - {"percent"})


@pytest.mark.parametrize("kind", sorted({pair["kind"] for pair in PAIRS}))
def test_each_pair_gets_its_right_reward(kind: str) -> None:
    wrong = [
        (judge, pair)
        for pair in PAIRS
        for judge in JUDGES[pair["by"]]
        if pair["kind"] == kind and judge([pair["said"]], [pair["gold"]]) != [pair["right"]]
    ]
    assert wrong == []


@with_math_verify
def test_math_gives_each_pair_its_right_reward() -> None:
    from coterie.rewards.math import math

    pairs = [pair for pair in PAIRS if pair["by"] in ("number", "math")]
    values = math([pair["said"] for pair in pairs], [pair["gold"] for pair in pairs])
    assert [pair for pair, value in zip(pairs, values, strict=True) if value != pair["right"]] == []


@with_math_verify
def test_every_difference_from_math_verify_is_explained() -> None:
    """math-verify by itself, on the whole completion, as its own examples call it."""
    from math_verify import verify

    from coterie.rewards.math import _delimited, _parse

    unexplained = []
    for pair in PAIRS:
        if pair["by"] in ("number", "math") and "math_verify" not in pair:
            verdict = verify(_parse(_delimited(pair["gold"])), _parse(pair["said"]), timeout_seconds=None)
            unexplained += [] if float(verdict) == pair["right"] else [pair]
    assert unexplained == []
