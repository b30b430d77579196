"""Stop rules: when a metric has been bad for too long, the run ends.

A rule reads the recorded series alone, so a resumed run stops exactly where an uninterrupted one would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coterie.diagnosis.series import Series, preceding_median, running_mean, streak

Mask = NDArray[np.bool_]
AVERAGED = 5
"""Steps of the running mean that `reward_drop` compares: single steps are noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopKind:
    """One row of the table of stop rules."""

    metric: str
    """What it reads; empty where the user names it."""
    threshold: float | None
    """The default; None where the user must give it."""
    patience: int
    """Steps in a row that must be bad, by default."""
    judges_sampler: bool
    """The metric was measured on what the weights before the step sampled, so these weights are bad already; otherwise
    it is the step itself that is bad."""
    bad: Callable[[NDArray[np.float64], float], Mask]
    """[S] values, threshold → [S] which are bad."""
    words: str
    """What it says, with {metric} and {threshold}."""


def _above(values: NDArray[np.float64], threshold: float) -> Mask:
    return values > threshold


def _below(values: NDArray[np.float64], threshold: float) -> Mask:
    return values < threshold


def _dropped(values: NDArray[np.float64], threshold: float) -> Mask:
    """The running mean is below its best so far by more than the threshold."""
    found = np.zeros(len(values), dtype=bool)
    means = running_mean(values, AVERAGED)
    if len(means):
        found[AVERAGED - 1 :] = means < np.maximum.accumulate(means) - threshold
    return found


def _spike(values: NDArray[np.float64], threshold: float) -> Mask:
    before = preceding_median(values)
    return np.nan_to_num(values / np.where(before > 0, before, np.inf)) > threshold


KINDS: dict[str, StopKind] = {
    "entropy_below": StopKind(
        metric="entropy",
        threshold=0.1,
        patience=5,
        judges_sampler=True,
        bad=_below,
        words="the policy hardly explores any more: {metric} below {threshold:g} nats",
    ),
    "kl_above": StopKind(
        metric="kl/ref",
        threshold=1.0,
        patience=3,
        judges_sampler=True,
        bad=_above,
        words="the policy left its reference: {metric} above {threshold:g} nats a token",
    ),
    "kl_step_above": StopKind(
        metric="kl/old",
        threshold=0.05,
        patience=3,
        judges_sampler=False,
        bad=_above,
        words="single steps move the policy too far: {metric} above {threshold:g} nats a token",
    ),
    "reward_drop": StopKind(
        metric="reward/mean",
        threshold=0.2,
        patience=10,
        judges_sampler=True,
        bad=_dropped,
        words=f"the reward fell: {{metric}}, mean of {AVERAGED} steps, more than {{threshold:g}} below its best",
    ),
    "repetition_above": StopKind(
        metric="repetition/mean",
        threshold=0.5,
        patience=5,
        judges_sampler=True,
        bad=_above,
        words="completions repeat themselves: {metric} above {threshold:g}",
    ),
    "truncated_above": StopKind(
        metric="truncated",
        threshold=0.5,
        patience=10,
        judges_sampler=True,
        bad=_above,
        words="completions do not end: {metric} above {threshold:g}",
    ),
    "mismatch_above": StopKind(
        metric="mismatch/kl",
        threshold=0.01,
        patience=5,
        judges_sampler=True,
        bad=_above,
        words="sampler and learner disagree: {metric} above {threshold:g} nats a token",
    ),
    "grad_spike": StopKind(
        metric="grad_norm",
        threshold=10.0,
        patience=3,
        judges_sampler=False,
        bad=_spike,
        words="the gradient explodes: {metric} above {threshold:g} times the median of the 20 steps before",
    ),
    "non_finite": StopKind(
        metric="updates/skipped",
        threshold=0.0,
        patience=1,
        judges_sampler=True,
        bad=_above,
        words="a gradient was not finite: {metric} above {threshold:g}",
    ),
    "above": StopKind(
        metric="", threshold=None, patience=5, judges_sampler=True, bad=_above, words="{metric} above {threshold:g}"
    ),
    "below": StopKind(
        metric="", threshold=None, patience=5, judges_sampler=True, bad=_below, words="{metric} below {threshold:g}"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRule:
    """A row of the table with its numbers settled."""

    name: str
    metric: str
    threshold: float
    patience: int

    @classmethod
    def of(
        cls, name: str, *, metric: str = "", threshold: float | None = None, patience: int | None = None
    ) -> StopRule:
        """A rule with its defaults filled in.

        Raises:
            ValueError: there is no such rule, or `above` and `below` lack their metric or threshold.
        """
        kind = KINDS.get(name)
        if kind is None:
            raise ValueError(f"stop rule {name!r} does not exist; expected one of {', '.join(KINDS)}")
        if bool(kind.metric) == bool(metric):
            raise ValueError(
                f"stop rule {name!r} needs a metric, e.g. length/mean"
                if not kind.metric
                else f"stop rule {name!r} reads {kind.metric}; leave out metric = {metric!r}, or use above or below"
            )
        limit = kind.threshold if threshold is None else threshold
        if limit is None:
            raise ValueError(f"stop rule {name!r} needs a threshold")
        return cls(
            name=name,
            metric=metric or kind.metric,
            threshold=limit,
            patience=kind.patience if patience is None else patience,
        )

    @property
    def kind(self) -> StopKind:
        return KINDS[self.name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one rule says after a step."""

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
        """Why the run ends, in one sentence."""
        rule = self.rule
        words = rule.kind.words.format(metric=rule.metric, threshold=rule.threshold)
        last = "" if self.value is None else f", {self.value:.4g} at the last"
        count = "1 step" if self.bad == 1 else f"{self.bad} steps in a row"
        return f"stop rule {rule.name}: {words} for {count}{last}"


def judge(rule: StopRule, series: Series, step: int) -> Verdict:
    """One rule on its series up to a step; a step without a value neither ends a bad stretch nor adds to it."""
    known = series.steps <= step
    steps, values = series.steps[known], series.values[known]
    bad = streak(rule.kind.bad(values, rule.threshold)) if len(steps) else 0
    if bad:
        first_bad = int(steps[-bad])
    else:
        first_bad = 1 + (int(steps[-1]) if len(steps) else step)
    return Verdict(
        rule=rule,
        bad=bad,
        good_through=first_bad - (2 if rule.kind.judges_sampler else 1),
        value=float(values[-1]) if bad else None,
    )


def judge_all(rules: Sequence[StopRule], series: Mapping[str, Series], step: int) -> list[Verdict]:
    """All rules, in their order."""
    empty = Series.of("", [])
    return [judge(rule, series.get(rule.metric, empty), step) for rule in rules]
