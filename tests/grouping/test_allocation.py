from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.grouping.allocation import FLOOR, Prospects, allocate, apportion, capped_shares, systematic_sample
from coterie.grouping.answer_lengths import PRIOR_ROLLOUTS, AnswerLengths
from coterie.rollout.replay import PastGroup, select_replay


def prospects(success, variance=0.0, prompt_cost=20.0, rollout_cost=20.0) -> Prospects:
    """Of candidates with these expected rewards; one number stands for all."""
    success = np.asarray(success, dtype=np.float64)
    columns = (np.broadcast_to(np.asarray(column, float), success.shape) for column in (prompt_cost, rollout_cost))
    costs = dict(zip(("prompt_cost", "rollout_cost"), columns, strict=True))
    return Prospects(success=success, variance=np.full(success.size, variance), **costs)


@st.composite
def plans(draw):
    count = draw(st.integers(1, 40))
    expected = np.array(draw(st.lists(st.floats(0, 1), min_size=count, max_size=count)))
    costs = [np.array(draw(st.lists(st.floats(1, 500), min_size=count, max_size=count))) for _ in range(2)]
    least = draw(st.integers(1, 3))
    most = draw(st.integers(least, 9))
    rollouts = draw(st.integers(least, most * count))
    # A total between the multiples of the bounds fits no number of prompts, e.g. 5 into prompts of 3 to 4 rollouts.
    prompts = -(-rollouts // most)
    rollouts = max(rollouts, least * prompts)
    return prospects(expected, 0.01, *costs), {"rollouts": rollouts, "least": least, "most": most}


@settings(deadline=None)
@given(plans(), st.integers(0, 1000), st.sampled_from([0.0, 0.05, 0.2]), st.floats(0.05, 0.5))
def test_an_allocation_adds_up_and_keeps_its_bounds(plan, step, skip, review):
    candidates, numbers = plan
    allocation = allocate(candidates, **numbers, skip=skip, review=review, counters=(7, step))
    assert allocation.chosen.size == np.unique(allocation.chosen).size
    assert allocation.rollouts.sum() == numbers["rollouts"]
    assert allocation.rollouts.min() >= numbers["least"]
    assert allocation.rollouts.max() <= numbers["most"]
    assert ((allocation.inclusion > 0) & (allocation.inclusion <= 1)).all()
    assert (allocation.weights <= 10).all()
    assert allocation.skipped == (skip > 0) * int(((candidates.success < skip) | (candidates.success > 1 - skip)).sum())
    again = allocate(candidates, **numbers, skip=skip, review=review, counters=(7, step))
    assert (again.chosen == allocation.chosen).all()
    assert (again.rollouts == allocation.rollouts).all()


@settings(deadline=None)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30), st.data())
def test_shares_are_capped_and_add_up(wishes, data):
    cap = data.draw(st.floats(0.1, 5))
    total = data.draw(st.floats(0, 1)) * cap * len(wishes)
    shares = capped_shares(np.array(wishes), total, cap)
    assert shares.sum() == pytest.approx(total)
    assert shares.max() <= cap
    below = shares < cap * (1 - 1e-9)
    ratios = shares[below] / np.maximum(np.array(wishes) / max(wishes), 1e-12)[below]
    assert np.ptp(ratios) <= 1e-6 * max(ratios.max(), 1e-12) if below.any() else True


def test_each_prompt_is_drawn_as_often_as_its_chance_says():
    inclusion = np.array([1.0, 0.7, 0.5, 0.5, 0.2, 0.1])
    rng = np.random.default_rng(0)
    hits = np.zeros(6)
    for _ in range(8000):
        hits[systematic_sample(inclusion, 3, rng)] += 1
    np.testing.assert_allclose(hits / 8000, inclusion, atol=4 * 0.5 / np.sqrt(8000))


