from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from coterie.grouping.arrays import Rollouts
from coterie.grouping.model import LEAST_SCALE, LEAST_SPREAD, GroupAwareBaseline
from coterie.grouping.presets import PRESETS, SCALES, SIGNALS, Settings
from coterie.grouping.reward_models import PartwiseBaseline
from grouping_worlds import COLUMNS, features, rollouts, settings_of, step, trained


def batch(rewards, prompts="abc", time=0.0) -> Rollouts:
    names = tuple(prompts)
    return Rollouts(
        prompts=names, rewards=np.array(rewards, dtype=float), features=np.zeros((len(names), 4)), time=time
    )


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_one_rollout_a_prompt_gets_a_baseline(preset):
    baseline, rng, table = trained(preset, size=1)
    predicted = baseline.predict(step(rng, table, prompts=12, size=1, time=12.0))
    assert np.isfinite(predicted).all()
    assert ((predicted >= 0) & (predicted <= 1)).all()


@pytest.mark.parametrize("preset", ["tracker", "empirical_bayes", "mixture"])
@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_groups_without_variance_get_the_surprise(preset, reward):
    baseline, rng, table = trained(preset, size=4)
    easy = table[:, 0].argsort()[-8:]
    batch = rollouts(rng, table, easy.tolist(), [4] * 8, 12.0)
    advantages = baseline.advantages(replace(batch, rewards=np.full(32, reward)))
    assert np.isfinite(advantages).all()
    assert (np.abs(advantages) > 1e-3).all() if reward == 0 else (advantages >= 0).all()


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_prompts_without_features_still_have_scales(preset):
    baseline = GroupAwareBaseline(preset=preset, settings=settings_of(reward_range=[1.0, 5.0]))
    for time in range(12):
        names = (*(f"p{time}{i // 2}" for i in range(8)), "old", "old")
        rewards = np.array([5.0, 1, 1, 1, 5, 5, 1, 5, 5, 5])
        baseline.observe(Rollouts(prompts=names, rewards=rewards, features=np.zeros((10, 0)), time=float(time)))
    mean, variance = baseline.expect(("old", "new"), np.zeros((2, 0)), 12.0)
    assert ((mean >= 1) & (mean <= 5) & (variance > 0)).all()
    assert mean[0] > 4 or preset not in ("tracker", "empirical_bayes", "mixture")


def test_a_hopeless_prompt_fades():
    baseline = GroupAwareBaseline(COLUMNS, preset="empirical_bayes")
    sizes = []
    for time in range(30):
        again = batch([0, 0, 0, 0], "aaaa", float(time))
        sizes.append(-baseline.advantages(again).mean() * baseline.scale)
        baseline.observe(again)
    assert sizes[0] > 0.15
    assert sizes[-1] < 0.02


def test_failed_rollouts_have_no_part():
    baseline, rng, table = trained("mixture")
    whole = step(rng, table, prompts=6, size=3, time=12.0)
    lost = np.zeros(18, dtype=bool)
    lost[[0, 5, 7]] = True
    assert whole.weights is not None
    holed = replace(whole, rewards=np.where(lost, np.nan, whole.rewards))
    without = Rollouts(
        prompts=tuple(p for p, gone in zip(whole.prompts, lost, strict=True) if not gone),
        rewards=whole.rewards[~lost],
        features=whole.features[~lost],
        weights=whole.weights[~lost],
        time=12.0,
    )
    predicted = baseline.predict(holed)
    assert np.isnan(predicted[lost]).all()
    np.testing.assert_allclose(predicted[~lost], baseline.predict(without), atol=1e-12)
    assert (baseline.advantages(holed)[lost] == 0).all()
    assert baseline.observe(holed).rollouts == 15


def test_a_step_of_failures_teaches_nothing():
    baseline, _, _ = trained("mixture")
    before = json.dumps(baseline.state()[1])
    nothing = batch([np.nan] * 3, time=12.0)
    assert np.isnan(baseline.predict(nothing)).all()
    assert baseline.observe(nothing).rollouts == 0
    assert json.dumps(baseline.state()[1]) == before


def test_order_of_the_rollouts_does_not_matter():
    baseline, rng, table = trained("mixture")
    batch = step(rng, table, prompts=6, size=3, time=12.0)
    assert batch.weights is not None
    order = rng.permutation(18)
    shuffled = Rollouts(
        prompts=tuple(batch.prompts[i] for i in order),
        rewards=batch.rewards[order],
        features=batch.features[order],
        weights=batch.weights[order],
        time=12.0,
    )
    np.testing.assert_allclose(baseline.predict(batch)[order], baseline.predict(shuffled), atol=1e-12)


