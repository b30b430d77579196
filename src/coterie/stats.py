"""Estimates with intervals and paired tests over prompts, the unit that is drawn independently."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import ArrayLike, NDArray

FEWEST = 8
"""Prompts of a paired test below which no p-value is shown: with 4 it cannot be below 0.125. Pairs of a correlation
below which none is: of 8 without any, one in twenty has more than 0.7 either way."""
_BLOCK = 2**20
"""Resampled values held at once: 8 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTest:
    """Difference of two evaluations, after minus before, on the same prompts."""

    difference: float
    low: float
    high: float
    """Ends of the 95 % bootstrap interval of the difference."""
    p_value: float
    """Two-sided, of no difference, from random sign flips; never below 1 / (draws + 1)."""
    metric: str = "pass@1"
    """Metric of each prompt: `pass@1` or `reward`."""
    prompts: int = FEWEST
    """Prompts that were compared."""

    @property
    def conclusive(self) -> bool:
        """True if there are enough prompts for a test: with n prompts p is never below 2 / 2^n."""
        return self.prompts >= FEWEST

    @property
    def significant(self) -> bool:
        """True if p is below 0.05, with enough prompts for a test."""
        return self.conclusive and self.p_value < 0.05


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of k attempts is right, from c right ones of n.

    1 - C(n-c, k) / C(n, k), as in Chen et al. 2021 (Evaluating Large Language Models Trained on Code, eq. 1).

    >>> round(pass_at_k(16, 3, 4), 4)
    0.6071
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass_at_k(n={n}, c={c}, k={k}) needs 0 <= c <= n and 1 <= k <= n")
    if n - c < k:
        return 1.0
    return 1.0 - prod((n - c - i) / (n - i) for i in range(k))


def bootstrap_interval(values: ArrayLike, seed: int, draws: int = 10_000) -> tuple[float, float, float]:
    """Mean of the values with its 95 % percentile bootstrap interval.

    Args:
        values: [N] one number per prompt, e.g. its share of right attempts.
        seed: same seed, same interval.
        draws: resamples.

    Returns:
        (value, low, high); for a single prompt the interval has no width, and says nothing.
    """
    array = _checked(values, "values")
    means = np.concatenate(
        [array[rng.integers(0, len(array), (rows, len(array)))].mean(1) for rng, rows in _blocks(array, seed, draws)]
    )
    low, high = np.percentile(means, (2.5, 97.5))
    return float(array.mean()), float(low), float(high)


_T = [
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
]
"""The 97.5 % point of Student's t for 1 … 30 degrees of freedom."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over independent runs with its 95 % interval."""

    value: float
    low: float
    high: float
    count: int
    """Runs; with a single one the interval has no width, and says nothing."""


def t_interval(values: ArrayLike) -> Estimate:
    """Mean of a few independent runs with Student's 95 % interval, where a bootstrap would be too narrow.

    >>> estimate = t_interval([1.0, 2.0, 3.0])  # 2 ± 4.303 / √3
    >>> (estimate.value, round(estimate.low, 3), round(estimate.high, 3))
    (2.0, -0.484, 4.484)
    """
    array = _checked(values, "values")
    count, mean = len(array), float(array.mean())
    if count == 1:
        return Estimate(value=mean, low=mean, high=mean, count=1)
    quantile = _T[count - 2] if count - 2 < len(_T) else 1.96 + 2.4 / (count - 1)
    half = quantile * float(array.std(ddof=1)) / count**0.5
    return Estimate(value=mean, low=mean - half, high=mean + half, count=count)


def paired_test(
    before: ArrayLike, after: ArrayLike, seed: int = 0, draws: int = 10_000, *, metric: str = "pass@1"
) -> PairedTest:
    """Paired test of two evaluations: bootstrap for the interval, sign-flip permutation for the p-value.

    Args:
        before: [N] one number per prompt.
        after: [N] the same prompts in the same order.
        metric: name of what the numbers are.
    """
    first, second = _checked(before, "before"), _checked(after, "after")
    if len(first) != len(second):
        raise ValueError(f"paired_test needs the same prompts twice, got {len(first)} before and {len(second)} after")
    gain = second - first
    difference, low, high = bootstrap_interval(gain, seed, draws)
    # The tolerance lets flips that give the same sum in another order of rounding count as equal.
    bar = abs(gain.sum()) - 1e-9 * max(1.0, float(np.abs(gain).sum()))
    extreme = 0
    for rng, rows in _blocks(gain, seed + 1, draws):
        signs = rng.integers(0, 2, (rows, len(gain)), dtype=np.int8) * 2.0 - 1.0
        extreme += int((np.abs(signs @ gain) >= bar).sum())
    return PairedTest(
        difference=difference,
        low=low,
        high=high,
        p_value=(extreme + 1) / (draws + 1),
        metric=metric,
        prompts=len(gain),
    )


def has_variance(rewards: Sequence[float]) -> bool:
    """True if rewards differ beyond rounding: a group whose rewards do not has no advantage, and no gradient.

    >>> has_variance([0.25, 0.5]), has_variance([0.5, 0.5])
    (True, False)
    """
    return max(rewards) - min(rewards) >= 1e-8


def correlation(first: Sequence[float | None], second: Sequence[float | None]) -> float | None:
    """Pearson's correlation of the pairs in which both have a value; None of fewer than `FEWEST`, or where one side is
    the same in all.

    >>> correlation([0.0, 1.0, None, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 5.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    -1.0
    """
    pairs = [pair for pair in zip(first, second, strict=True) if None not in pair]
    values = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    if len(pairs) < FEWEST or not all(has_variance(column.tolist()) for column in values.T):
        return None
    scaled = (values - values.mean(axis=0)) / values.std(axis=0)
    return float(np.clip(scaled.prod(axis=1).mean(), -1, 1))


def _checked(values: ArrayLike, name: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name} must be a list of at least one number, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}[{int(np.argmin(np.isfinite(array)))}] is not finite")
    return array


def _blocks(array: NDArray[np.float64], seed: int, draws: int) -> Iterator[tuple[np.random.Generator, int]]:
    """Blocks of draws that bound the memory, all from one stream."""
    if draws < 1:
        raise ValueError(f"draws = {draws}; at least one resample is needed")
    rng = np.random.Generator(np.random.PCG64(seed))
    step = max(1, _BLOCK // len(array))
    for start in range(0, draws, step):
        yield rng, min(step, draws - start)


Floats = NDArray[np.float64]


Ints = NDArray[np.int64]