@pytest.mark.parametrize("skip", [0.0, 0.2])
def test_importance_weights_restore_the_uniform_mean(skip: float):
    rng = np.random.default_rng(0)
    expected, value = rng.random(30), rng.normal(size=30)
    candidates = prospects(expected, 0.0, rng.uniform(5, 80, 30), rng.uniform(5, 80, 30))
    means = []
    for step in range(4000):
        plan = allocate(
            candidates, rollouts=24, most=6, skip=skip, review=0.3 * (skip > 0), clip=np.inf, counters=("w", step)
        )
        means.append((plan.weights * plan.rollouts) @ value[plan.chosen] / 24)
    assert np.mean(means) == pytest.approx(value.mean(), abs=4 * np.std(means) / np.sqrt(4000))


def test_a_prompt_is_drawn_by_worth_over_the_root_of_its_cost():
    """√(p(1 - p)) = .5, .3 and .3. Two rollouts each cost 20 + 2·20 = 60 twice, and 240 where
    everything costs four times as much."""
    success = np.array([0.5, 0.9, 0.1])
    candidates = prospects(success, 0.0, [20.0, 20.0, 80.0], [20.0, 20.0, 80.0])
    wishes = np.array([0.5 + FLOOR, 0.3 + FLOOR, 0.3 + FLOOR]) / np.sqrt([60.0, 60.0, 240.0])
    drawn = [allocate(candidates, rollouts=2, least=2, most=2, counters=(step,)) for step in range(6000)]
    hits = np.zeros(3)
    for plan in drawn:
        assert plan.rollouts.tolist() == [2]
        hits[plan.chosen] += 1
    np.testing.assert_allclose(hits / 6000, wishes / wishes.sum(), atol=4 * 0.5 / np.sqrt(6000))


def test_the_number_of_rollouts_is_the_two_stage_optimum():
    """Half of the prompts at .4, half at .6: between variance .01, within .24, so √(P/R · 24) = 4.899 where a prompt
    costs as much as a rollout, 2.449 where it costs a quarter, and 2 where the expectations are uncertain by .05."""
    success = np.repeat([0.4, 0.6], 20)
    everyone = np.ones(40, dtype=bool)
    np.testing.assert_allclose(prospects(success).sizes(everyone), 4.898979, rtol=1e-6)
    np.testing.assert_allclose(prospects(success, 0.0, 5.0).sizes(everyone), 2.449490, rtol=1e-6)
    np.testing.assert_allclose(prospects(success, 0.05).sizes(everyone), 2.0, rtol=1e-6)
    assert allocate(prospects(success), rollouts=40, counters=(0,)).chosen.size == 8  # 40 / 4.9
    assert allocate(prospects(success, 0.05), rollouts=40, counters=(0,)).chosen.size == 20
    assert allocate(prospects(success), rollouts=40, most=4, counters=(0,)).chosen.size == 10
    assert allocate(prospects(success), rollouts=40, least=8, counters=(0,)).chosen.size == 5


def test_the_optimum_has_the_least_variance_of_all_sizes():
    """Variance of a mean over T / (P + G R) prompts of G rollouts: (between + within / G) (P + G R), least at G*."""
    success, prompt, rollout = np.repeat([0.2, 0.8], 10), 30.0, 7.0
    size = prospects(success, 0.0, prompt, rollout).sizes(np.ones(20, dtype=bool))[0]
    between, within = 0.09, 0.16

    def cost(count: float) -> float:
        return (between + within / count) * (prompt + count * rollout)

    grid = np.linspace(0.5, 12, 2000)
    assert cost(size) <= min(map(cost, grid)) * (1 + 1e-12)


def test_skipped_prompts_live_on_the_review_share():
    success = np.array([0.97] * 30 + [0.01] * 130 + [0.5] * 40)
    candidates = prospects(success, 0.05)

    def shares(skip: float, review: float) -> np.ndarray:
        drawn = [
            allocate(candidates, rollouts=32, least=2, most=2, skip=skip, review=review, counters=(step,))
            for step in range(400)
        ]
        kinds = np.stack([success[plan.chosen] for plan in drawn])
        return np.array([(kinds == value).mean() for value in (0.97, 0.01, 0.5)])

    np.testing.assert_allclose(shares(0.05, 0.2), [0.2 * 30 / 160, 0.2 * 130 / 160, 0.8], atol=0.02)
    assert shares(0.0, 0.2)[2] < 0.55, "nothing is skipped: the many dead take half of the draws"