def test_predicting_changes_nothing():
    baseline, rng, table = trained("mixture")
    batch = step(rng, table, prompts=6, size=2, time=12.0)
    twin = GroupAwareBaseline(COLUMNS)
    twin.load(baseline.state())
    for _ in range(3):
        baseline.predict(replace(batch))
    baseline.observe(batch)
    twin.observe(replace(batch))
    assert_same(baseline, twin)


def assert_same(baseline, twin) -> None:
    (arrays, plain), (again, text) = baseline.state(), twin.state()
    assert json.dumps(plain) == json.dumps(text)
    assert arrays.keys() == again.keys()
    for name, array in arrays.items():
        assert array.tobytes() == again[name].tobytes(), name


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_resumed_run_continues_bit_by_bit(preset):
    baseline, rng, table = trained(preset, steps=8)
    arrays, plain = baseline.state()
    twin = GroupAwareBaseline(COLUMNS, preset=preset)
    twin.load(({name: array.copy() for name, array in arrays.items()}, json.loads(json.dumps(plain))))
    for time in range(8, 14):
        batch = step(rng, table, prompts=12, size=2, time=float(time))
        assert baseline.advantages(batch).tobytes() == twin.advantages(replace(batch)).tobytes()
        baseline.observe(batch)
        twin.observe(replace(batch))
    assert_same(baseline, twin)


def test_parts_resume_too():
    rng, table = np.random.default_rng(0), features(20)
    baseline, twin = (PartwiseBaseline(COLUMNS, {"right": 1.0, "form": 0.5}) for _ in range(2))
    batch = step(rng, table, prompts=8, size=2, time=0.0)
    baseline.observe({"right": batch, "form": replace(batch, rewards=1.0 - batch.rewards)})
    twin.load(baseline.state())
    assert_same(baseline, twin)


def test_a_state_of_another_preset_is_refused():
    state = trained("empirical_bayes")[0].state()
    with pytest.raises(ValueError, match="another preset"):
        GroupAwareBaseline(COLUMNS, preset="mixture").load(state)
    with pytest.raises(ValueError, match="another settings"):
        GroupAwareBaseline(COLUMNS, preset="empirical_bayes", settings=settings_of(decay_steps=20.0)).load(state)


def test_a_new_reward_widens_and_the_same_does_not():
    baseline, rng, table = trained("mixture")
    batch = step(rng, table, prompts=8, size=2, time=12.0)
    names = tuple(dict.fromkeys(batch.prompts))
    rows = table[[int(name[1:]) for name in names]]
    mean, variance = baseline.expect(names, rows, 12.0)
    assert baseline.rebind(reward="", reference="") is False
    assert baseline.rebind(reward="exact match 2", reference="") is True
    wider_mean, wider = baseline.expect(names, rows, 12.0)
    np.testing.assert_allclose(wider_mean, mean)
    assert (wider > variance).all()
    assert baseline.state()[1]["own"]["versions"]["reward"] == "exact match 2"


def test_history_knows_better_than_the_overall_mean():
    for preset in ("tracker", "empirical_bayes", "mixture"):
        baseline, _, table = trained(preset, steps=40, size=4)
        mean, variance = baseline.expect(tuple(f"p{i}" for i in range(60)), table, 40.0)
        truth = 1 / (1 + np.exp(-(1.5 * table[:, 0] + 0.7 * table[:, 3])))
        assert ((mean - truth) ** 2).mean() < 0.4 * truth.var()
        assert (variance > 0).all()
    strangers, _ = baseline.expect(("new",), np.array([[2.5, 0, 0, 1.0]]), 40.0)
    assert strangers[0] > 0.7


