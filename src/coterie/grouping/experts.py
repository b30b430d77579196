"""Experts and their mixture: stateless baselines, a per-prompt tracker, and simplex weights learned from errors."""

from __future__ import annotations

import numpy as np

from coterie.grouping.arrays import Groups, State
from coterie.stats import Floats, Ints

BUCKETS = 6
"""Prompt seen before or not, times 1, 2-3, 4 or more rollouts: experts that use siblings need the last."""
_PRIOR_ERROR = 0.02
"""Squared error by which a pseudo-rollout holds the weights at their start."""


def buckets(groups: Groups) -> Ints:
    """[N] bucket of each rollout, independent of its reward."""
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


class Mixture:
    """Mixture of experts, b = Σ_k al_k b_k, with al learned per bucket from Σ W e eᵀ, e_k = b_k - r, decayed by `keep`.

    Σ W (r - b)² is the empirical power of the gradient, so score-norm weights W make al minimise gradient variance;
    W = 1 minimises squared error, which is worse for peaked policies.
    """

    def __init__(self, start: Floats, *, keep: float = 0.98, ridge: float = 10.0) -> None:
        """`start` [K]: weights before anything is learned, held by `ridge` pseudo-rollouts."""
        self.keep, self.ridge, self.start = keep, ridge, start
        self.gram = np.zeros((BUCKETS, start.size, start.size))
        self.weights = np.tile(self.start, (BUCKETS, 1))

    def overall(self) -> Floats:
        """[K] the experts' weights, averaged over the buckets by their evidence."""
        evidence = np.einsum("zkk->z", self.gram)
        return np.average(self.weights, axis=0, weights=evidence) if evidence.sum() > 0 else self.start

    def combine(self, predictions: Floats, bucket: Ints) -> Floats:
        """[N] from predictions [K, N]."""
        return np.einsum("nk,kn->n", self.weights[bucket], predictions)

    def observe(self, predictions: Floats, rewards: Floats, weights: Floats, bucket: Ints) -> None:
        """Update the weights by predictions [K, N] that were made before the rewards [N] were used."""
        error = predictions - rewards
        for z in np.unique(bucket):
            chosen = bucket == z
            bucket_error = error[:, chosen]
            self.gram[z] = self.keep * self.gram[z] + (bucket_error * weights[chosen]) @ bucket_error.T
            self.weights[z] = self._solve(self.gram[z])

    def _solve(self, gram: Floats) -> Floats:
        """Ridge to the start: |al - start|² is alᵀ (I - 1 startᵀ - start 1ᵀ + |start|² 1 1ᵀ) al on the simplex."""
        ones, start = np.ones(self.start.size), self.start
        pull = (
            np.eye(start.size) - np.outer(ones, start) - np.outer(start, ones) + (start @ start) * np.outer(ones, ones)
        )
        regularised = gram + self.ridge * _PRIOR_ERROR * pull
        return simplex_weights(regularised + 1e-9 * (np.trace(regularised) + 1e-9) * np.eye(start.size))

    def inflate_variance(self, factor: float) -> None:
        self.gram /= factor

    def state(self) -> State:
        return {"gram": self.gram.copy(), "weights": self.weights.copy()}, {}

    def load(self, state: State) -> None:
        self.gram, self.weights = state[0]["gram"].copy(), state[0]["weights"].copy()


def spo_decay(age: Floats | float, half_life: float, low: float = 0.875, high: float = 0.96) -> Floats:
    """Decay of SPO's tracker, rho = clamp(2^(-age / half_life), low, high). In nats SPO's half-life is .06.

    >>> round(float(spo_decay(0.006, 0.06)), 4)
    0.933
    """
    return np.clip(np.exp2(-np.asarray(age, dtype=np.float64) / half_life), low, high)


class PromptTracker:
    """SPO's tracker (2509.13232, §3): a decayed Beta count of each prompt.

    v = a / (a + b), read before the update; then a ← rho a + Σr, b ← rho b + Σ(1 - r). A prompt never seen gets the
    running mean of all rewards as one pseudo-rollout, instead of the paper's offline pass of 8 rollouts a prompt.
    """

    def __init__(self, half_life: float | None = None, rho: float = 0.875) -> None:
        """`half_life` in units of the clock; None keeps `rho` at every visit, 1 never forgets."""
        self.half_life, self.rho = half_life, rho
        self.hits, self.misses, self.time = (np.zeros(0) for _ in range(3))

    def reserve(self, rows: int) -> None:
        if rows > self.hits.size:
            more = max(rows, 2 * self.hits.size) - self.hits.size
            self.hits, self.misses, self.time = (np.pad(a, (0, more)) for a in (self.hits, self.misses, self.time))

    def expect(self, groups: Groups) -> Floats:
        """[P] tracked success of each prompt, from history alone."""
        value = np.full(groups.rows.size, groups.history_mean)
        stored = np.flatnonzero((groups.rows >= 0) & (groups.rows < self.hits.size))
        rows = groups.rows[stored]
        count = self.hits[rows] + self.misses[rows]
        visited = count > 0
        value[stored[visited]] = self.hits[rows[visited]] / count[visited]
        return value

    def predict(self, groups: Groups) -> Floats:
        """[N] baseline of each rollout."""
        return self.expect(groups)[groups.of]

    def observe(self, groups: Groups, rows: np.ndarray) -> None:
        """`rows` [P]: the rows, now that new prompts have one."""
        self.reserve(int(rows.max(initial=-1)) + 1)
        new = self.hits[rows] + self.misses[rows] == 0
        hits = np.where(new, groups.history_mean, self.hits[rows])
        misses = np.where(new, 1.0 - groups.history_mean, self.misses[rows])
        age = np.where(new, 0.0, np.maximum(groups.time - self.time[rows], 0.0))
        rho = self.rho if self.half_life is None else spo_decay(age, self.half_life)
        mean = np.clip(groups.mean, 0.0, 1.0)
        # 1e-9: a prompt never solved must still differ from one never seen.
        self.hits[rows] = rho * np.maximum(hits, 0.0) + groups.evidence * mean + 1e-9
        self.misses[rows] = rho * np.maximum(misses, 0.0) + groups.evidence * (1.0 - mean)
        self.time[rows] = groups.time

    def inflate_variance(self, factor: float) -> None:
        self.hits, self.misses = self.hits / factor, self.misses / factor

    def state(self) -> State:
        return {"hits": self.hits.copy(), "misses": self.misses.copy(), "time": self.time.copy()}, {}

    def load(self, state: State) -> None:
        self.hits, self.misses, self.time = (state[0][name].copy() for name in ("hits", "misses", "time"))


