"""Stop rules on series made by hand: when they fire, and which weights they still call good."""

from __future__ import annotations

from typing import Any

import pytest
from records_by_hand import series

from coterie.config.stop import KINDS, StopRule, StopRuleConfig
from coterie.train.stop_rules import decide, decide_all

FIRES: dict[str, list[float]] = {
    "entropy_below": [0.5] + [0.099] * 5,
    "kl_above": [0.1] + [1.01] * 3,
    "kl_step_above": [0.01] + [0.051] * 3,
    "reward_drop": [0.5] * 5 + [0.25] * 14,
    "repetition_above": [0.1] + [0.51] * 5,
    "truncated_above": [0.1] + [0.51] * 10,
    "mismatch_above": [0.001] + [0.011] * 5,
    "grad_spike": [1.0] * 9 + [10.1] * 3,
    "loss_explodes": [1.0] * 5 + [4.0] * 3,
    "non_finite": [0, 1],
}


@pytest.mark.parametrize("name", FIRES)
def test_it_fires_when_patience_is_out_and_not_a_step_before(name: str) -> None:
    rule = StopRule.of(name)
    made = series(rule.metric, FIRES[name])
    assert decide(rule, made, len(made)).fired
    assert not decide(rule, made, len(made) - 1).fired
    assert decide(rule, made, len(made)).line().startswith(f"stop rule {name}: ")


def test_at_the_threshold_itself_nothing_is_bad() -> None:
    for name, value in (("entropy_below", 0.1), ("kl_above", 1.0), ("repetition_above", 0.5)):
        rule = StopRule.of(name)
        assert decide(rule, series(rule.metric, [value] * 50), 50).bad == 0


def test_a_good_step_ends_a_bad_stretch() -> None:
    rule = StopRule.of("above", metric="length/mean", threshold=10, patience=3)
    assert not decide(rule, series("length/mean", [11, 11, 9, 11, 11]), 5).fired
    assert decide(rule, series("length/mean", [11, 11, 9, 11, 11, 11]), 6).fired


def test_a_step_without_the_metric_neither_ends_nor_adds() -> None:
    rule = StopRule.of("above", metric="x", threshold=10, patience=3)
    assert decide(rule, series("x", [11, 11]), 3).bad == 2
    assert decide(rule, series("x", []), 3).bad == 0


def test_the_sampler_judges_the_weights_before_its_step() -> None:
    sampled = StopRule.of("below", metric="entropy", threshold=0.1, patience=2)
    # Steps 4 and 5 are bad: the weights after step 3 sampled step 4, so those after step 2 are the last good ones.
    assert decide(sampled, series("entropy", [1, 1, 1, 0, 0]), 5).good_through == 2
    assert decide(sampled, series("entropy", [1, 1, 1, 1, 1]), 5).good_through == 4
    updated = StopRule.of("kl_step_above", patience=2)
    assert decide(updated, series("kl/old", [0, 0, 0, 1, 1]), 5).good_through == 3
    assert decide(updated, series("kl/old", [0, 0, 0, 0, 0]), 5).good_through == 5


def test_the_reward_is_compared_with_its_best_running_mean() -> None:
    rule = StopRule.of("reward_drop", threshold=0.2, patience=1)
    noisy = [0.5, 0.9, 0.1, 0.6, 0.4] * 4
    assert not any(decide(rule, series("reward/mean", noisy), step).fired for step in range(1, 21))
    assert decide(rule, series("reward/mean", [*noisy, 0, 0, 0]), 23).fired


def test_rules_are_judged_in_their_order_and_a_missing_series_is_silent() -> None:
    rules = [StopRule.of("kl_above"), StopRule.of("non_finite")]
    verdicts = decide_all(rules, {"update/nonfinite": series("update/nonfinite", [1])}, 1)
    assert [verdict.fired for verdict in verdicts] == [False, True]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "nope"}, "does not exist"),
        ({"name": "above", "threshold": 1.0}, "needs a metric"),
        ({"name": "below", "metric": "x"}, "needs a threshold"),
        ({"name": "entropy_below", "metric": "x"}, "reads entropy"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StopRule.of(**settings)
    with pytest.raises(ValueError, match=message):
        StopRuleConfig.model_validate(settings)


def test_every_rule_of_the_table_is_a_setting() -> None:
    assert set(KINDS) == set(FIRES) | {"above", "below"}
    for name in FIRES:
        assert StopRuleConfig(name=name, threshold=0.5, patience=2).metric == ""