@pytest.mark.parametrize("preset", ["tracker", "empirical_bayes", "mixture"])
def test_what_is_expected_is_a_plain_mean_whatever_rollouts_count_for(preset):
    """A weighted mean is too low where right answers count little, as those of a policy that is sure of them do."""
    baseline = GroupAwareBaseline(preset=preset)
    for time in range(30):
        baseline.observe(
            Rollouts(
                prompts=tuple(f"p{i // 4}" for i in range(16)),
                rewards=np.tile([1.0, 1.0, 1.0, 0.0], 4),
                features=np.zeros((16, 0)),
                time=float(time),
                weights=np.tile([0.1, 0.1, 0.1, 3.0], 4),
            )
        )
    mean, _ = baseline.expect(("p0", "p1"), np.zeros((2, 0)), 30.0)
    np.testing.assert_allclose(mean, 0.75, atol=0.03)
    again = GroupAwareBaseline(preset=preset)
    again.load(baseline.state())
    np.testing.assert_array_equal(again.expect(("p0", "p1"), np.zeros((2, 0)), 30.0)[0], mean)
    baseline.inflate_variance()
    np.testing.assert_allclose(baseline.expect(("p0", "p1"), np.zeros((2, 0)), 30.0)[0], mean)


@pytest.mark.parametrize("name", sorted((SCALES | SIGNALS) - {"task", "key"}))
def test_each_scale_and_signal_makes_a_difference(name):
    full, rng, table = trained("empirical_bayes")
    without, _, _ = trained("empirical_bayes", Settings().without(name))
    batch = step(rng, table, prompts=12, size=2, time=30.0)
    assert np.abs(full.predict(batch) - without.predict(replace(batch))).max() > 1e-6


def test_a_scale_that_is_off_contributes_nothing():
    for name in ("tree", "linear", "prompt", "batch", "siblings"):
        baseline, rng, table = trained("empirical_bayes", Settings().without(name))
        parts = baseline.explain(step(rng, table, prompts=12, size=2, time=12.0)).scales
        assert (parts[name] == 0).all(), name


def test_an_expert_leaves_with_the_scale_it_lives_on():
    assert "js2" not in GroupAwareBaseline(COLUMNS, settings=settings_of(use_batch=False)).experts
    assert GroupAwareBaseline(COLUMNS, settings=Settings().without("siblings")).experts == (
        "empirical_bayes",
        "empirical_bayes_no_tree",
        "empirical_bayes_no_features",
        "tracker",
    )
    with pytest.raises(ValueError, match="preset 'global' lives on"):
        GroupAwareBaseline(COLUMNS, preset="global", settings=settings_of(use_batch=False))


def test_the_contributions_of_the_scales_add_up():
    baseline, rng, table = trained("empirical_bayes", settings_of(reward_range=[-1.0, 3.0]))
    explained = baseline.explain(step(rng, table, prompts=12, size=2, time=12.0))
    assert set(explained.scales) == SCALES - {"key"}
    total = np.sum(list(explained.scales.values()), axis=0)
    np.testing.assert_allclose(np.clip(total, -1, 3), explained.baselines, atol=1e-12)


def test_rewards_in_other_units_give_the_same_advantages():
    plain, rng, table = trained("mixture", steps=0)
    shifted = GroupAwareBaseline(COLUMNS, settings=settings_of(reward_range=[-2.0, 8.0]))
    for time in range(8):
        batch = step(rng, table, prompts=12, size=2, time=float(time))
        other = replace(batch, rewards=-2.0 + 10.0 * batch.rewards)
        np.testing.assert_allclose(plain.advantages(batch), shifted.advantages(other), atol=1e-9)
        plain.observe(batch)
        shifted.observe(other)


def test_rewards_without_bounds_find_their_own_scale():
    rng, table = np.random.default_rng(0), features(40)
    baseline = GroupAwareBaseline(COLUMNS, settings=settings_of(reward_range=None))
    errors = []
    for time in range(25):
        batch = step(rng, table, prompts=20, size=2, time=float(time))
        batch = replace(
            batch, rewards=300.0 + 50.0 * table[[int(p[1:]) for p in batch.prompts], 0] + rng.normal(0, 10, 40)
        )
        errors.append(float(((batch.rewards - baseline.predict(batch)) ** 2).mean()))
        assert np.isfinite(baseline.advantages(batch)).all()
        baseline.observe(batch)
    assert np.mean(errors[-5:]) < 0.25 * 2500
    assert 5 < baseline.scale < 40


def test_the_scale_comes_from_history_and_has_a_floor():
    baseline = GroupAwareBaseline(COLUMNS, preset="empirical_bayes")
    assert baseline.scale == 0.5
    for time in range(40):
        baseline.observe(batch([1, 1, 1], "abc", float(time)))
    assert LEAST_SCALE <= baseline.scale < 0.15
    assert GroupAwareBaseline(COLUMNS, settings=settings_of(scale="none")).scale == 1.0


