"""What rules ask of a series, on numbers that can be checked by hand."""

from __future__ import annotations

import numpy as np
from records_by_hand import series

from coterie.doctor.series import change, longest, preceding_median, running_mean, streak


def test_change_compares_the_quarters() -> None:
    moved = change([1, 3, 1, 3, 1, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 5, 7, 5, 7, 5])
    assert (moved.first, moved.last) == (1.8, 5.8)
    # Both fifths have the sample variance 1.2, so the error is sqrt((1.2 + 1.2) / 5).
    assert np.isclose(moved.error, np.sqrt(2.4 / 5))
    assert moved.clear()
    assert not moved.clear(6)


def test_change_of_very_few_values_has_no_error_and_no_overlap() -> None:
    assert change([1.0]).difference == 0
    moved = change([1.0, 2.0])
    assert (moved.first, moved.last, moved.error) == (1.0, 2.0, 0.0)


def test_streaks() -> None:
    assert [streak([]), streak([False]), streak([True]), streak([True, False, True])] == [0, 0, 1, 1]
    assert [longest([]), longest([False]), longest([True, True, False, True])] == [0, 0, 2]


def test_the_median_is_of_what_came_before() -> None:
    medians = preceding_median(np.array([1.0, 2, 3, 4, 5, 100, 6]))
    assert np.isnan(medians[:5]).all()
    assert medians[5:].tolist() == [3.0, 3.5]


def test_running_mean() -> None:
    assert running_mean(np.array([1.0, 2, 3, 4]), 2).tolist() == [1.5, 2.5, 3.5]
    assert running_mean(np.array([1.0]), 2).size == 0


def test_the_sum_of_two_series_is_on_the_steps_of_both() -> None:
    total = series("a", [1, 2, 3]).plus(series("b", [10, 20], first=2), "a + b")
    assert (total.steps.tolist(), total.values.tolist()) == ([2, 3], [12.0, 23.0])
