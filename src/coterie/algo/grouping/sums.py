"""What all past rollouts add up to, forgetting: how wrong baselines were, what rollouts weigh, what they earn."""

from __future__ import annotations

import numpy as np

from coterie.algo.grouping.rollouts import Groups
from coterie.algo.grouping.state import Floats


class RunningSums:
    """Rewards in a range of 1. `keep`: share of the past that a step leaves."""

    def __init__(self, keep: float) -> None:
        self.keep = keep
        self.table = np.zeros((3, 2))
        """[squared error, rollouts], [weight, rollouts], [weighted reward, weight]."""

    @property
    def spread(self) -> float:
        """Mean squared error of the baseline, held at a quarter by one pseudo-rollout."""
        squares, count = self.table[0]
        return float((squares + 0.25) / (count + 1.0))

    @property
    def weight(self) -> float | None:
        """Mean weight of a rollout; None before the first."""
        total, count = self.table[1]
        return float(total / count) if count > 0 else None

    @property
    def known(self) -> float:
        """Mean reward, weighted; a half before the first."""
        total, weight = self.table[2]
        return float(total / weight) if weight > 0 else 0.5

    def add(self, groups: Groups, errors: Floats, weights: Floats | None) -> None:
        """Of the N usable rollouts of a step: errors [N] of the baseline, and raw weights [N]; None: all alike."""
        count = float(groups.of.size)
        step = [
            ((errors**2).sum(), count),
            (count if weights is None else weights.sum(), count),
            (groups.weights @ groups.rewards, groups.weights.sum()),
        ]
        self.table = self.keep * self.table + np.array(step)

    def restart(self) -> None:
        """Forget what is in units of the reward; weights are not."""
        self.table[0], self.table[2] = 0.0, 0.0

    def widen(self, factor: float) -> None:
        """Trust the past errors less."""
        self.table[0] /= factor