def test_the_expected_spread_comes_from_history_alone():
    """p of .5 is expected before anything is known: √(.5 · .5); then of one kind of prompt less, down to a quarter."""
    baseline = GroupAwareBaseline(COLUMNS, preset="empirical_bayes", settings=settings_of(scale="expected"))
    first = batch([1, 0, 0, 0], "aabb", 0.0)
    assert baseline.divisors(first).tolist() == [0.5] * 4
    np.testing.assert_allclose(baseline.advantages(first), (first.rewards - baseline.predict(first)) / 0.5)
    for time in range(30):
        baseline.observe(batch([1, 0, 0, 0], "aabb", float(time)))
    mixed, failed = baseline.divisors(batch([1, 0, 0, 0], "aabb", 30.0))[[0, 2]]
    assert mixed == pytest.approx(0.5, abs=0.02)
    assert failed == LEAST_SPREAD
    other = baseline.divisors(batch([0, 0, 1, 1], "aabb", 30.0))
    assert other.tolist() == [mixed, mixed, failed, failed]


def test_the_expected_spread_follows_the_range_of_rewards():
    baseline = GroupAwareBaseline(COLUMNS, settings=settings_of(reward_range=[-2.0, 8.0], scale="expected"))
    assert baseline.divisors(batch([8, -2], "ab", 0.0)).tolist() == [5.0, 5.0]
    with pytest.raises(ValueError, match="needs reward_range"):
        settings_of(reward_range=None, scale="expected")


def test_evidence_fades_with_time():
    def after(gap: float, settings: Settings) -> float:
        baseline = GroupAwareBaseline(COLUMNS, preset="empirical_bayes", settings=settings.without("tree"))
        for time in range(5):
            baseline.observe(batch([1, 1, 0, 0], "aabb", float(time)))
        mean, _ = baseline.expect(("a",), np.zeros((1, 4)), 4.0 + gap)
        return float(mean[0])

    assert after(0.0, Settings()) > after(100.0, Settings()) > after(1000.0, Settings())
    assert after(0.0, Settings().without("temporal")) == after(1000.0, Settings().without("temporal"))


def test_wrong_input_is_refused_in_words():
    baseline = GroupAwareBaseline(COLUMNS)
    with pytest.raises(ValueError, match=r"3 features; expected 4 columns"):
        baseline.predict(replace(batch([1, 0, 1]), features=np.zeros((3, 3))))
    with pytest.raises(ValueError, match=r"reward 2.0 lies outside bounds"):
        baseline.predict(batch([1, 0, 2]))
    with pytest.raises(ValueError, match="one row a rollout"):
        replace(batch([1, 0, 1]), rewards=np.zeros(2))
    with pytest.raises(ValueError, match="infinite"):
        batch([1, 0, np.inf])
    with pytest.raises(ValueError, match="preset is 'best'"):
        GroupAwareBaseline(COLUMNS, preset="best")
    with pytest.raises(ValueError, match="nothing is called 'forest'"):
        Settings().without("forest")


def stress(steps: int) -> None:
    """Group sizes vary, a phase is all wrong and another all right, weights sink to the floor, rollouts fail."""
    rng, table = np.random.default_rng(0), features(40)
    baseline = GroupAwareBaseline(COLUMNS, settings=settings_of(window=12, max_leaves=6))
    for time in range(steps):
        batch = step(rng, table, prompts=6, size=1 + time % 4, time=0.7 * time)
        third = 3 * time // steps
        rewards = batch.rewards if third == 0 else np.full(batch.rewards.size, float(third - 1))
        if third == 2 and time % 7 == 0:
            rewards = batch.rewards
        weights = rng.gamma(0.05, 1.0, batch.rewards.size)
        batch = replace(batch, rewards=np.where(rng.random(rewards.size) < 0.05, np.nan, rewards), weights=weights)
        assert np.isfinite(baseline.advantages(batch)).all()
        baseline.observe(batch)
    for hierarchy in baseline.hierarchies.values():
        cov = hierarchy.belief.cov
        assert np.isfinite(cov).all()
        assert (cov == cov.T).all()
        assert np.linalg.eigvalsh(cov).min() > 0
    assert all(np.isfinite(array).all() or name.endswith("time") for name, array in baseline.state()[0].items())


def test_hundreds_of_hard_steps_stay_finite():
    stress(300)


@pytest.mark.slow
def test_ten_thousand_hard_steps_stay_finite():
    stress(10_000)