class RatioEstimate:
    """Ratio of two decayed sums, sum(top) / sum(bottom), which starts at a prior worth `strength` of bottom.

    Used for kappa (realised over predicted variance), for the noise factor and for tau_p (lasting part of a prompt).
    """

    def __init__(self, start: float, strength: float, keep: float, low: float, high: float) -> None:
        self.prior = (start * strength, strength)
        self.top, self.bottom = self.prior
        self.keep, self.low, self.high = keep, low, high

    @property
    def value(self) -> float:
        return min(max(self.top / self.bottom, self.low), self.high)

    def add(self, top: float, bottom: float) -> None:
        """Decay both sums, then add; no decay without data."""
        if bottom <= 0:
            return
        self.top = self.keep * self.top + top
        # The floor keeps the ratio defined after long decay; it is far below one batch.
        self.bottom = max(self.keep * self.bottom + bottom, 1e-9)

    def reset(self) -> None:
        self.top, self.bottom = self.prior

    def state(self) -> State:
        return {}, {"top": self.top, "bottom": self.bottom}

    def load(self, state: State) -> None:
        self.top, self.bottom = state[1]["top"], state[1]["bottom"]


def group_mean(groups: Groups) -> Floats:
    """[N] plain GRPO: the mean of the group, own reward included, so it shrinks the signal by 1 - 1/G (1 for G = 1)."""
    plain = np.bincount(groups.of, groups.rewards, minlength=groups.size.size) / np.maximum(groups.size, 1)
    return plain[groups.of]


def sibling_mean(groups: Groups) -> Floats:
    """[N] RLOO: the mean of the other rollouts of the group; a lone rollout gets the mean of history."""
    return np.where(groups.single_rollout, groups.history_mean, groups.siblings)


def batch_mean(groups: Groups) -> Floats:
    """[N] the mean of all other rollouts of the batch; history where there are none."""
    if groups.of.size < 2:
        return np.full(groups.of.size, groups.history_mean)
    weights = groups.weights
    rest = weights.sum() - weights
    return ((weights @ groups.rewards) - weights * groups.rewards) / rest


def james_stein(groups: Groups) -> Floats:
    """[N] two-level leave-one-out shrinkage, JS2 (2511.03710 eq. 10-16), for ragged groups:

    b_ij = (1 - lam_i) mu_i^{-j} + lam_i mubar_{-i},   lam_i = ((n-1)/n) v_{-i} / (v_{-i} + s_{-i})

    v and s (noise of a group mean, spread of the group means) leave the own prompt out, so nothing depends on the own
    reward. v is averaged over the groups that have at least two rollouts; a lone rollout gets mubar_{-i}, a lone group
    its siblings. Numbers: rows [1,0],[1,1],[0,0] give [0,1 | .6667,.6667 | .3333,.3333].
    """
    count = groups.size.size
    if count < 2:
        return sibling_mean(groups)
    mean, size = groups.mean, groups.size
    deviation = (groups.rewards - mean[groups.of]) ** 2
    noisy = size > 1
    noise = np.where(noisy, np.bincount(groups.of, deviation, minlength=count) / np.maximum(size * (size - 1), 1), 0.0)
    rest = (mean.sum() - mean) / (count - 1)
    others = noisy.sum() - noisy
    v = np.maximum(noise.sum() - noise, 0.0) / np.maximum(others, 1)
    # mean over k != i of (mu_k - mubar_{-i})²: the second moment without i, less the square of the mean without i.
    s = np.maximum(((mean**2).sum() - mean**2) / (count - 1) - rest**2, 0.0)
    total = v + s
    lam = np.where(total > 1e-12, (count - 1) / count * v / np.maximum(total, 1e-12), 0.0)
    lam = lam[groups.of]
    return np.where(
        groups.single_rollout, rest[groups.of], (1 - lam) * np.nan_to_num(groups.siblings) + lam * rest[groups.of]
    )
