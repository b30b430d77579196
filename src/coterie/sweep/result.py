"""What the runs of a sweep came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coterie.observer import PASS, POOLED, EvalResult, metric_of
from coterie.runs.metrics import MetricsDB
from coterie.sweep.grid import Cell
from coterie.sweep.run import DIVERGED, DONE, FAILED, failure, folder

WINDOW = 10
"""A tenth of the steps is looked at as a whole, so that a single step decides nothing."""
LEAST = 3
"""Steps are looked at together at least, and twice as many a run needs to be judged by its rewards."""
COLLAPSED = 0.5
"""A run has collapsed when its last tenth has less than this share of the reward of its best tenth."""
CHANCE = 4.0
"""Standard errors of that difference which few prompts a step make by chance: the best of all tenths is picked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One evaluation, with what had been spent until then."""

    step: int
    rollouts: int
    """Sampled in training, those of groups that were replaced included."""
    seconds: float
    """Of training steps, without evaluations."""
    value: float
    """The held-out result by the sweep's metric, pooled over tasks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """One run, in numbers."""

    cell: Cell
    steps: int
    rewards: tuple[float, ...]
    """Mean training reward of each step."""
    held: tuple[Held, ...] = ()
    """Every evaluation, in order."""
    seconds: float
    """Median of a step."""
    peak: float | None
    """Highest resident bytes."""
    error: str
    """Why it did not finish its steps; empty when it did."""
    metric: str = PASS
    """What was held out is measured by: `pass@1`, or `reward` where the evaluated reward is graded in any run of the
    sweep, so that all are compared by the same."""

    @property
    def before(self) -> float | None:
        """The held-out result at the start, pooled over tasks; None without held-out prompts."""
        return self.held[0].value if self.held else None

    @property
    def after(self) -> float | None:
        """The held-out result at the end."""
        return self.held[-1].value if self.held else None

    def reached(self, level: float) -> Held | None:
        """The first evaluation after the start with at least this held-out result; None if there is none."""
        return next((one for one in self.held[1:] if one.value >= level), None)

    @property
    def area(self) -> float:
        """Mean reward over all steps: how much was learned how early."""
        return float(np.mean(self.rewards)) if self.rewards else float("nan")

    @property
    def collapsed(self) -> bool:
        """It diverged, or lost half of the reward that it once had, by more than the prompts that it drew explain."""
        if self.error or not self.rewards:
            return self.error.startswith(DIVERGED)
        width = max(LEAST, len(self.rewards) // WINDOW)
        if len(self.rewards) < 2 * width:
            return False
        means = np.convolve(self.rewards, np.ones(width) / width, "valid")
        noise = float(np.sqrt(np.mean(np.diff(self.rewards) ** 2) / 2))  # of a step, whatever the trend
        chance = CHANCE * noise * np.sqrt(2 / width)
        return bool(means[-1] < COLLAPSED * means.max() and means.max() - means[-1] > chance)

    def numbers(self) -> dict[str, Any]:
        """All of it as JSON-able data."""
        found = asdict(self) | {"setting": self.cell.label, "seed": self.cell.seed}
        found |= {"before": self.before, "after": self.after}
        return found | {"collapsed": self.collapsed, "area": self.area}


def read(out: Path, cells: Sequence[Cell]) -> list[CellResult]:
    """The results of the cells that have ended, in their order."""
    ended = [cell for cell in cells if any((folder(out, cell) / name).is_file() for name in (DONE, FAILED))]
    evals = {cell.name: _pooled_evals(folder(out, cell)) for cell in ended}
    metric = metric_of(result for results in evals.values() for result in results)
    return [_read(cell, folder(out, cell), evals[cell.name], metric) for cell in ended]


def _pooled_evals(path: Path) -> list[EvalResult]:
    """Every evaluation of a run, all tasks pooled."""
    with MetricsDB.reader(path / "metrics.sqlite") as database:
        return [_pooled(results) for results in _by_step(database.evals()).values()]


def _read(cell: Cell, path: Path, evals: Sequence[EvalResult], metric: str) -> CellResult:
    with MetricsDB.reader(path / "metrics.sqlite") as database:
        rewards = tuple(value for _, value in database.series("reward/mean"))
        seconds = database.series("time/step")
        peaks = [value for _, value in database.series("memory/peak")]
        sampled = database.series("rollouts")
        steps = database.last_step() or 0
    return CellResult(
        cell=cell,
        steps=steps,
        rewards=rewards,
        held=tuple(
            Held(
                step=result.step,
                rollouts=round(sum(value for at, value in sampled if at <= result.step)),
                seconds=sum(value for at, value in seconds if at <= result.step),
                value=estimate.value,
            )
            for result in evals
            if (estimate := result.metric(metric)) is not None
        ),
        metric=metric,
        seconds=float(np.median([value for _, value in seconds])) if seconds else float("nan"),
        peak=max(peaks) if peaks else None,
        error=failure(path),
    )


def _by_step(results: Sequence[EvalResult]) -> dict[int, list[EvalResult]]:
    found: dict[int, list[EvalResult]] = {}
    for one in results:
        found.setdefault(one.step, []).append(one)
    return found


def _pooled(results: Sequence[EvalResult]) -> EvalResult:
    by_task = {result.task: result for result in results}
    return by_task.get(POOLED, results[0])
