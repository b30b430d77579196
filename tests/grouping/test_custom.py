"""The user's own baseline and the user's own scale: what they may read, and that neither sees its own rollout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coterie.grouping.arrays import Rollouts
from coterie.grouping.custom import View
from coterie.grouping.estimator import self_influence
from coterie.grouping.features import MOST_KEYS, Column, FeatureMap
from coterie.grouping.model import GroupAwareBaseline
from coterie.grouping.presets import Settings
from grouping_worlds import COLUMNS, features, rollouts, settings_of, step

TEXTS = ["1 + 1?", "2 + 2?", "3 + 3?", "4 + 4?"]


def with_custom(function: Callable[[View], Any], **settings: Any) -> GroupAwareBaseline:
    return GroupAwareBaseline(COLUMNS, preset="mine:baseline", settings=settings_of(**settings), custom=function)


def batch(rewards: list[float], prompts: str, time: float = 0.0) -> Rollouts:
    return Rollouts(
        prompts=tuple(prompts),
        rewards=np.array(rewards),
        features=np.zeros((len(rewards), 4)),
        time=time,
        weights=np.ones(len(rewards)),
    )


def others(view: View) -> np.ndarray:
    """RLOO by hand; a lone rollout gets what is known."""
    out = np.full(view.rewards.size, view.history_mean)
    for rows in view.groups:
        for row in rows:
            rest = [other for other in rows if other != row]
            if rest:
                out[row] = view.rewards[rest].mean()
    return out


def own_mean(view: View) -> np.ndarray:
    return np.array(
        [view.rewards[rows].mean() for row in range(view.rewards.size) for rows in view.groups if row in rows]
    )


def test_a_baseline_of_ones_own_works_like_a_shipped_one():
    rng, table = np.random.default_rng(0), features(20)
    mine, rloo = with_custom(others), GroupAwareBaseline(COLUMNS, preset="rloo", settings=settings_of(weights="none"))
    mine.settings = rloo.settings
    for time in range(4):
        step_rollouts = step(rng, table, prompts=6, size=3, time=float(time))
        np.testing.assert_allclose(mine.advantages(step_rollouts), rloo.advantages(step_rollouts), atol=1e-12)
        assert mine.observe(step_rollouts).errors["own"] == pytest.approx(rloo.observe(step_rollouts).errors["rloo"])


def test_it_sees_the_step_and_the_past_in_reward_units_and_changes_nothing():
    views: list[View] = []
    baseline = with_custom(
        lambda view: [views.append(view) or view.history_mean] * view.rewards.size, reward_range=[-1.0, 3.0]
    )
    baseline.observe(batch([3.0, -1.0, 1.0, 3.0], "aabb"))
    baseline.observe(batch([2.0, np.nan, 0.0], "bca", time=1.0))
    first, second = views[0], views[-1]
    assert (first.history, first.history_mean) == ((), 1.0)
    np.testing.assert_allclose(second.rewards, [2.0, 0.0])
    assert second.prompts == ("b", "a")
    assert [rows.tolist() for rows in second.groups] == [[0], [1]]
    (past,) = second.history
    assert (past.prompts, past.means.tolist(), past.weights.tolist(), past.time) == (
        ("a", "b"),
        [1.0, 2.0],
        [2, 2],
        0.0,
    )
    assert second.history_mean == pytest.approx(1.5)
    assert second.columns == COLUMNS
    for array in (second.rewards, second.features, second.weights, second.groups[0], past.means):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda view: 1 / 0, r"'mine:baseline' raised ZeroDivisionError"),
        (lambda view: [0.5], r"gave \(1,\); expected 3 finite numbers"),
        (lambda view: view.rewards * np.nan, "numbers that are not finite"),
        (lambda view: view.rewards.sort(), "read-only"),
    ],
)
def test_a_function_that_fails_is_named(function, message):
    with pytest.raises(ValueError, match=message):
        with_custom(function).predict(batch([1, 0, 1], "aab"))


def test_the_flip_test_finds_a_mean_that_holds_the_own_reward_and_passes_one_that_does_not():
    five_rollouts = batch([1, 0, 1, 0, 1], "aabbc")
    assert self_influence(with_custom(others), five_rollouts) == 0.0
    assert self_influence(with_custom(own_mean), five_rollouts) == pytest.approx(1.0)  # the lone rollout's
    assert self_influence(with_custom(own_mean), batch([1, 0, 0, 1], "aabb")) == pytest.approx(0.5)
    # Without bounds on the first step, 7 becomes 4 and 5 becomes 8, of a range taken as 4 to 8.
    assert self_influence(with_custom(own_mean, reward_range=None), batch([7, 5, 5, 7], "aabb")) == pytest.approx(
        1.5 / 4
    )


def keyed(kind: str) -> tuple[tuple[Column, ...], np.ndarray]:
    """Sixty prompts of a world, of which a key says more than all other features."""
    table = features(60)
    extra = np.where(np.arange(60) % 3 == 0, 1.0, -1.0)[:, None]
    names = ("key=even", "key=odd") if kind == "text" else ("key",)
    marks = np.hstack([extra, -extra]) if kind == "text" else extra
    return COLUMNS + tuple(Column(name, "key", 0.5, 0.5) for name in names), np.hstack([table, marks])


@pytest.mark.parametrize("kind", ["text", "number"])
@pytest.mark.parametrize("size", [1, 3])
def test_no_rollout_moves_its_own_baseline_through_the_key(kind, size):
    columns, table = keyed(kind)
    baseline, rng = GroupAwareBaseline(columns), np.random.default_rng(1)
    for time in range(8):
        baseline.observe(step(rng, table, prompts=12, size=size, time=float(time)))
    assert self_influence(baseline, step(rng, table, prompts=10, size=size, time=8.0)) < 1e-12


def test_prompts_of_one_key_share_what_is_learned_of_them():
    columns, table = keyed("text")
    table[:, :4] = 0.0
    rng = np.random.default_rng(0)
    baseline = GroupAwareBaseline(columns, preset="empirical_bayes", settings=Settings().without("tree"))
    for time in range(12):
        chosen = rng.choice(40, size=12, replace=False).tolist()
        step_rollouts = rollouts(rng, table, chosen, [2] * 12, float(time))
        right = np.array([int(name[1:]) % 3 == 0 for name in step_rollouts.prompts])
        baseline.observe(replace(step_rollouts, rewards=right.astype(np.float64)))
    mean, _ = baseline.expect(("new even", "new odd"), table[[51, 52]], 12.0)
    assert mean[0] - mean[1] > 0.3
    step_rollouts = rollouts(rng, table, [51, 52], [2, 2], 12.0)
    assert np.abs(baseline.explain(step_rollouts).scales["key"]).min() > 0.01
    blind = GroupAwareBaseline(columns, preset="empirical_bayes", settings=Settings().without("tree").without("key"))
    blind.observe(step_rollouts)
    assert "key" not in blind.explain(replace(step_rollouts, time=13.0)).scales


def test_a_text_makes_levels_and_a_number_makes_a_feature():
    text = FeatureMap.fit(TEXTS, keys=["b", "a", "b", "b"], known_keys=["a", "b", "c"])
    assert [column.name for column in text.columns if column.level] == ["key=a", "key=b", "key=c"]
    rows = text.apply(TEXTS[:2], keys=["c", "never seen"])
    assert rows[:, -3:].tolist() == [[-1, -1, 1], [-1, -1, -1]]
    number = FeatureMap.fit(TEXTS, keys=[1, 2, 3, 2.0])
    assert [column.name for column in number.columns if column.signal == "key"] == ["key"]
    assert not any(column.level for column in number.columns)
    np.testing.assert_allclose(number.apply(TEXTS, keys=[1, 2, 3, 2])[:, -1], np.array([-1, 0, 1, 0]) * np.sqrt(2))
    for feature_map, keys in ((text, ["a"] * 4), (number, [5] * 4)):
        again = FeatureMap.load(feature_map.state())
        assert again.apply(TEXTS, keys=keys).tobytes() == feature_map.apply(TEXTS, keys=keys).tobytes()
    mixed: Any = ["a", 1, "b", 2]
    with pytest.raises(ValueError, match="one of both for all"):
        FeatureMap.fit(TEXTS, keys=mixed)


def test_only_the_commonest_texts_make_levels():
    keys = [f"k{i:03d}" for i in range(100)] + ["k099"] * 3
    feature_map = FeatureMap.fit(TEXTS, keys=["k099"] * 4, known_keys=keys)
    assert len([column for column in feature_map.columns if column.level]) == MOST_KEYS
    assert feature_map.keys is not None
    assert "k099" in feature_map.keys
