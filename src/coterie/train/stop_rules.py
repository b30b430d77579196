"""Stop rules: when a metric has been bad for too long, the run ends.

A rule reads the recorded series alone, so a resumed run stops exactly where an uninterrupted one would.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from coterie.config.stop import AVERAGED, StopConfig, StopRule
from coterie.doctor.series import Series, preceding_median, running_mean, streak
from coterie.errors import RunError
from coterie.runs import checkpoint
from coterie.runs.directory import RunDirectory
from coterie.runs.inspect import COLLAPSE
from coterie.runs.metrics import MetricsDB

Mask = NDArray[np.bool_]


def _above(values: NDArray[np.float64], threshold: float) -> Mask:
    return values > threshold


def _below(values: NDArray[np.float64], threshold: float) -> Mask:
    return values < threshold


def _dropped(values: NDArray[np.float64], threshold: float) -> Mask:
    """The running mean is below its best so far by more than the threshold."""
    mask = np.zeros(len(values), dtype=bool)
    means = running_mean(values, AVERAGED)
    if len(means):
        mask[AVERAGED - 1 :] = means < np.maximum.accumulate(means) - threshold
    return mask


def _spike(values: NDArray[np.float64], threshold: float) -> Mask:
    before = preceding_median(values)
    return np.nan_to_num(values / np.where(before > 0, before, np.inf)) > threshold


def _risen(values: NDArray[np.float64], threshold: float) -> Mask:
    """The running mean is above its first by more than this factor."""
    mask = np.zeros(len(values), dtype=bool)
    means = running_mean(values, AVERAGED)
    if len(means):
        mask[AVERAGED - 1 :] = means > threshold * means[0]
    return mask


COMPARISONS: dict[str, Callable[[NDArray[np.float64], float], Mask]] = {
    "above": _above,
    "below": _below,
    "dropped": _dropped,
    "spike": _spike,
    "risen": _risen,
}
"""`StopKind.bad` → [S] values, threshold → [S] which are bad."""


EXPLODES = "loss_explodes"
"""The rule of every fine-tuning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopDecision:
    """One rule's decision after a step."""

    rule: StopRule
    bad: int
    """Steps in a row, up to the last, that were bad."""
    good_through: int
    """The last step whose weights nothing speaks against: with what the sampler did at step s, the weights after step
    s - 1 were judged."""
    value: float | None
    """Of the last step."""

    @property
    def fired(self) -> bool:
        return self.bad >= self.rule.patience

    def line(self) -> str:
        """Reason for which the run ends, as a sentence."""
        rule = self.rule
        words = rule.kind.words.format(metric=rule.metric, threshold=rule.threshold)
        last = "" if self.value is None else f", {self.value:.4g} at the last"
        count = "1 step" if self.bad == 1 else f"{self.bad} steps in a row"
        return f"stop rule {rule.name}: {words} for {count}{last}"


def decide(rule: StopRule, series: Series, step: int) -> StopDecision:
    """One rule on its series up to a step; a step without a value neither ends a bad stretch nor adds to it."""
    recorded = series.steps <= step
    steps, values = series.steps[recorded], series.values[recorded]
    bad = streak(COMPARISONS[rule.kind.bad](values, rule.threshold)) if len(steps) else 0
    if bad:
        first_bad = int(steps[-bad])
    else:
        first_bad = 1 + (int(steps[-1]) if len(steps) else step)
    return StopDecision(
        rule=rule,
        bad=bad,
        good_through=first_bad - (2 if rule.kind.judges_sampler else 1),
        value=float(values[-1]) if bad else None,
    )


def decide_all(rules: Sequence[StopRule], series: Mapping[str, Series], step: int) -> list[StopDecision]:
    """All rules, in their order."""
    empty = Series.of("", [])
    return [decide(rule, series.get(rule.metric, empty), step) for rule in rules]


# The stop rules of a run: its end, the checkpoint that is still good, and whether it may be resumed.


@dataclass(frozen=True, slots=True, kw_only=True)
class StopEvent:
    """A rule that fired."""

    decision: StopDecision
    step: int
    good: int | None
    """Step of the last good checkpoint; None when there is none."""

    def message(self, run: Path, dropped: Sequence[int] = ()) -> str:
        """Message for the user: the reason, the checkpoint that is kept, and the next step."""
        gone = f" (removed, as they hold what went wrong: {', '.join(map(str, dropped))})" if dropped else ""
        if self.good is None:
            kept = "there is no checkpoint from before it began; lower checkpoint.every to have one next time"
        else:
            path = run / "checkpoints" / f"step_{self.good:06d}"
            kept = (
                f"the last good checkpoint is kept: {path}{gone}. Start again from it with a gentler setting: coterie "
                f"train @ {run / 'config.toml'} --name NEW --model.name {path / 'model'} --optim.lr LOWER"
            )
        return f"ended after step {self.step} by {self.decision.line()}; {kept}. `coterie doctor {run}` says more"


