"""Which expert to believe: weights on the simplex, learned from prediction error before each update."""

from __future__ import annotations

import numpy as np

from coterie.algo.grouping.rollouts import Groups
from coterie.algo.grouping.state import Floats, Ints, State

BUCKETS = 6
"""Seen before or not, times 1, 2-3, 4 or more rollouts: an expert that lives on siblings is good in the last only."""
_PRIOR_ERROR = 0.02
"""Squared error by which a pseudo-rollout holds the weights at their start."""


def buckets(groups: Groups) -> Ints:
    """[N] bucket of each rollout; reads nothing of its reward."""
    size = groups.size[groups.of]
    return 3 * (groups.rows[groups.of] >= 0).astype(np.int64) + (size >= 2).astype(np.int64) + (size >= 4)


def simplex_weights(gram: Floats) -> Floats:
    """[K] argmin of alᵀ gram al over al >= 0, sum al = 1, for a positive definite gram; exact, by active set.

    >>> simplex_weights(np.diag([1.0, 3.0])).tolist()
    [0.75, 0.25]
    """
    count = gram.shape[0]
    weights = np.zeros(count)
    weights[int(np.argmin(np.diagonal(gram)))] = 1.0
    free = weights > 0
    for _ in range(4 * count * count):
        aim = np.zeros(count)
        solved = np.linalg.solve(gram[np.ix_(free, free)], np.ones(int(free.sum())))
        aim[free] = solved / solved.sum()
        if (aim[free] >= 0).all():
            weights = aim
            slope = gram @ weights
            gap = slope - weights @ slope
            worst = int(np.argmin(np.where(free, np.inf, gap)))
            if free.all() or gap[worst] >= -1e-12 * abs(weights @ slope):
                break
            free[worst] = True
        else:
            falling = free & (aim < 0)
            reach = np.full(count, np.inf)
            reach[falling] = weights[falling] / (weights[falling] - aim[falling])
            first = int(np.argmin(reach))
            weights = weights + reach[first] * (aim - weights)
            weights[first], free[first] = 0.0, False
    return weights


class Stack:
    """b = Σ_k al_k b_k with al learned per bucket from Σ W e eᵀ, e_k = b_k - r, forgetting by `keep` a step.

    Σ W (r - b)² is the empirical power of the gradient, so score-norm weights W make al minimise gradient variance;
    W = 1 minimises squared error, which is worse for peaked policies.
    """

    def __init__(self, start: Floats, *, keep: float = 0.98, ridge: float = 10.0) -> None:
        """`start` [K]: weights before anything is learned, held by `ridge` pseudo-rollouts."""
        self.keep, self.ridge, self.start = keep, ridge, start
        self.gram = np.zeros((BUCKETS, start.size, start.size))
        self.weights = np.tile(self.start, (BUCKETS, 1))

    def overall(self) -> Floats:
        """[K] the experts' weights, averaged over the buckets by what each has seen."""
        seen = np.einsum("zkk->z", self.gram)
        return np.average(self.weights, axis=0, weights=seen) if seen.sum() > 0 else self.start

    def combine(self, predictions: Floats, bucket: Ints) -> Floats:
        """[N] from predictions [K, N]."""
        return np.einsum("nk,kn->n", self.weights[bucket], predictions)

    def observe(self, predictions: Floats, rewards: Floats, weights: Floats, bucket: Ints) -> None:
        """Learn from predictions [K, N] that were made before the rewards [N] were used."""
        error = predictions - rewards
        for z in np.unique(bucket):
            chosen = bucket == z
            own = error[:, chosen]
            self.gram[z] = self.keep * self.gram[z] + (own * weights[chosen]) @ own.T
            self.weights[z] = self._solve(self.gram[z])

    def _solve(self, gram: Floats) -> Floats:
        """Ridge to the start: |al - start|² is alᵀ (I - 1 startᵀ - start 1ᵀ + |start|² 1 1ᵀ) al on the simplex."""
        ones, start = np.ones(self.start.size), self.start
        pull = (
            np.eye(start.size) - np.outer(ones, start) - np.outer(start, ones) + (start @ start) * np.outer(ones, ones)
        )
        held = gram + self.ridge * _PRIOR_ERROR * pull
        return simplex_weights(held + 1e-9 * (np.trace(held) + 1e-9) * np.eye(start.size))

    def widen(self, factor: float) -> None:
        self.gram /= factor

    def state(self) -> State:
        return {"gram": self.gram.copy(), "weights": self.weights.copy()}, {}

    def load(self, state: State) -> None:
        self.gram, self.weights = state[0]["gram"].copy(), state[0]["weights"].copy()
