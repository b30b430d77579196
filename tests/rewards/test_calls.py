"""Rewards for tool calls, and parts that gate."""

from __future__ import annotations

from typing import Any

import pytest

from coterie.config.rewards import RewardConfig, RewardsConfig, StepRewardConfig
from coterie.config.schema import EnvironmentConfig
from coterie.rewards.calls import call_cost, call_needed, call_useful, call_valid
from coterie.rewards.check import identity, sources
from coterie.rewards.pool import Scorer
from coterie.types import Prompt


def called(query: str, number: int = 0) -> dict[str, Any]:
    function = {"name": "search", "arguments": {"query": query}}
    return {"role": "assistant", "content": "", "tool_calls": [{"id": f"call_{number}_0", "function": function}]}


def shown(text: str, error: str | None = None, number: int = 0) -> dict[str, Any]:
    message = {"role": "tool", "content": text, "tool_call_id": f"call_{number}_0"}
    return message if error is None else message | {"error": error}


GOOD = [
    called("area of Andorra"),
    shown("The area of Andorra is 468 square kilometres."),
    {"role": "assistant", "content": "468"},
]
GUESS = [called("468 area"), shown("468 is nothing"), {"role": "assistant", "content": "468"}]
FAILED = [called("x"), shown("Error: 468", "raised"), {"role": "assistant", "content": "468"}]
BAD = [called("x"), shown("Error", "malformed"), called("y", 1), shown("nothing", None, 1)]
NONE = [{"role": "assistant", "content": "468"}]


def test_calls_are_judged_by_the_record() -> None:
    rows = [GOOD, GUESS, FAILED, BAD, NONE, None]
    texts = [""] * len(rows)
    assert call_valid(texts, rows) == [1.0, 1.0, 1.0, 0.5, 0.0, None]
    assert call_useful(texts, ["468"] * len(rows), rows) == [1.0, 0.0, 0.0, 0.0, 0.0, None]
    assert call_useful([""], [None], [GOOD]) == [None]
    assert call_cost(texts, rows, most=4) == [-0.25, -0.25, -0.25, -0.5, 0.0, None]
    assert call_cost([""], [BAD], free=1, most=2) == [-1.0]
    assert call_valid(["a", "b"]) == call_cost(["a", "b"]) == [None, None]
    assert call_useful(["a"], ["b"]) == [None]
    with pytest.raises(ValueError, match="expected free of at least 0 and below most"):
        call_cost([""], [GOOD], free=4)


def test_a_call_is_needed_that_brings_a_fact_for_the_first_time() -> None:
    first, second = "Gera lies in Germany.", "The capital of Germany is Berlin."
    hops = [called("Gera"), shown(first), called("capital of Germany", 1), shown(f"So: {second} Indeed.", None, 1)]
    again = [*hops, called("Gera", 2), shown(first, None, 2), called("x", 3), shown("Error", "timeout", 3)]
    told = [called(second), shown(second)]
    rows = [hops, again, told, NONE, NONE, hops, None]
    facts = [[first, second]] * 3 + [[first], [], [], [first]]
    assert call_needed([""] * 7, facts, rows) == [1.0, 0.5, 0.0, 0.0, 1.0, 0.0, None]
    assert call_needed(["", ""], [None, [first]], [hops, [*hops[:2], *hops[:2]]]) == [None, 0.5]


def test_workers_get_the_messages() -> None:
    parts = [RewardConfig(name="exact"), RewardConfig(name="call_useful"), RewardConfig(name="call_valid", weight=0.1)]
    prompt = Prompt(id="a", messages=({"role": "user", "content": "?"},), answer="468", task="t")
    with Scorer(RewardsConfig(functions=parts)) as scorer:
        (right, guess) = scorer.score([prompt] * 2, ["468", "468"], messages=[GOOD, NONE])  # ty: ignore[invalid-argument-type]
    assert right.reward == pytest.approx(2.1)
    assert dict(guess.parts) == {"exact": 1.0, "call_useful": 0.0, "call_valid": 0.0}


def share(completions: list[str]) -> list[float | None]:
    """What the completion says, as a gate or a penalty."""
    return [None if text == "none" else float(text) for text in completions]


def score(texts: list[str], *others: RewardConfig) -> list[Any]:
    prompt = Prompt(id="a", messages=({"role": "user", "content": "?"},), answer="0.5", task="t")
    parts = [RewardConfig(name="number", weight=2.0), *others]
    with Scorer(RewardsConfig(functions=parts)) as scorer:
        return list(scorer.score([prompt] * len(texts), texts))


def test_a_gate_multiplies_what_is_earned(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = RewardConfig(name="test_calls:share", gate=True)
    half, penal = score(["0.5", "0.25"], gate)
    assert (half.reward, penal.reward) == (1.0, 0.0)
    assert half.parts == {"number": 1.0, "share": 0.5}
    (beyond,) = score(["1.5"], gate)
    assert beyond.reward is None
    assert "the gate share = 1.5 lies outside 0 to 1" in beyond.error


def test_a_gate_leaves_penalties_and_rows_to_which_it_does_not_apply() -> None:
    penalty = RewardConfig(name="length", params={"maximum": 1, "cache": 1}, weight=0.5, label="long")
    closed = RewardConfig(name="format", params={"pattern": "never"}, gate=True)
    (value,) = score(["0.5"], penalty, closed)
    assert value.reward == -0.5
    absent = RewardConfig(name="call_valid", gate=True)
    assert score(["0.5"], absent)[0].reward == 2.0


def test_settings_of_gates() -> None:
    with pytest.raises(ValueError, match="every part"):
        RewardsConfig(functions=[RewardConfig(name="exact", gate=True)])
    with pytest.raises(ValueError, match="has no weight"):
        RewardsConfig(functions=[RewardConfig(name="exact"), RewardConfig(name="format", gate=True, weight=2)])
    with pytest.raises(ValueError, match="no step reward"):
        RewardsConfig(steps=[StepRewardConfig(name="arithmetic", gate=True)])
    plain = RewardsConfig(functions=[RewardConfig(name="exact"), RewardConfig(name="format", label="f")])
    gated = RewardsConfig(functions=[RewardConfig(name="exact"), RewardConfig(name="format", label="f", gate=True)])
    assert identity(plain) != identity(gated)
    # The settings of a run, in which every default is written, can be read again.
    assert RewardsConfig.model_validate(gated.model_dump()) == gated


def test_the_source_of_a_users_tool_belongs_to_the_identity() -> None:
    environment = EnvironmentConfig(name="tools", params={"tools": ["calculator", {"name": "test_calls:share"}]})
    assert sources(RewardsConfig(), environment)["test_calls:share"]
    assert identity(RewardsConfig(), environment) != identity(RewardsConfig())