class StopMonitor:
    """The stop rules of a run, decided after each step on the recorded series alone."""

    def __init__(self, rules: Sequence[StopRule], database: MetricsDB, checkpoints: Path) -> None:
        self.rules = list(rules)
        self.database = database
        self.checkpoints = checkpoints
        self._asked = False

    def check(self, step: int) -> StopEvent | None:
        """The first rule that fires after this step."""
        decisions = self._decisions(step)
        fired = [decision for decision in decisions if decision.fired]
        if not fired:
            return None
        return StopEvent(decision=fired[0], step=step, good=self._newest(decisions))

    def good_checkpoint(self, step: int) -> int | None:
        """Step of the newest existing checkpoint that no rule speaks against; None without rules."""
        return self._newest(self._decisions(step)) if self.rules else None

    def idle(self, step: int) -> Iterator[str]:
        """Warnings, given once, of rules whose metric this run does not record."""
        if self._asked:
            return
        self._asked = True
        recorded = self.database.step_metrics(step)
        for rule in self.rules:
            if rule.metric not in recorded:
                yield f"stop rule {rule.name} reads {rule.metric}, which step {step} did not record: it may never fire"

    def _newest(self, decisions: Sequence[StopDecision]) -> int | None:
        through = min(decision.good_through for decision in decisions)
        return max((saved for saved in checkpoint.steps(self.checkpoints) if saved <= through), default=None)

    def _decisions(self, step: int) -> list[StopDecision]:
        return _decisions(self.rules, self.database, step)


def _decisions(rules: Sequence[StopRule], database: MetricsDB, step: int) -> list[StopDecision]:
    names = {rule.metric for rule in rules}
    return decide_all(rules, {name: Series.of(name, database.series(name)) for name in names}, step)


def stop_rules(config: StopConfig, *, imitates: bool = False) -> list[StopRule]:
    """The rules of a run's settings, with their defaults filled in.

    Args:
        imitates: the run is a fine-tuning, which ends when its loss explodes, also where no rule says so.
    """
    rules = [
        StopRule.of(rule.name, metric=rule.metric, threshold=rule.threshold, patience=rule.patience)
        for rule in config.rules
    ]
    if imitates and all(rule.name != EXPLODES for rule in rules):
        rules.append(StopRule.of(EXPLODES))
    return rules


def why_it_ended(database: MetricsDB) -> str:
    """Reason for which a stop rule ended the run, as the start of a message; empty when none did."""
    events = database.events(COLLAPSE)
    return f"{events[-1].message}. The rule is relaxed now: " if events else ""


def check_resumable(run: RunDirectory, rules: Sequence[StopRule]) -> None:
    """Refuse to resume a run that a stop rule ended and would end again at the same step.

    Raises:
        RunError: a rule fired, and does so under the present settings too.
    """
    if not run.metrics.exists():
        return
    with MetricsDB.reader(run.metrics) as database:
        events = database.events(COLLAPSE)
        if not events or events[-1].step is None:
            return
        fired = [decision for decision in _decisions(rules, database, events[-1].step) if decision.fired]
    if fired:
        raise RunError(
            f"{run.path} {events[-1].message}. A resume would make the same steps again and end there too; to go on "
            f"all the same, relax or remove {fired[0].rule.name} under [stop] in {run.config}"
        )


# Ctrl-C once: finish the step (or abandon the evaluation), checkpoint, stop. Twice: stop now. SIGTERM counts as the
# first.


class AbandonedError(Exception):
    """An evaluation was given up because the run was asked to stop."""


class StopSignal:
    """While entered, turns the first interrupt into `requested = True`; the second raises KeyboardInterrupt.

    Outside the main thread no handler can be set, and `requested` is simply what the caller makes it.

    Args:
        announce: told once, when the first interrupt comes, what will happen now.
        plan: what the loop will do before it stops, e.g. `finishing the current step`.
    """

    def __init__(
        self, announce: Callable[[str], None] = lambda _: None, plan: Callable[[], str] = lambda: "stopping"
    ) -> None:
        self.requested = False
        self.name = ""
        """Of the signal that asked, e.g. `SIGTERM`."""
        self._announce, self._plan = announce, plan
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._first)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _first(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested, self.name = True, signal.Signals(number).name
        self._announce(f"interrupted by {self.name}: {self._plan()}; press Ctrl-C again to quit now")
