"""Scales: divisors of centred rewards. All but `none` weight prompts differently from the plain gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp, lgamma, log

import numpy as np

from coterie.algo.baselines import Scored

EPSILON = 1e-6
"""Added to a standard deviation, as verl does; DeepSeekMath does not say."""
SMALLEST = 1e-6
"""A standard deviation that is not above this is none: dividing by it would blow a non-group baseline's centred
rewards up a million times."""

Scale = Callable[[Sequence[Scored]], list[float]]
"""Groups of the batch → the divisor of each group's centred rewards; inf makes its advantages 0."""


def spread(values: np.ndarray) -> float:
    """A safe divisor: the sample standard deviation (ddof = 1) plus 1e-6, or 1 where there is no spread."""
    deviation = float(values.std(ddof=1)) if values.size > 1 else 0.0
    return deviation + EPSILON if deviation > SMALLEST else 1.0


def _group_std(groups: Sequence[Scored]) -> list[float]:
    """The group's own spread (DeepSeekMath §4.1.2): for 0/1 rewards it weights a prompt by 1/sqrt(p(1-p))."""
    return [spread(group.rewards) for group in groups]


def _batch_std(groups: Sequence[Scored]) -> list[float]:
    """The spread of all rewards of the batch (arXiv 2508.08221): one scale for all, so no prompt is favoured."""
    return [spread(np.concatenate([group.rewards for group in groups]))] * len(groups)


def _group_mean(groups: Sequence[Scored]) -> list[float]:
    """MaxRL (arXiv 2602.02710): the group's mean, for rewards from 0 to 1; a group without success gives 0.

    Not below 1/G, which is one full success of 0/1 rewards, so that a mean of partial credits cannot explode."""
    means = [float(group.rewards.mean()) for group in groups]
    return [
        max(mean, 1 / group.rewards.size) if mean > 0 else np.inf for mean, group in zip(means, groups, strict=True)
    ]


def _bnpo(groups: Sequence[Scored]) -> list[float]:
    """BNPO (arXiv 2506.02864): the density at the group's mean p of Beta(1 + a/3, 1 + b/3), where Beta(a, b) has the
    mean and variance of the batch's group means. Groups that all succeed or all fail give 0."""
    means = np.array([group.rewards.mean() for group in groups])
    if means.min() < 0 or means.max() > 1:
        raise ValueError(
            f"scale = bnpo needs rewards from 0 to 1; a group has the mean {means[np.argmax(abs(means - 0.5))]:g}: "
            "use another scale, or reward parts and weights that stay within"
        )
    mean, variance = float(means.mean()), float(means.var())
    if variance < SMALLEST**2:
        return [1.0] * len(groups)
    prior_count = max(mean * (1 - mean) / variance - 1, 0.0)  # prior observations: a + b
    a, b = 1 + prior_count * mean / 3, 1 + prior_count * (1 - mean) / 3
    norm = lgamma(a + b) - lgamma(a) - lgamma(b)
    return [exp(norm + (a - 1) * log(p) + (b - 1) * log(1 - p)) if 0 < p < 1 else np.inf for p in map(float, means)]


def _none(groups: Sequence[Scored]) -> list[float]:
    """No division (Dr. GRPO, RLOO)."""
    return [1.0] * len(groups)


SCALES: dict[str, Scale] = {
    "group_std": _group_std,
    "batch_std": _batch_std,
    "group_mean": _group_mean,
    "bnpo": _bnpo,
    "none": _none,
}
"""Names of `advantage.scale`."""
