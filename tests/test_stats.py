from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.stats import bootstrap_interval, correlation, paired_test, pass_at_k


def test_pass_at_k_of_the_paper():
    assert round(pass_at_k(16, 3, 4), 4) == 0.6071
    assert pass_at_k(8, 0, 8) == 0.0
    assert pass_at_k(8, 1, 8) == 1.0


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_counts_the_draws(case):
    n, c, k = case
    draws = list(combinations([index < c for index in range(n)], k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(draw) for draw in draws) / len(draws), abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_pass_at_k_refuses(n, c, k):
    with pytest.raises(ValueError, match=rf"n={n}, c={c}, k={k}"):
        pass_at_k(n, c, k)


def test_bootstrap_matches_the_normal_interval():
    values = np.random.default_rng(1).random(400)
    value, low, high = bootstrap_interval(values, seed=0)
    half = 1.96 * values.std() / 20
    assert value == values.mean()
    assert low == pytest.approx(value - half, abs=0.1 * half)
    assert high == pytest.approx(value + half, abs=0.1 * half)


def test_bootstrap_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    inside = 0
    for seed in range(200):
        _, low, high = bootstrap_interval(rng.random(40) < 0.4, seed, draws=500)
        inside += low <= 0.4 <= high
    assert 175 <= inside <= 200


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=20), st.integers(0, 5))
def test_bootstrap_stays_inside_the_values(values, seed):
    interval = bootstrap_interval(values, seed, draws=200)
    value, low, high = interval
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert value == pytest.approx(np.mean(values))
    assert interval == bootstrap_interval(values, seed, draws=200)


def test_paired_test_sees_a_gain_and_no_gain():
    before = np.tile([0.0, 0.25, 0.5, 0.0], 15)
    gain = paired_test(before, before + np.tile([0.5, 0.25, 0.0], 20))
    assert gain.difference == pytest.approx(0.25)
    assert 0.15 < gain.low < gain.difference < gain.high < 0.35
    assert gain.p_value < 0.001
    same = paired_test(before, before)
    assert (same.difference, same.low, same.high, same.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_sign_flips_match_the_enumeration():
    gain = np.array([0.5, 0.25, -0.25, 0.75, 0.0, 0.5, -0.5, 0.25])
    sums = [abs(np.dot(signs, gain)) for signs in product((-1, 1), repeat=len(gain))]
    exact = np.mean([value >= abs(gain.sum()) - 1e-12 for value in sums])
    assert paired_test(np.zeros(8), gain).p_value == pytest.approx(exact, abs=0.015)


def test_p_values_are_small_by_chance_about_5_times_in_100():
    rng = np.random.default_rng(3)
    small = sum(paired_test(rng.random(30), rng.random(30), seed, draws=400).p_value < 0.05 for seed in range(200))
    assert small <= 22


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ([1.0], [1.0, 2.0], "same prompts twice, got 1 before and 2 after"),
        ([], [], r"before must be a list of at least one number, got shape \(0,\)"),
        ([1.0], [float("nan")], r"after\[0\] is not finite"),
        ([[1.0]], [1.0], r"got shape \(1, 1\)"),
    ],
)
def test_paired_test_refuses(before, after, message):
    with pytest.raises(ValueError, match=message):
        paired_test(before, after)


def test_no_draws():
    with pytest.raises(ValueError, match="draws = 0"):
        bootstrap_interval([1.0], 0, draws=0)


def test_a_correlation_is_that_of_the_pairs_with_both_values() -> None:
    first, second = np.random.default_rng(1).normal(size=(2, 50))
    expected = ((first - first.mean()) * (second - second.mean())).mean() / first.std() / second.std()
    assert correlation([*first.tolist(), None, 9.0], [*second.tolist(), 9.0, None]) == pytest.approx(expected)
    assert correlation(first[:8].tolist(), first[:8].tolist()) == pytest.approx(1.0)
    assert correlation([*first[:7].tolist(), None], second[:8].tolist()) is None
    assert correlation(first.tolist(), [0.5] * 50) is None
    assert correlation([], []) is None
