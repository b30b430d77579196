"""Clip bounds follow evidence: the formula in numbers, its limits, and that no reward of the step moves it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.grouping.reward_models import PartwiseBaseline, trust_factors
from grouping_worlds import COLUMNS, features, rollouts, trained


def test_the_factors_of_a_hand_worked_step():
    """Left of the uncertainty: 1/4, 1/2, 3/4, mean 1/2; trust 3 makes 4^(1/4), 4^0 and 4^(-1/4)."""
    factors = trust_factors(np.array([0.02, 0.05, 0.09]), np.array([0.08, 0.1, 0.12]), 3.0)
    np.testing.assert_allclose(factors, [np.sqrt(2.0), 1.0, 1 / np.sqrt(2.0)], rtol=1e-14)
    assert factors.dtype == np.float64


def test_off_means_exactly_off_and_less_than_nothing_is_refused():
    assert trust_factors(np.array([0.1, 0.0]), np.ones(2), 0.0).tolist() == [1.0, 1.0]
    assert trust_factors(np.zeros(0), np.zeros(0), 1.0).size == 0
    with pytest.raises(ValueError, match=r"trust is -1\.0"):
        trust_factors(np.ones(1), np.ones(1), -1.0)


@given(st.lists(st.floats(0, 3), min_size=1, max_size=9), st.floats(0, 5))
def test_factors_stay_within_their_limits_and_their_geometric_mean_is_one(left, trust):
    factors = trust_factors(np.array(left), np.ones(len(left)), trust)
    assert (factors <= (1 + trust) * (1 + 1e-12)).all()
    assert (factors >= (1 - 1e-12) / (1 + trust)).all()
    assert np.log(factors).mean() == pytest.approx(0.0, abs=1e-12)
    order = np.argsort(np.clip(left, 0, 1))
    assert (np.diff(factors[order]) <= 1e-12).all()


def test_evidence_is_the_variance_of_the_hierarchy_written_out():
    baseline, _, table = trained("empirical_bayes")
    hierarchy, rows = baseline.hierarchies["empirical_bayes"], table[:5]
    design = np.hstack([hierarchy.tree.membership[hierarchy.tree.locate(rows)], rows[:, hierarchy.linear]])
    now, before = baseline.evidence(rows, hierarchy.time)
    np.testing.assert_allclose(now, np.diag(design @ hierarchy.belief.cov @ design.T))
    np.testing.assert_allclose(before, np.diag(design @ np.diag(hierarchy._prior()[0]) @ design.T))
    assert (now < before).all()
    assert (baseline.evidence(rows, hierarchy.time + 500.0)[0] > now).all()


def test_a_region_that_was_visited_is_trusted_more_than_one_that_never_was():
    rng, table = np.random.default_rng(0), features(40)
    table[:, 3] = np.where(np.arange(40) < 20, -1.0, 1.0)
    parts = PartwiseBaseline(COLUMNS, preset="empirical_bayes")
    assert trust_factors(*parts.evidence(table, 0.0), 1.0) == pytest.approx(np.ones(40))
    for time in range(8):
        parts.observe({"": rollouts(rng, table, list(range(8)), [2] * 8, float(time))})
    table[:, :3] = 0.0
    factors = trust_factors(*parts.evidence(table, 8.0), 1.0)
    assert factors[:20].min() > 1.0 > factors[20:].max()


def test_presets_without_regions_have_no_evidence():
    with pytest.raises(ValueError, match="preset 'tracker' has no regions"):
        trained("tracker")[0].evidence(np.zeros((1, 4)), 0.0)
