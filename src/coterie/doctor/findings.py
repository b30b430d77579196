"""Records that rules read, and the findings that they return."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coterie.doctor.series import PERSISTENT, Series, longest, streak
from coterie.stats import PairedTest
from coterie.types import EvalResult, Interval, metric_of, overall


class Severity(StrEnum):
    """Severity of a finding, from the worst."""

    SERIOUS = "serious"  # what is trained from here on is likely worthless, or the result is not what it seems
    WARNING = "warning"  # worth a look: something is wasted, or on its way
    NOTE = "note"  # good to know, and no fault

    @property
    def rank(self) -> int:
        return list(Severity).index(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Metrics, evaluations and settings of a run."""

    series: Mapping[str, Series] = field(default_factory=dict)
    evals: tuple[EvalResult, ...] = ()
    """Held-out evaluations by step."""
    paired: Mapping[str, PairedTest] = field(default_factory=dict)
    """Last minus first evaluation on the same prompts, by task, in the metric that each names."""
    config: Mapping[str, Any] = field(default_factory=dict)

    def setting(self, key: str, default: Any = None) -> Any:
        """Value of a setting by its dotted key; the default where the run does not have it."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return default if value is None else value

    def evaluations(self) -> list[EvalResult]:
        """The pooled evaluations, or those of the only task; by step."""
        return overall(self.evals)

    def metric(self, task: str) -> str:
        """Metric of a held-out task: `pass@1`, or `reward` where the evaluated reward is graded."""
        return metric_of(result for result in self.evals if result.task == task)

    def ends(self) -> tuple[Interval, Interval] | None:
        """The pooled result (or that of the only task) of the first and of the last evaluation, by its metric.

        None where there are not two.
        """
        results = self.evaluations()
        if len(results) < 2:
            return None
        metric = self.metric(results[-1].task)
        first, last = results[0].metric(metric), results[-1].metric(metric)
        return None if first is None or last is None else (first, last)

    def correctness(self, name: str) -> Series | None:
        """A metric that only a binary reward (or a threshold) has, such as `groups/all_correct`.

        None where the run lacks it, or has it in some steps alone: a graded reward that happened to be 0 everywhere.
        """
        series, every = self.series.get(name), self.series.get("groups/mixed")
        return None if series is None or (every is not None and len(every) > len(series)) else series

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps per collected batch."""
        return int(self.setting("optim.minibatches", 1)) * int(self.setting("optim.epochs", 1))

    @property
    def accuracy_part(self) -> str:
        """Label of the reward part that decides which completions are correct."""
        parts = self.setting("rewards.functions", [{"name": "task"}])
        first = parts[0].get("label") or str(parts[0]["name"]).split(":")[-1]
        return str(self.setting("eval.reward", "") or first)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The numbers that a finding rests on."""

    metric: str
    value: float
    """The worst, or the present one, as `text` says."""
    threshold: float | None
    """The alarm; None where the evidence is a comparison."""
    steps: tuple[int, int]
    """First and last step concerned."""
    text: str
    """The same in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleHit:
    """Alarm of one rule, without the rule's own texts."""

    severity: Severity
    title: str
    """The problem in one plain sentence."""
    evidence: tuple[Evidence, ...]
    action: str = ""
    """Advice, where it is more precise than the rule's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A check of a run: its condition, texts, and the metrics that it needs."""

    name: str
    asks: str
    """The check as a question."""
    alarm: str
    """Condition of the alarm, with its numbers."""
    source: str
    """Origin of the numbers."""
    meaning: str
    action: str
    needs: tuple[str, ...] = ()
    """Metrics without which it is skipped."""
    any_of: tuple[str, ...] = ()
    """Metrics of which it needs at least one."""
    steps: int = PERSISTENT
    """Values that each of them must have."""
    evals: int = 0
    """Held-out evaluations it needs."""
    check: Callable[[Record], Iterable[RuleHit]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Alarm of one rule, with the rule's texts."""

    rule: str
    severity: Severity
    title: str
    evidence: tuple[Evidence, ...]
    meaning: str
    action: str


def breach(series: Series, mask: NDArray[np.bool_], threshold: float, *, high: bool = True) -> Evidence:
    """Evidence for the values that a mask marks: their number, steps and worst value, and whether they last."""
    marked = np.flatnonzero(mask)
    values = series.values[marked]
    worst = marked[int(values.argmax() if high else values.argmin())]
    first, last = int(series.steps[marked[0]]), int(series.steps[marked[-1]])
    where = f"step {first}" if first == last else f"steps {first} to {last}"
    share = "" if len(marked) == 1 else f"{len(marked)} of {len(series)} steps, "
    still = ", and still so" if mask[-1] and len(marked) > 1 else ""
    side = "above" if high else "below"
    return Evidence(
        metric=series.name,
        value=float(series.values[worst]),
        threshold=threshold,
        steps=(first, last),
        text=f"{series.name} {side} {threshold:g} in {share}{where}{still}; worst {series.values[worst]:.4g} "
        f"at step {int(series.steps[worst])}",
    )


def beyond(
    series: Series, threshold: float, *, high: bool = True, steps: int = PERSISTENT
) -> tuple[Evidence, bool] | None:
    """Evidence that a series was beyond a threshold for some steps in a row, and True if it still is; else None."""
    mask = series.values > threshold if high else series.values < threshold
    if longest(mask) < steps:
        return None
    return breach(series, mask, threshold, high=high), streak(mask) > 0


def level(series: Series, threshold: float | None, value: float, text: str) -> Evidence:
    """Evidence about a whole series, or about its last part."""
    return Evidence(
        metric=series.name,
        value=value,
        threshold=threshold,
        steps=(int(series.steps[0]), int(series.steps[-1])),
        text=text,
    )