def test_where_everything_is_skipped_everything_is_drawn():
    plan = allocate(prospects(np.full(6, 0.01), 0.05), rollouts=6, most=2, skip=0.1, review=0.1, counters=(0,))
    assert plan.skipped == 6
    assert plan.rollouts.sum() == 6


def test_what_does_not_fit_is_refused():
    candidates = prospects(np.full(4, 0.5))
    with pytest.raises(ValueError, match="33 rollouts do not fit 4 candidates"):
        allocate(candidates, rollouts=33, counters=(0,))
    with pytest.raises(ValueError, match="lost for good"):
        allocate(candidates, rollouts=4, skip=0.1, counters=(0,))
    with pytest.raises(ValueError, match="a cost is not above 0"):
        allocate(prospects(np.full(4, 0.5), 0.0, 0.0), rollouts=4, counters=(0,))


def test_lengths_of_answers_are_shrunk_towards_the_mean_of_all_and_fade():
    lengths = AnswerLengths(decay_steps=10.0)
    assert lengths.expect(("a",), 0.0, start=16.0).tolist() == [16.0]
    lengths.observe(("a", "a", "b", "b"), (4, 4, 10, 10), 0.0)
    expected = lengths.expect(("a", "b", "c"), 0.0, start=16.0)
    np.testing.assert_allclose(expected, [(8 + 7 * PRIOR_ROLLOUTS) / 6, (20 + 7 * PRIOR_ROLLOUTS) / 6, 7.0])
    faded = np.exp(-1.0)
    later = lengths.expect(("a",), 10.0, start=16.0)
    np.testing.assert_allclose(later, (8 * faded + 7 * PRIOR_ROLLOUTS) / (2 * faded + PRIOR_ROLLOUTS))
    again = AnswerLengths(decay_steps=10.0)
    again.load(lengths.state())
    assert again.expect(("a", "b", "c"), 3.0, 1.0).tolist() == lengths.expect(("a", "b", "c"), 3.0, 1.0).tolist()


def test_apportionment_by_largest_remainder():
    assert apportion(np.array([1.0, 1.0, 1.0]), 4, 8).tolist() == [2, 1, 1]
    assert apportion(np.array([100.0, 1.0]), 6, 4).tolist() == [4, 2]


def past(key: str, version: int = 9, ratio: float = 1.0, advantage: float = 1.0, reward: str = "exact") -> PastGroup:
    return PastGroup(
        key=key,
        version=version,
        reward=reward,
        log_ratios=np.array([0.0, np.log(ratio)]),
        advantages=np.array([advantage, -advantage]),
    )


def test_only_near_and_surprising_groups_are_replayed():
    groups = [
        past("good"),
        past("stale", version=5),
        past("fresh", version=10),
        past("far", ratio=2.5),
        past("too rare", ratio=0.3),
        past("other reward", reward="format"),
        past("nothing to learn", advantage=0.0),
        past("unknown ratio", ratio=np.nan),
        past("also good", version=8),
    ]
    selection = select_replay(groups, 5, version=10, reward="exact", counters=(1,))
    assert [groups[i].key for i in selection.chosen] == ["good", "also good"]
    assert selection.inclusion.tolist() == [1.0, 1.0]
    assert select_replay([], 5, version=10, reward="exact", counters=(1,)).chosen.size == 0


def test_replay_prefers_surprise_and_freshness():
    groups = [past("mild", advantage=0.5), past("wild", advantage=2.0), past("old and wild", version=7, advantage=2.0)]
    hits = np.zeros(3)
    for draw in range(1500):
        hits[select_replay(groups, 1, version=10, reward="exact", counters=(draw,)).chosen] += 1
    priority = np.array([0.5, 2.0, 2.0 * 0.5]) * 2**-0.5
    np.testing.assert_allclose(hits / 1500, priority / priority.sum(), atol=0.055)
