from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.grouping.gaussian import Gaussian, solve, solve_direct, solve_woodbury, variance

WAYS = [solve_direct, solve_woodbury, solve]


def random_case(seed: int, groups: int, width: int):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(width, width)) / np.sqrt(width)
    belief = Gaussian(rng.normal(size=width), 0.1 * root @ root.T + 1e-3 * np.eye(width))
    design = rng.normal(size=(groups, width))
    return belief, design, rng.normal(size=groups), rng.uniform(0.02, 0.5, groups)


def brute_force(belief: Gaussian, design, y, noise, group: int):
    """Mean and variance of y_own given the others, by conditioning the joint Gaussian."""
    joint = design @ belief.cov @ design.T + np.diag(noise)
    prior = design @ belief.mean
    rest = np.delete(np.arange(len(y)), group)
    gain = joint[group, rest] @ np.linalg.inv(joint[np.ix_(rest, rest)])
    return prior[group] + gain @ (y[rest] - prior[rest]), joint[group, group] - gain @ joint[rest, group]


@pytest.mark.parametrize("way", WAYS)
@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(1, 9))
def test_leaving_one_group_out_equals_brute_force(way, seed, groups, width):
    belief, design, y, noise = random_case(seed, groups, width)
    residual = y - design @ belief.mean
    correction, spread = way(belief, design, residual, noise).without_own(residual)
    for group in range(groups):
        mean, var = brute_force(belief, design, y, noise, group)
        assert design[group] @ belief.mean + correction[group] == pytest.approx(mean, abs=1e-8)
        assert spread[group] == pytest.approx(var, abs=1e-8)


@pytest.mark.parametrize("way", WAYS)
def test_the_worked_example_to_four_digits(way):
    design = np.array([[1, 1, 0], [1, 1, 0], [1, 0, 1]], dtype=float)
    belief = Gaussian(np.array([0.5, 0, 0]), np.diag([0.08, 0.02, 0.02]))
    y, own_noise = np.array([1, 0.5, 0]), 0.25 / 2
    noise = np.full(3, 0.03 + own_noise)
    residual = y - design @ belief.mean
    correction, spread = way(belief, design, residual, noise).without_own(residual)
    mean, var = design @ belief.mean + correction, spread - own_noise
    trust = var / (var + 0.25)
    assert mean.round(4).tolist() == [0.3942, 0.5571, 0.6127]
    assert var.round(4).tolist() == [0.0805, 0.0805, 0.0939]
    assert trust.round(4).tolist() == [0.2436, 0.2436, 0.2731]
    assert ((1 - trust[1]) * mean[1] + trust[1] * np.array([0, 1])).round(4).tolist() == [0.4214, 0.6650]
    assert belief.condition(design, residual, noise).mean.round(4).tolist() == [0.4897, 0.0534, -0.0560]


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 9))
def test_an_update_is_bayes_rule_in_information_form(seed, groups, width):
    belief, design, y, noise = random_case(seed, groups, width)
    after = belief.condition(design, y - design @ belief.mean, noise)
    precision = np.linalg.inv(belief.cov) + design.T @ (design / noise[:, None])
    mean = np.linalg.solve(precision, np.linalg.solve(belief.cov, belief.mean) + design.T @ (y / noise))
    np.testing.assert_allclose(after.cov, np.linalg.inv(precision), atol=1e-8)
    np.testing.assert_allclose(after.mean, mean, atol=1e-8)
    assert (after.cov == after.cov.T).all()


def test_time_lets_an_offset_fade_to_its_prior_and_the_root_wander():
    belief = Gaussian(np.array([0.2, 0.3]), np.array([[0.01, 0.002], [0.002, 0.01]]))
    prior, memory, walk = np.array([0.08, 0.04]), np.array([np.inf, 40.0]), np.array([5e-4, 0.0])
    later = belief.advance(4000.0, prior, memory, walk)
    np.testing.assert_allclose(later.mean, [0.2, 0.0], atol=1e-12)
    np.testing.assert_allclose(later.cov, [[0.01 + 4000 * 5e-4, 0], [0, 0.04]], atol=1e-12)
    half = belief.advance(40 * np.log(2), prior, memory, walk)
    assert half.mean[1] == pytest.approx(0.15)
    assert half.cov[1, 1] == pytest.approx(0.25 * 0.01 + 0.75 * 0.04)
    assert belief.advance(0.0, prior, memory, walk) is belief


def test_variance_is_that_of_the_prediction():
    belief, design, _, _ = random_case(0, 3, 4)
    np.testing.assert_allclose(variance(belief, design), np.diagonal(design @ belief.cov @ design.T))
