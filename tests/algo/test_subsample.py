"""Russian roulette: who stays, what those count for then, and how much noise it adds at most."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from coterie.algo.subsample import keep_probabilities, subsample
from coterie.types import Credit

SIZES = arrays(np.float64, st.integers(1, 12), elements=st.just(0.0) | st.floats(1e-6, 100))


def credits_of(advantages: list[float | tuple[float, ...]]) -> list[Credit]:
    return [Credit(rollout_id=str(k), advantage=a, clip_low=0.2, clip_high=0.3) for k, a in enumerate(advantages)]


def drawn(value: float, count: int) -> dict[str, float]:
    return {str(k): value for k in range(count)}


def test_a_worked_example() -> None:
    """Advantages 2, -0.1, 0.1, 0 have the root mean square √(4.02 / 4) = 1.00250; half of it is the threshold."""
    assert keep_probabilities(np.array([2.0, 0.1, 0.1, 0.0]), 0.5).tolist() == pytest.approx(
        [1, 0.1995019, 0.1995019, 0], abs=1e-7
    )
    subsampled = subsample(credits_of([2.0, -0.1, 0.1, 0.0]), drawn(0.19, 4), 0.5)
    assert [credit.advantage for credit in subsampled.credits] == pytest.approx([2.0, -0.501248, 0.501248, 0.0])
    # (4 + 2 · 0.1 · 0.501248) / 4.02
    assert subsampled.metrics == {"subsample/kept": 1.0, "subsample/power": pytest.approx(1.0199625)}
    lost = subsample(credits_of([2.0, -0.1, 0.1, 0.0]), drawn(0.2, 4), 0.5)
    assert [credit.advantage for credit in lost.credits] == [2.0, 0.0, 0.0, 0.0]
    assert lost.metrics["subsample/kept"] == pytest.approx(1 / 3)


def test_tokens_with_advantages_of_their_own_stay_together() -> None:
    """Root mean squares of 1, 0.1 and 0.1: the threshold at 1 is √(1.02 / 3) = 0.583095."""
    credits = credits_of([(1.0, -1.0), (0.1, -0.1, 0.1), 0.1])
    kept, *_ = (subsample(credits, drawn(draw, 3), 1.0).credits for draw in (0.17,))
    assert kept[0].advantage == (1.0, -1.0)
    assert kept[1].advantage == pytest.approx((0.583095, -0.583095, 0.583095))
    assert subsample(credits, drawn(0.18, 3), 1.0).credits[1].advantage == 0.0


@settings(deadline=None)
@given(SIZES, st.floats(0.01, 2))
def test_on_average_nothing_changes_and_the_noise_is_bounded(sizes: np.ndarray, roulette: float) -> None:
    """Integrated exactly over the draw: between two probabilities the outcome is constant."""
    signs = np.where(np.arange(len(sizes)) % 2, -1.0, 1.0)
    advantages = signs * sizes
    credits = credits_of(advantages.tolist())
    edges = np.unique([0.0, *keep_probabilities(sizes, roulette), 1.0])
    mean, square = np.zeros(len(sizes)), np.zeros(len(sizes))
    for low, high in pairwise(edges):
        sample = subsample(credits, drawn((low + high) / 2, len(sizes)), roulette)
        got = np.array([float(np.mean(credit.advantage)) for credit in sample.credits])
        mean += (high - low) * got
        square += (high - low) * got**2
    np.testing.assert_allclose(mean, advantages, rtol=1e-9, atol=1e-12 * sizes.max(initial=0))
    before = float(np.sum(sizes**2))
    assert np.sum(square) <= before * (1 + roulette**2 / 4) * (1 + 1e-9)
    if sizes.any():
        assert np.sum(square) == pytest.approx(before * sample.metrics["subsample/power"])


def test_without_any_advantage_nothing_is_played() -> None:
    for credits in ([], credits_of([0.0, 0.0])):
        subsampled = subsample(credits, drawn(0.5, 2), 1.0)
        assert list(subsampled.credits) == credits
        assert subsampled.metrics == {}


def test_equal_advantages_all_stay_below_one() -> None:
    subsampled = subsample(credits_of([1.0, -1.0, 1.0]), drawn(0.999, 3), 1.0)
    assert [credit.advantage for credit in subsampled.credits] == [1.0, -1.0, 1.0]
    assert subsampled.metrics == {"subsample/kept": 1.0, "subsample/power": 1.0}
