from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.algo.advantages import credit_groups, group_advantages
from coterie.types import Group

REWARDS = st.lists(st.floats(-10, 10, width=16), min_size=2, max_size=16)


@pytest.mark.parametrize(
    ("rewards", "scale", "want"),
    [
        ([1, 0, 0, 1], True, [0.8660, -0.8660, -0.8660, 0.8660]),
        ([1, 0, 0, 0], True, [1.5, -0.5, -0.5, -0.5]),
        ([1, 0, 0, 1], False, [0.5, -0.5, -0.5, 0.5]),
    ],
)
def test_worked_numbers(rewards: list[float], scale: bool, want: list[float]) -> None:
    np.testing.assert_allclose(group_advantages(rewards, scale=scale), want, atol=1e-4)


def test_equal_rewards_give_exactly_zero() -> None:
    assert group_advantages([0.1 + 0.2, 0.3, 0.3]).tolist() == [0, 0, 0]


def test_one_rollout_has_no_baseline() -> None:
    with pytest.raises(ValueError, match="a group of 1 has no baseline; expected at least 2"):
        group_advantages([1.0])


@given(REWARDS, st.floats(-5, 5, width=16))
def test_adding_a_constant_to_all_rewards_changes_nothing(rewards: list[float], constant: float) -> None:
    moved = [reward + constant for reward in rewards]
    if np.ptp(rewards) > 1e-3:
        np.testing.assert_allclose(group_advantages(moved), group_advantages(rewards), atol=1e-6)


@given(REWARDS, st.randoms())
def test_order_does_not_matter_and_the_sum_is_zero(rewards: list[float], random: Random) -> None:
    order = list(range(len(rewards)))
    random.shuffle(order)
    got = group_advantages([rewards[k] for k in order])
    np.testing.assert_allclose(got, group_advantages(rewards)[order], atol=1e-9)
    assert abs(got.sum()) < 1e-6


def test_clip_bounds_travel_with_the_credit() -> None:
    group = Group(scale="prompt", key="q", members=("a", "b"), rewards=(1.0, 0.0))
    first, second = credit_groups([group], scale=True, clip_low=0.1, clip_high=0.3)
    assert (first.rollout_id, first.clip_low, first.clip_high) == ("a", 0.1, 0.3)
    assert first.advantage == -second.advantage == first.contributions["prompt"]
