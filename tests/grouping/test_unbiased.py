"""No baseline sees its own rollout, and so the expected gradient is the true one."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from coterie.grouping.arrays import Rollouts
from coterie.grouping.model import GroupAwareBaseline
from coterie.grouping.presets import PRESETS, SCALES, SIGNALS, Settings
from coterie.grouping.reward_models import PartwiseBaseline
from grouping_worlds import COLUMNS, features, rollouts, settings_of, step, trained

EXACT = [name for name, row in PRESETS.items() if row.exact]


def largest_move(baseline: GroupAwareBaseline, batch: Rollouts) -> tuple[float, float]:
    """Largest change of a rollout's own baseline, and of any other's, when its reward and its weight change."""
    before, self_move, others = baseline.predict(batch), 0.0, 0.0
    assert batch.weights is not None
    for i in range(len(batch.prompts)):
        rewards, weights = batch.rewards.copy(), batch.weights.copy()
        rewards[i], weights[i] = 1.0 - rewards[i], 7.0 * weights[i]
        moved = np.abs(baseline.predict(replace(batch, rewards=rewards, weights=weights)) - before)
        self_move, others = max(self_move, moved[i]), max(others, np.delete(moved, i).max())
    return self_move, others


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("preset", EXACT)
def test_a_rollout_never_moves_its_own_baseline(preset, size):
    baseline, rng, table = trained(preset, size=size)
    self_move, others = largest_move(baseline, step(rng, table, prompts=10, size=size, time=12.0))
    assert self_move < 1e-12
    assert others > 1e-3 or preset == "tracker" or (preset == "rloo" and size == 1)


@pytest.mark.parametrize("preset", EXACT)
def test_nor_on_the_first_step_nor_in_ragged_groups(preset):
    rng, table = np.random.default_rng(3), features(20)
    batch = rollouts(rng, table, [0, 1, 2, 3, 4], [1, 2, 3, 1, 6], 0.0)
    assert largest_move(GroupAwareBaseline(COLUMNS, preset=preset), batch)[0] < 1e-12
    assert largest_move(trained(preset)[0], replace(batch, time=12.0))[0] < 1e-12


@pytest.mark.parametrize("name", sorted(SCALES | SIGNALS))
def test_nor_without_one_scale_or_signal(name):
    baseline, rng, table = trained("mixture", Settings().without(name))
    assert largest_move(baseline, step(rng, table, prompts=8, size=2, time=12.0))[0] < 1e-12


@pytest.mark.parametrize("preset", ["empirical_bayes", "mixture"])
def test_without_the_batch_only_siblings_move_a_baseline(preset):
    baseline, rng, table = trained(preset, settings_of(use_batch=False), size=1)
    assert largest_move(baseline, step(rng, table, prompts=8, size=1, time=12.0)) == (0.0, 0.0)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_group_mean_fails(size):
    baseline, rng, table = trained("prompt", size=size)
    self_move, _ = largest_move(baseline, step(rng, table, prompts=8, size=size, time=12.0))
    assert self_move == pytest.approx(1.0 / size)


def test_a_part_of_the_reward_never_moves_its_own_baseline():
    rng, table = np.random.default_rng(0), features(30)
    parts = PartwiseBaseline(COLUMNS, {"right": 0.8, "form": 0.2}, preset="empirical_bayes")
    for time in range(6):
        batch = step(rng, table, prompts=8, size=2, time=float(time))
        form = replace(batch, rewards=1.0 - batch.rewards)
        expected = 0.8 * parts.estimators["right"].advantages(batch) + 0.2 * parts.estimators["form"].advantages(form)
        np.testing.assert_allclose(parts.explain({"right": batch, "form": form}).advantages, expected)
        parts.observe({"right": batch, "form": form})
    for estimator in parts.estimators.values():
        assert largest_move(estimator, step(rng, table, prompts=6, size=2, time=6.0))[0] < 1e-12


def enumerated(preset: str, sizes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Expected and true gradient of a three-answer softmax per prompt, over every possible batch."""
    baseline, rng, table = trained(preset, size=2)
    logits = rng.normal(size=(len(sizes), 3))
    pi = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    reward = np.array([1.0, 0.0, 0.4])
    rows = np.repeat(np.arange(len(sizes)), sizes)
    expected = np.zeros_like(logits)
    for answers in product(range(3), repeat=rows.size):
        chance = np.prod(pi[rows, answers])
        score = np.eye(3)[list(answers)] - pi[rows]
        batch = Rollouts(
            prompts=tuple(f"p{row}" for row in rows),
            rewards=reward[list(answers)],
            features=table[rows],
            time=12.0,
            weights=(score**2).sum(axis=1),
        )
        np.add.at(expected, rows, chance * (batch.rewards - baseline.predict(batch))[:, None] * score)
    true = np.array(sizes)[:, None] * pi * (reward - (pi @ reward)[:, None])
    return expected, true


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize("preset", EXACT)
def test_the_expected_gradient_is_the_true_one(preset, sizes):
    expected, true = enumerated(preset, sizes)
    np.testing.assert_allclose(expected, true, atol=1e-12)


def test_the_group_mean_shrinks_the_expected_gradient():
    expected, true = enumerated("prompt", (2, 2))
    np.testing.assert_allclose(expected, 0.5 * true, atol=1e-12)
