"""What was seen: a row for every prompt, and the last steps' groups for redrawing regions."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, fields

import numpy as np

from coterie.algo.grouping.growth import Visits
from coterie.algo.grouping.rollouts import Groups
from coterie.algo.grouping.state import Floats, Ints, State


class PromptBook:
    """Rows of prompts: id, features, last visit. O(1) a rollout."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self.features = np.zeros((0, 0))
        self.visits = np.zeros(0, dtype=np.int64)

    def enter(self, groups: Groups) -> Ints:
        """[P] rows of the groups' prompts; new prompts get the next ones. Features are those of the latest visit."""
        rows = np.array([self.rows.setdefault(name, len(self.rows)) for name in groups.prompts], dtype=np.int64)
        if len(self.rows) > len(self.visits):
            more = max(len(self.rows), 2 * len(self.visits)) - len(self.visits)
            if not len(self.features):
                self.features = np.zeros((0, groups.features.shape[1]))
            self.features = np.pad(self.features, ((0, more), (0, 0)))
            self.visits = np.pad(self.visits, (0, more))
        self.features[rows] = groups.features
        self.visits[rows] += 1
        return rows

    def state(self) -> State:
        return {"features": self.features.copy(), "visits": self.visits.copy()}, {"prompts": list(self.rows)}

    def load(self, state: State) -> None:
        arrays, json = state
        self.rows = {name: row for row, name in enumerate(json["prompts"])}
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


class Window:
    """The last `length` steps."""

    def __init__(self, length: int) -> None:
        self.steps: deque[Step] = deque(maxlen=length)

    def visits(self, features: Floats, now: float, memory: float) -> Visits:
        """All visits as rows, weighted by evidence · exp(-age / memory)."""
        rows = np.concatenate([step.rows for step in self.steps] or [np.zeros(0, dtype=np.int64)])
        weight = [step.evidence * np.exp(-max(now - step.time, 0.0) / memory) for step in self.steps]
        return Visits(
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
