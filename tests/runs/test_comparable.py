"""Which settings keep two runs' held-out results from being compared."""

from __future__ import annotations

from typing import Any

from coterie.runs.inspect import differing
from coterie.types import PASS, REWARD

NUMBER, LAYOUT = {"name": "number", "weight": 1.0}, {"name": "format", "weight": 0.2}


def config(*parts: dict[str, Any], **sections: Any) -> dict[str, Any]:
    return {"rewards": {"functions": list(parts)}, **sections}


def test_pass_at_1_is_judged_by_the_evaluated_part_alone() -> None:
    assert differing(config(NUMBER), config(NUMBER, LAYOUT), PASS) == []
    assert differing(config(NUMBER), config(NUMBER, LAYOUT), REWARD) == ["rewards.functions"]
    assert differing(config(NUMBER), config(LAYOUT, NUMBER), PASS) == ["rewards.functions"]
    assert differing(config(NUMBER), config({**NUMBER, "params": {"tolerance": 1}}), PASS) == ["rewards.functions"]


def test_prompts_and_evaluation_settings_have_to_agree() -> None:
    first = config(NUMBER, data={"heldout": [{"path": "a"}]}, eval={"temperature": 1.0, "samples": 4})
    second = config(NUMBER, data={"heldout": [{"path": "b"}]}, eval={"temperature": 0.5, "samples": 8})
    assert differing(first, first, PASS) == []
    assert differing(first, second, PASS) == ["data.heldout", "eval.temperature"]
