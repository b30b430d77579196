"""Unbiasedness of estimators, by exact enumeration of every outcome, and by flipping rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.algo.baselines import BASELINES, Scored, sum_of_others
from coterie.algo.scales import SCALES

LEAVE_OUT = ["leave_one_out", "length_weighted", "batch_mean", "js2", "none"]
GROUPS = st.lists(
    st.lists(st.tuples(st.floats(-10, 10, width=16), st.integers(1, 9)), min_size=2, max_size=4), min_size=1, max_size=4
)


def baselines(name: str, rewards: Sequence[Sequence[float]], lengths: Sequence[Sequence[int]]) -> list[np.ndarray]:
    groups = [
        Scored(rewards=np.array(r, dtype=np.float64), lengths=np.array(n, dtype=np.float64))
        for r, n in zip(rewards, lengths, strict=True)
    ]
    return BASELINES[name](groups)


def moves(name: str, groups: list[list[tuple[float, int]]], reward: float) -> float:
    """By how much the first rollout's own reward and length move its own baseline."""
    rewards, lengths = [[r for r, _ in group] for group in groups], [[n for _, n in group] for group in groups]
    before = baselines(name, rewards, lengths)[0][0]
    rewards[0][0], lengths[0][0] = reward, lengths[0][0] + 3
    return abs(baselines(name, rewards, lengths)[0][0] - before)


@pytest.mark.parametrize("name", LEAVE_OUT)
@settings(max_examples=60, deadline=None)
@given(groups=GROUPS, reward=st.floats(-10, 10, width=16))
def test_the_own_reward_never_moves_the_own_baseline(
    name: str, groups: list[list[tuple[float, int]]], reward: float
) -> None:
    # A zero-variance group's baseline is its own reward to the last bit, at most 1e-8 from the one without it.
    assert moves(name, groups, reward) <= 1e-7


@pytest.mark.parametrize("name", ["group_mean", "second_best"])
def test_the_flip_test_catches_what_includes_the_own_reward(name: str) -> None:
    assert moves(name, [[(1.0, 2), (0.5, 3), (0.0, 1)]], 0.2) > 0.1


def test_others_leaves_the_own_value_out_to_the_last_bit() -> None:
    small = np.array([0.1, 0.2, 0.3])
    large = np.array([1e17, 0.2, 0.3])
    assert sum_of_others(small)[0] == sum_of_others(large)[0] == 0.5


LOGITS = np.array([0.3, -0.5, 0.9])
REWARDS = np.array([1.0, 0.2, -0.5])
LENGTHS = np.array([2, 7, 3])


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def gradient_of(objective: Callable[[np.ndarray], float], logits: np.ndarray = LOGITS) -> np.ndarray:
    """By central differences."""
    steps = 1e-6 * np.eye(len(logits))
    return np.array([(objective(logits + step) - objective(logits - step)) / 2e-6 for step in steps])


def expected(name: str, scale: str, *, prompts: int, size: int, rewards: np.ndarray = REWARDS) -> np.ndarray:
    """E of the sum over all rollouts of A · grad log pi, over every joint outcome of `prompts` groups of `size`."""
    p = softmax(LOGITS)[: len(rewards)] if len(rewards) == 3 else softmax(LOGITS[: len(rewards)])
    scores = np.eye(len(p)) - p
    total = np.zeros(len(p))
    for actions in product(range(len(p)), repeat=prompts * size):
        grid = np.array(actions).reshape(prompts, size)
        groups = [Scored(rewards=rewards[row], lengths=LENGTHS[row].astype(np.float64)) for row in grid]
        terms = zip(grid, groups, BASELINES[name](groups), SCALES[scale](groups), strict=True)
        estimate = sum(((g.rewards - b) / d) @ scores[row] for row, g, b, d in terms)
        total += np.prod(p[list(actions)]) * estimate
    return total


@pytest.mark.parametrize(
    ("name", "prompts", "size"),
    [
        ("leave_one_out", 1, 4),
        ("length_weighted", 1, 4),
        ("batch_mean", 2, 2),
        ("js2", 3, 2),
        ("js2", 2, 3),
        ("none", 1, 3),
    ],
)
def test_leaving_oneself_out_gives_exactly_the_policy_gradient(name: str, prompts: int, size: int) -> None:
    true = gradient_of(lambda logits: float(softmax(logits) @ REWARDS))
    got = expected(name, "none", prompts=prompts, size=size) / (prompts * size)
    np.testing.assert_allclose(got, true, atol=1e-8)


def test_the_group_mean_shrinks_the_gradient_by_its_own_share() -> None:
    true = gradient_of(lambda logits: float(softmax(logits) @ REWARDS))
    got = expected("group_mean", "none", prompts=1, size=4) / 4
    np.testing.assert_allclose(got, (1 - 1 / 4) * true, atol=1e-8)


def test_dividing_by_the_groups_spread_is_another_objective() -> None:
    true = gradient_of(lambda logits: float(softmax(logits) @ REWARDS))
    got = expected("group_mean", "group_std", prompts=1, size=3) / 3
    ratio = got / true
    assert np.ptp(ratio) > 1e-3  # not even a multiple of it


def test_the_runner_up_is_the_gradient_of_the_best_of_the_group() -> None:
    def best_of_three(logits: np.ndarray) -> float:
        p = softmax(logits)
        outcomes = product(range(3), repeat=3)
        return float(sum(np.prod(p[list(actions)]) * REWARDS[list(actions)].max() for actions in outcomes))

    got = expected("second_best", "none", prompts=1, size=3)
    np.testing.assert_allclose(got, gradient_of(best_of_three), atol=1e-8)


def test_maxrl_is_the_log_likelihood_cut_after_one_term_less_than_the_group() -> None:
    size = 4

    def cut(logits: np.ndarray) -> float:
        failure = 1 - softmax(logits)[0]
        return -float(sum(failure**k / k for k in range(1, size)))

    got = expected("group_mean", "group_mean", prompts=1, size=size, rewards=np.array([1.0, 0.0])) / size
    np.testing.assert_allclose(got, gradient_of(cut, LOGITS[:2]), atol=1e-8)
