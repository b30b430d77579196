"""Results of the runs of a sweep, and their table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median_high
from typing import Any

import numpy as np

from coterie.machine import GIB
from coterie.runs.metrics import MetricsDB
from coterie.runs.timing import CPU
from coterie.stats import Estimate, t_interval
from coterie.sweep.grid import Cell
from coterie.sweep.run import DIVERGED, DONE, FAILED, failure, folder
from coterie.text import interval_text
from coterie.types import PASS, POOLED, EvalResult, metric_of

WINDOW = 10
"""Parts of a run whose mean rewards are compared, so that a single step decides nothing."""
LEAST = 3
"""Fewest steps of such a part; a run with fewer than two parts is not judged by its rewards."""
COLLAPSED = 0.5
"""A run has collapsed when its last tenth has less than this share of the reward of its best tenth."""
CHANCE = 4.0
"""Standard errors that the drop must exceed: the best of all tenths is high by chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalPoint:
    """One evaluation, with the rollouts and seconds spent until then."""

    step: int
    rollouts: int
    """Sampled in training, those of groups that were replaced included."""
    seconds: float
    """Of training steps, without evaluations."""
    value: float
    """The held-out result by the sweep's metric, pooled over tasks."""
    cpu_seconds: float | None = None
    """As `seconds`, on the processors; None for a run that recorded none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """Numbers of one run."""

    cell: Cell
    steps: int
    rewards: tuple[float, ...]
    """Mean training reward of each step."""
    evals: tuple[EvalPoint, ...] = ()
    """Every evaluation, in order."""
    seconds: float
    """Median of a step."""
    peak: float | None
    """Highest resident bytes."""
    error: str
    """Error that ended it before its last step; empty when none did."""
    cpu_seconds: float | None = None
    """As `seconds`, on the processors; None for a run that recorded none."""
    metric: str = PASS
    """Held-out metric: `pass@1`, or `reward` where the evaluated reward is graded in any run of the sweep, so that all
    runs are compared by the same."""

    @property
    def before(self) -> float | None:
        """The held-out result at the start, pooled over tasks; None without held-out prompts."""
        return self.evals[0].value if self.evals else None

    @property
    def after(self) -> float | None:
        """The held-out result at the end."""
        return self.evals[-1].value if self.evals else None

    def reached(self, level: float) -> EvalPoint | None:
        """The first evaluation after the start with at least this held-out result; None if there is none."""
        return next((point for point in self.evals[1:] if point.value >= level), None)

    @property
    def area(self) -> float:
        """Mean reward over all steps, the area under the training curve."""
        return float(np.mean(self.rewards)) if self.rewards else float("nan")

    @property
    def collapsed(self) -> bool:
        """True if it diverged, or lost half of its best reward by more than the noise of its prompts explains."""
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
        """All of it as JSON-able data; files call the evaluations `held`."""
        record = {"held" if key == "evals" else key: value for key, value in asdict(self).items()}
        record |= {"setting": self.cell.label, "seed": self.cell.seed}
        record |= {"before": self.before, "after": self.after}
        return record | {"collapsed": self.collapsed, "area": self.area}


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
        seconds, cpu_seconds = database.series("time/step"), database.series(f"{CPU}/step")
        peaks = [value for _, value in database.series("memory/peak")]
        sampled = database.series("rollouts")
        steps = database.last_step() or 0
    return CellResult(
        cell=cell,
        steps=steps,
        rewards=rewards,
        evals=tuple(
            EvalPoint(
                step=result.step,
                rollouts=round(sum(value for at, value in sampled if at <= result.step)),
                seconds=sum(value for at, value in seconds if at <= result.step),
                cpu_seconds=sum(value for at, value in cpu_seconds if at <= result.step) if cpu_seconds else None,
                value=estimate.value,
            )
            for result in evals
            if (estimate := result.metric(metric)) is not None
        ),
        metric=metric,
        seconds=_median(seconds),
        cpu_seconds=_median(cpu_seconds) if cpu_seconds else None,
        peak=max(peaks) if peaks else None,
        error=failure(path),
    )


def _median(series: Sequence[tuple[int, float]]) -> float:
    """NaN of an empty series."""
    return float(np.median([value for _, value in series])) if series else float("nan")


def _by_step(results: Sequence[EvalResult]) -> dict[int, list[EvalResult]]:
    by_step: dict[int, list[EvalResult]] = {}
    for result in results:
        by_step.setdefault(result.step, []).append(result)
    return by_step


def _pooled(results: Sequence[EvalResult]) -> EvalResult:
    by_task = {result.task: result for result in results}
    return by_task.get(POOLED, results[0])


# A sweep's results side by side, as a Markdown table.


NOTE = (
    "Mean over seeds with Student's 95 % interval in brackets; ± is half its width. Area: mean training reward over "
    "all steps. Collapsed: stopped because it diverged, or the last tenth of the steps (three at least) has less than "
    "half of the reward of the best tenth, by more than the few prompts of a step explain."
)


def by_setting(results: Sequence[CellResult]) -> dict[str, list[CellResult]]:
    """The results of all seeds of each setting, in order of appearance."""
    by_label: dict[str, list[CellResult]] = {}
    for result in results:
        by_label.setdefault(result.cell.label, []).append(result)
    return by_label


def over_seeds(results: Sequence[CellResult], value: Callable[[CellResult], float | None]) -> Estimate | None:
    """Mean over seeds with its interval; None where no seed has the value."""
    values = [number for result in results if (number := value(result)) is not None and number == number]
    return t_interval(values) if values else None


def markdown(results: Sequence[CellResult], reach: float | None = None) -> str:
    """Markdown table of the results, with a note on its columns.

    Args:
        reach: held-out result (pass@1, or the reward where it is graded) whose first time is reported.
    """
    metric = results[0].metric if results else PASS
    what = "held-out before → after, %" if metric == PASS else "held-out reward before → after"
    head = f"| setting | seeds | {what} | reward, area | s/step | CPU s/step | peak GiB | collapsed |"
    rule, note = "| --- | --: | --- | --- | --: | --: | --: | --: |", NOTE
    if reach is not None:
        level = f"{100 * reach:g} %" if metric == PASS else f"reward {reach:g}"
        head += f" rollouts to {level} | seconds to {level} | CPU seconds to {level} | reached |"
        rule += " --- | --- | --- | --: |"
        note += (
            " Rollouts, seconds and CPU seconds of training until the first evaluation with at least "
            f"{level} held-out: median over all seeds [least, most], where never is more than any number."
        )
    lines = [head, rule, *(_row(label, seeds, reach) for label, seeds in by_setting(results).items())]
    return "\n".join(lines) + f"\n\n{note}\n"


def _row(label: str, results: Sequence[CellResult], reach: float | None) -> str:
    whole = [result for result in results if not result.error]
    before, after = over_seeds(whole, lambda result: result.before), over_seeds(whole, lambda result: result.after)
    seconds, cpu_seconds, peak = (
        over_seeds(results, lambda result: result.seconds),
        over_seeds(results, lambda result: result.cpu_seconds),
        over_seeds(results, lambda result: result.peak),
    )
    scale, digits = (100, 1) if not results or results[0].metric == PASS else (1, 3)
    change = "–"
    if before is not None and after is not None:
        change = f"{scale * before.value:.{digits}f} → {interval_text(after, scale, digits)}"
    cells = [
        f"`{label}`",
        str(len(results)),
        change,
        interval_text(over_seeds(whole, lambda result: result.area), 1, 3),
        *map(_plus_minus, (seconds, cpu_seconds)),
        _plus_minus(peak, GIB),
        f"{sum(result.collapsed for result in results)}/{len(results)}",
    ]
    if reach is not None:
        points = [result.reached(reach) for result in results]
        cells += [
            _median_range([None if point is None else point.rollouts for point in points]),
            _median_range([None if point is None else point.seconds for point in points]),
            _median_range([None if point is None else point.cpu_seconds for point in points])
            if all(point is None or point.cpu_seconds is not None for point in points)
            else "–",
            f"{sum(point is not None for point in points)}/{len(points)}",
        ]
    return "| " + " | ".join(cells) + " |"


def _plus_minus(estimate: Estimate | None, unit: float = 1.0) -> str:
    return "–" if estimate is None else f"{estimate.value / unit:.2f} ± {(estimate.high - estimate.value) / unit:.2f}"


def _median_range(values: Sequence[float | None]) -> str:
    """Median [least, most]; never reached counts as infinite."""
    ordered = sorted(float("inf") if value is None else float(value) for value in values)
    ends = (median_high(ordered), ordered[0], ordered[-1])
    texts = [f"{value:.0f}" if value < float("inf") else "never" for value in ends]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]"
