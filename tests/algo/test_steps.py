from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.algo.returns import step_advantages
from coterie.types import StepReward

LENGTH = 6
STEPS = st.lists(st.tuples(st.integers(0, LENGTH - 1), st.floats(-3, 3, width=16)), max_size=5)


def steps(pairs: list[tuple[int, float]], label: str = "") -> list[StepReward]:
    return [StepReward(end=end, value=value, label=label) for end, value in pairs]


def reference(group: list[list[tuple[int, float]]]) -> list[list[float]]:
    """DeepSeekMath §4.1.3, token by token."""
    pool = [value for rollout in group for _, value in rollout]
    mean, deviation = np.mean(pool or [0]), np.std(pool or [0])
    if deviation < 1e-6:
        return [[0.0] * LENGTH for _ in group]
    return [
        [sum((value - mean) / deviation for end, value in rollout if end >= t) for t in range(LENGTH)]
        for rollout in group
    ]


def test_the_worked_example() -> None:
    first, second = step_advantages(
        [steps([(1, 0.2), (3, 0.8)]), steps([(0, 0.6), (2, 0.4), (5, 1.0)])], [LENGTH, LENGTH]
    )
    np.testing.assert_allclose(first, [-0.7071, -0.7071, 0.7071, 0.7071, 0, 0], atol=1e-4)
    np.testing.assert_allclose(second, [0.7071, 0.7071, 0.7071, 1.4142, 1.4142, 1.4142], atol=1e-4)


@given(st.lists(STEPS, min_size=1, max_size=4))
def test_it_is_the_sum_of_the_normalised_scores_that_follow(group: list[list[tuple[int, float]]]) -> None:
    got = step_advantages([steps(rollout) for rollout in group], [LENGTH] * len(group))
    np.testing.assert_allclose(got, reference(group), atol=1e-6)


@given(st.lists(STEPS, min_size=1, max_size=4), st.floats(-3, 3, width=16))
def test_adding_a_constant_to_all_scores_changes_nothing(group: list[list[tuple[int, float]]], constant: float) -> None:
    moved = [[(end, value + constant) for end, value in rollout] for rollout in group]
    lengths = [LENGTH] * len(group)
    pool = [value for rollout in group for _, value in rollout]
    if np.std(pool or [0]) > 1e-3:
        before, after = (step_advantages([steps(s) for s in g], lengths) for g in (group, moved))
        np.testing.assert_allclose(before, after, atol=1e-6)


def test_equal_scores_teach_nothing() -> None:
    got = step_advantages([steps([(1, 1.0)]), steps([(0, 1.0), (2, 1.0)]), []], [3, 3, 0])
    assert [advantages.tolist() for advantages in got] == [[0, 0, 0], [0, 0, 0], []]


def test_divided_by_the_number_of_steps_more_steps_are_not_worth_more() -> None:
    group = [steps([(0, 1.0), (1, 1.0), (2, 1.0), (3, 1.0)]), steps([(3, 1.0)]), steps([(3, 0.0)] * 2)]
    summed = step_advantages(group, [4, 4, 4])
    assert summed[0][0] == pytest.approx(4 * summed[1][0])
    shared = step_advantages(group, [4, 4, 4], per_step=True)
    assert shared[0][0] == pytest.approx(shared[1][0])


def test_step_functions_are_pooled_apart_and_weighted() -> None:
    fine, coarse = [(0, 0.0), (1, 1.0)], [(2, 100.0)]
    both = [steps(fine, "fine") + steps(coarse, "coarse"), steps([(2, 300.0)], "coarse")]
    got = step_advantages(both, [3, 3], weights={"coarse": 0.5})
    np.testing.assert_allclose(got, [[0 - 0.5, 1 - 0.5, -0.5], [0.5, 0.5, 0.5]])
    off = step_advantages(both, [3, 3], weights={"coarse": 0.0})
    np.testing.assert_allclose(off, [[0, 1, 0], [0, 0, 0]])


def test_a_step_beyond_its_rollout_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ends at token 3 of a rollout with 3; expected 0 … 2"):
        step_advantages([steps([(3, 1.0)])], [3])
