"""A metric over the steps of a run, with the statistics that rules need."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

WINDOW = 10
"""Steps that count as `now`."""
PERSISTENT = 3
"""Steps in a row that must be beyond an alarm: a single odd step is noise."""


@dataclass(frozen=True, slots=True)
class Series:
    """The values of one metric, in the order of steps; steps that lack it are left out."""

    name: str
    steps: NDArray[np.int64]
    """[S]"""
    values: NDArray[np.float64]
    """[S] finite."""

    @classmethod
    def of(cls, name: str, pairs: Iterable[tuple[int, float]]) -> Series:
        rows = list(pairs)
        return cls(
            name,
            np.asarray([step for step, _ in rows], dtype=np.int64),
            np.asarray([value for _, value in rows], dtype=np.float64),
        )

    def __len__(self) -> int:
        return len(self.values)

    def now(self, window: int = WINDOW) -> float:
        """Mean of the last steps."""
        return float(self.values[-window:].mean())

    def start(self, window: int = WINDOW) -> float:
        """Mean of the first steps."""
        return float(self.values[:window].mean())

    def plus(self, other: Series, name: str) -> Series:
        """The sum on the steps that both have."""
        steps, mine, theirs = np.intersect1d(self.steps, other.steps, return_indices=True)
        return Series(name, steps, self.values[mine] + other.values[theirs])


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The last part of a series minus its first part."""

    first: float
    last: float
    error: float
    """Standard error of the difference, taking steps as independent."""

    @property
    def difference(self) -> float:
        return self.last - self.first

    def clear(self, errors: float = 2.0) -> bool:
        """True if the difference is larger than this many standard errors."""
        return abs(self.difference) > errors * self.error


def change(values: ArrayLike, least: int = 5) -> Change:
    """Means of the first and the last quarter, of at least `least` values each where there are so many.

    >>> change([0, 0, 0, 0, 0, 1, 1, 1, 1, 1]).difference
    1.0
    """
    array = np.asarray(values, dtype=np.float64)
    size = min(max(len(array) // 4, least), max(len(array) // 2, 1))
    first, last = array[:size], array[-size:]
    spread = first.var(ddof=1) + last.var(ddof=1) if size > 1 else 0.0
    return Change(first=float(first.mean()), last=float(last.mean()), error=float(np.sqrt(spread / size)))


def streak(mask: ArrayLike) -> int:
    """Number of true values at the end, without a gap.

    >>> streak([True, False, True, True])
    2
    """
    array = np.asarray(mask, dtype=bool)
    gaps = np.flatnonzero(~array)
    return len(array) if not len(gaps) else len(array) - 1 - int(gaps[-1])


def longest(mask: ArrayLike) -> int:
    """Length of the longest run of true values.

    >>> longest([True, True, False, True])
    2
    """
    best = now = 0
    for value in np.asarray(mask, dtype=bool):
        now = now + 1 if value else 0
        best = max(best, now)
    return best


def preceding_median(values: NDArray[np.float64], window: int = 20, least: int = 5) -> NDArray[np.float64]:
    """[S] median of up to `window` values before each one; NaN where fewer than `least` precede it."""
    medians = np.full(len(values), np.nan)
    for at in range(least, len(values)):
        medians[at] = np.median(values[max(0, at - window) : at])
    return medians


def running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """[S - window + 1] mean of every `window` values in a row; empty when there are fewer."""
    if len(values) < window:
        return np.empty(0)
    sums = np.cumsum(np.concatenate([[0.0], values]))
    return (sums[window:] - sums[:-window]) / window
