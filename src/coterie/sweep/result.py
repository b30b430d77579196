"""What the runs of a sweep came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coterie.observer import EvalResult
from coterie.runs.inspect import ends
from coterie.runs.metrics import MetricsDB
from coterie.sweep.grid import Cell
from coterie.sweep.run import FAILED, folder

WINDOW = 10
"""A tenth of the steps is looked at as a whole, so that a single step decides nothing."""
COLLAPSED = 0.5
"""A run has collapsed when its last tenth has less than this share of the reward of its best tenth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """One run, in numbers."""

    cell: Cell
    steps: int
    rewards: tuple[float, ...]
    """Mean training reward of each step."""
    before: float | None
    """Held-out pass@1 at the start, pooled over tasks; None without held-out prompts."""
    after: float | None
    seconds: float
    """Median of a step."""
    peak: float | None
    """Highest resident bytes."""
    failed: bool
    """It did not finish its steps."""

    @property
    def area(self) -> float:
        """Mean reward over all steps: how much was learned how early."""
        return float(np.mean(self.rewards)) if self.rewards else float("nan")

    @property
    def collapsed(self) -> bool:
        """It failed, or lost half of the reward that it once had."""
        if self.failed or not self.rewards:
            return True
        width = max(1, len(self.rewards) // WINDOW)
        means = np.convolve(self.rewards, np.ones(width) / width, "valid")
        return bool(means[-1] < COLLAPSED * means.max())

    def numbers(self) -> dict[str, Any]:
        """All of it as JSON-able data."""
        found = asdict(self) | {"setting": self.cell.label, "seed": self.cell.seed}
        return found | {"collapsed": self.collapsed, "area": self.area}


def read(out: Path, cells: Sequence[Cell]) -> list[CellResult]:
    """The results of the cells that have been run, in their order."""
    return [_read(cell, folder(out, cell)) for cell in cells if (folder(out, cell) / "metrics.sqlite").is_file()]


def _read(cell: Cell, path: Path) -> CellResult:
    with MetricsDB.reader(path / "metrics.sqlite") as database:
        rewards = tuple(value for _, value in database.series("reward/mean"))
        seconds = [value for _, value in database.series("time/step")]
        peaks = [value for _, value in database.series("memory/peak")]
        first, last = ends(database)
        steps = database.last_step() or 0
    return CellResult(
        cell=cell,
        steps=steps,
        rewards=rewards,
        before=_pooled(first),
        after=_pooled(last),
        seconds=float(np.median(seconds)) if seconds else float("nan"),
        peak=max(peaks) if peaks else None,
        failed=(path / FAILED).is_file(),
    )


def _pooled(results: Sequence[EvalResult]) -> float | None:
    values = {result.task: result.pass_at_1.value for result in results}
    return values.get("all", next(iter(values.values()))) if values else None
