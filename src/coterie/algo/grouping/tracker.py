"""SPO's tracker: one fading Beta count a prompt (2509.13232, §3; single-stream policy optimisation)."""

from __future__ import annotations

import numpy as np

from coterie.algo.grouping.rollouts import Groups
from coterie.algo.grouping.state import Floats, State


def spo_decay(age: Floats | float, half_life: float, low: float = 0.875, high: float = 0.96) -> Floats:
    """rho = clamp(2^(-age / half_life), low, high). In nats SPO's half-life is .06.

    >>> round(float(spo_decay(0.006, 0.06)), 4)
    0.933
    """
    return np.clip(np.exp2(-np.asarray(age, dtype=np.float64) / half_life), low, high)


class Tracker:
    """v = a / (a + b), read before the update; then a ← rho a + Σr, b ← rho b + Σ(1 - r).

    A prompt never seen gets the running mean of all rewards, as one pseudo-rollout: the paper's offline pass of 8
    rollouts a prompt would be paid for in rollouts.
    """

    def __init__(self, half_life: float | None = None, rho: float = 0.875) -> None:
        """`half_life` in units of the clock; None keeps `rho` at every visit, 1 never forgets."""
        self.half_life, self.rho = half_life, rho
        self.hits, self.misses, self.time = (np.zeros(0) for _ in range(3))

    def grow(self, rows: int) -> None:
        if rows > self.hits.size:
            more = max(rows, 2 * self.hits.size) - self.hits.size
            self.hits, self.misses, self.time = (np.pad(a, (0, more)) for a in (self.hits, self.misses, self.time))

    def expect(self, groups: Groups) -> Floats:
        """[P] tracked success of each prompt, from history alone."""
        value = np.full(groups.rows.size, groups.known)
        known = np.flatnonzero((groups.rows >= 0) & (groups.rows < self.hits.size))
        rows = groups.rows[known]
        count = self.hits[rows] + self.misses[rows]
        visited = count > 0
        value[known[visited]] = self.hits[rows[visited]] / count[visited]
        return value

    def predict(self, groups: Groups) -> Floats:
        """[N] baseline of each rollout."""
        return self.expect(groups)[groups.of]

    def observe(self, groups: Groups, rows: np.ndarray) -> None:
        """`rows` [P]: the rows, now that new prompts have one."""
        self.grow(int(rows.max(initial=-1)) + 1)
        new = self.hits[rows] + self.misses[rows] == 0
        hits = np.where(new, groups.known, self.hits[rows])
        misses = np.where(new, 1.0 - groups.known, self.misses[rows])
        age = np.where(new, 0.0, np.maximum(groups.time - self.time[rows], 0.0))
        rho = self.rho if self.half_life is None else spo_decay(age, self.half_life)
        mean = np.clip(groups.mean, 0.0, 1.0)
        # 1e-9: a prompt never solved must still differ from one never seen.
        self.hits[rows] = rho * np.maximum(hits, 0.0) + groups.evidence * mean + 1e-9
        self.misses[rows] = rho * np.maximum(misses, 0.0) + groups.evidence * (1.0 - mean)
        self.time[rows] = groups.time

    def widen(self, factor: float) -> None:
        self.hits, self.misses = self.hits / factor, self.misses / factor

    def state(self) -> State:
        return {"hits": self.hits.copy(), "misses": self.misses.copy(), "time": self.time.copy()}, {}

    def load(self, state: State) -> None:
        self.hits, self.misses, self.time = (state[0][name].copy() for name in ("hits", "misses", "time"))
