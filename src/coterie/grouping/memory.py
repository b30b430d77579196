"""Prompt memory: per-prompt offsets, the prompt table, and the window of recent steps."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, fields

import numpy as np

from coterie.grouping.arrays import Groups, State, join, pick
from coterie.grouping.experts import RatioEstimate
from coterie.grouping.tree_fit import Observations
from coterie.stats import Floats, Ints

_TABLE = ("mean", "var", "time", "residual", "weight")
FADED = 1e-3
"""Share of the evidence about a prompt below which a new tree leaves its offset as it is: what is left of the offset
when the prompt comes again is less than this, and a refit costs no more however many prompts there ever were."""


class PromptMemory:
    """Offsets d_p of prompts from the prediction by their features: AR(1) processes observed at visits.

    Five numbers a prompt. A prompt not visited for `memory` time units has decayed by 1/e towards its region.
    """

    def __init__(self, memory: float, keep: float) -> None:
        self.memory = memory
        self.tau = RatioEstimate(0.03, 20.0, keep, 0.003, 0.12)
        self.mean, self.var, self.time, self.residual, self.weight = (np.zeros(0) for _ in range(5))

    def reserve(self, rows: int) -> None:
        """Make room for `rows` prompts; doubles, so that growing costs O(1) a prompt."""
        if rows > self.mean.size:
            more = max(rows, 2 * self.mean.size) - self.mean.size
            self.mean, self.residual, self.weight = (
                np.pad(array, (0, more)) for array in (self.mean, self.residual, self.weight)
            )
            self.var = np.pad(self.var, (0, more), constant_values=-1.0)
            self.time = np.pad(self.time, (0, more), constant_values=-np.inf)

    def visited(self, rows: Ints) -> np.ndarray:
        """[P] bool: True for prompts that have been visited."""
        inside = (rows >= 0) & (rows < self.var.size)
        return inside & (self.var[np.where(inside, rows, 0)] >= 0 if self.var.size else inside)

    def lasting(self, time: float) -> Ints:
        """Rows of prompts of which at least `FADED` of the evidence is left at `time`."""
        rows = np.flatnonzero(self.var >= 0)
        return rows[self._fade(rows, time) >= FADED]

    def prior(self, rows: Ints, time: float) -> tuple[Floats, Floats]:
        """[P] mean and [P] variance of d_p at `time`, before this visit."""
        visited, tau = self.visited(rows), self.tau.value
        at = rows[visited]
        fade = self._fade(at, time)
        mean, var = np.zeros(rows.size), np.full(rows.size, tau)
        mean[visited] = fade * self.mean[at]
        var[visited] = fade**2 * self.var[at] + (1.0 - fade**2) * tau
        return mean, var

    def learn_tau(self, rows: Ints, residual: Floats, weight: Floats, time: float) -> None:
        """Update tau by the undecayed mean product of residuals of two visits, which share no noise."""
        visited = self.visited(rows)
        at = rows[visited]
        weight = weight[visited] * self.weight[at]
        self.tau.add(float(weight @ (residual[visited] * self.residual[at])), float(weight @ self._fade(at, time)))

    def store(self, rows: Ints, mean: Floats, var: Floats, residual: Floats, weight: Floats, time: float) -> None:
        """Store the posterior after a visit, the residual y - h.a predicted before it, and the mean rollout weight."""
        self.mean[rows], self.var[rows], self.time[rows] = mean, var, time
        self.residual[rows], self.weight[rows] = residual, weight

    def rebase(self, rows: Ints, change: Floats) -> None:
        """Shift offsets after a refit, so that well-known prompts keep their value. `change` [P] is f_old - f_new."""
        trust = np.clip(1.0 - self.var[rows] / self.tau.value, 0.0, 1.0)
        self.mean[rows] += trust * change
        self.residual[rows] += change

    def inflate_variance(self, factor: float) -> None:
        """Multiply the variances by `factor`, up to that of an unseen prompt."""
        visited = self.var >= 0
        self.var[visited] = np.minimum(factor * self.var[visited], self.tau.value)

    def _fade(self, rows: Ints, time: float) -> Floats:
        return np.exp(-np.maximum(time - self.time[rows], 0.0) / self.memory)

    def state(self) -> State:
        arrays = {name: getattr(self, name).copy() for name in _TABLE}
        return join(table=(arrays, {}), tau=self.tau.state())

    def load(self, state: State) -> None:
        table = pick(state, "table")[0]
        for name in _TABLE:
            setattr(self, name, table[name].copy())
        self.tau.load(pick(state, "tau"))


class PromptTable:
    """Table of all prompts met: row by id, features, number of visits. O(1) a rollout."""

    def __init__(self) -> None:
        self.index: dict[str, int] = {}
        self.features = np.zeros((0, 0))
        self.visits = np.zeros(0, dtype=np.int64)

    def enter(self, groups: Groups) -> Ints:
        """[P] rows of the groups' prompts; new prompts get the next ones. Features are those of the latest visit."""
        rows = np.array([self.index.setdefault(name, len(self.index)) for name in groups.prompts], dtype=np.int64)
        if len(self.index) > len(self.visits):
            more = max(len(self.index), 2 * len(self.visits)) - len(self.visits)
            if not len(self.features):
                self.features = np.zeros((0, groups.features.shape[1]))
            self.features = np.pad(self.features, ((0, more), (0, 0)))
            self.visits = np.pad(self.visits, (0, more))
        self.features[rows] = groups.features
        self.visits[rows] += 1
        return rows

    def state(self) -> State:
        return {"features": self.features.copy(), "visits": self.visits.copy()}, {"prompts": list(self.index)}

    def load(self, state: State) -> None:
        arrays, json = state
        self.index = {name: row for row, name in enumerate(json["prompts"])}
        self.features, self.visits = arrays["features"].copy(), arrays["visits"].copy()


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """The groups of one past step."""

    rows: Ints
    """[P]"""
    mean: Floats
    """[P]"""
    evidence: Floats
    """[P]"""
    time: float


class RecentSteps:
    """Groups of the last `length` steps, for refits of the tree."""

    def __init__(self, length: int) -> None:
        self.steps: deque[Step] = deque(maxlen=length)

    def visits(self, features: Floats, now: float, memory: float) -> Observations:
        """All visits as observations, weighted by evidence · exp(-age / memory)."""
        rows = np.concatenate([step.rows for step in self.steps] or [np.zeros(0, dtype=np.int64)])
        weight = [step.evidence * np.exp(-max(now - step.time, 0.0) / memory) for step in self.steps]
        return Observations(
            features[rows],
            np.concatenate([step.mean for step in self.steps] or [np.zeros(0)]),
            np.concatenate(weight or [np.zeros(0)]),
            rows,
        )

    def state(self) -> State:
        arrays = {
            f"{i}.{field.name}": np.asarray(getattr(step, field.name))
            for i, step in enumerate(self.steps)
            for field in fields(step)
        }
        return arrays, {"steps": len(self.steps)}

    def load(self, state: State) -> None:
        arrays, json = state
        self.steps.clear()
        for i in range(json["steps"]):
            rows, mean, evidence = (arrays[f"{i}.{name}"].copy() for name in ("rows", "mean", "evidence"))
            self.steps.append(Step(rows, mean, evidence, float(arrays[f"{i}.time"])))
