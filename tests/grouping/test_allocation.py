from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.grouping.allocation import (
    allocate,
    apportion,
    capped_shares,
    solved_regions,
    systematic_sample,
    teaching_signal,
)
from coterie.rollout.replay import PastGroup, select_replay


@st.composite
def plans(draw):
    count = draw(st.integers(1, 40))
    expected = np.array(draw(st.lists(st.floats(0, 1), min_size=count, max_size=count)))
    prompts = draw(st.integers(1, count))
    low = draw(st.integers(1, 3))
    high = draw(st.integers(low, 9))
    rollouts = draw(st.integers(low * prompts, high * prompts))
    return expected, {"prompts": prompts, "rollouts": rollouts, "min_rollouts": low, "max_rollouts": high}


@settings(deadline=None)
@given(plans(), st.integers(0, 1000), st.floats(0, 0.5))
def test_an_allocation_adds_up_and_keeps_its_bounds(plan, step, review):
    expected, numbers = plan
    solved = expected > 0.9
    signal = teaching_signal(expected)
    allocation = allocate(signal, **numbers, review=review, solved=solved, counters=(7, step))
    assert allocation.chosen.size == np.unique(allocation.chosen).size == numbers["prompts"]
    assert allocation.rollouts.sum() == numbers["rollouts"]
    assert allocation.rollouts.min() >= numbers["min_rollouts"]
    assert allocation.rollouts.max() <= numbers["max_rollouts"]
    assert ((allocation.inclusion > 0) & (allocation.inclusion <= 1)).all()
    assert (allocation.weights <= 10).all()
    again = allocate(signal, **numbers, review=review, solved=solved, counters=(7, step))
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


def test_importance_weights_restore_the_uniform_mean():
    rng = np.random.default_rng(0)
    expected, value = rng.random(30), rng.normal(size=30)
    means = []
    for step in range(2000):
        plan = allocate(
            teaching_signal(expected), prompts=8, rollouts=24, max_rollouts=6, clip=np.inf, counters=("w", step)
        )
        means.append((plan.weights * plan.rollouts) @ value[plan.chosen] / 24)
    assert np.mean(means) == pytest.approx(value.mean(), abs=4 * np.std(means) / np.sqrt(2000))


def test_undecided_prompts_get_the_rollouts():
    plan = allocate(teaching_signal(np.array([0.0, 0.5, 1.0, 0.5])), prompts=4, rollouts=16, counters=(0,))
    assert plan.chosen.tolist() == [0, 1, 2, 3]
    assert min(plan.rollouts[1], plan.rollouts[3]) > 2 * max(plan.rollouts[0], plan.rollouts[2])


def test_solved_regions_live_on_the_review_share():
    expected = np.array([0.95] * 40 + [0.5] * 160)
    solved = solved_regions(expected, np.repeat([3, 8], [40, 160]))
    assert solved.tolist() == [True] * 40 + [False] * 160

    def share(review: float) -> float:
        drawn = [
            allocate(teaching_signal(expected), prompts=20, rollouts=20, review=review, solved=solved, counters=(s,))
            for s in range(400)
        ]
        return float(np.mean([solved[plan.chosen].mean() for plan in drawn]))

    assert share(0.2) == pytest.approx(0.2 + 0.8 * share(0.0), abs=0.02)


def test_what_does_not_fit_is_refused():
    signal = teaching_signal(np.full(4, 0.5))
    with pytest.raises(ValueError, match="5 prompts were asked of 4"):
        allocate(signal, prompts=5, rollouts=5, counters=(0,))
    with pytest.raises(ValueError, match="33 rollouts do not fit 4 prompts"):
        allocate(signal, prompts=4, rollouts=33, counters=(0,))
    with pytest.raises(ValueError, match="add a floor"):
        allocate(np.zeros(4), prompts=2, rollouts=4, counters=(0,))


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
