"""Settings of stop rules, and the table of the rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from coterie.config.base import Section
from coterie.config.renamed import metric_name

AVERAGED = 5
"""Steps of the running mean that `reward_drop` and `loss_explodes` compare: single steps are noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopKind:
    """One row of the table of stop rules."""

    metric: str
    """The metric that it reads; empty where the user names it."""
    threshold: float | None
    """The default; None where the user must give it."""
    patience: int
    """Steps in a row that must be bad, by default."""
    judges_sampler: bool
    """The metric was measured on what the weights before the step sampled, so these weights are bad already; otherwise
    it is the step itself that is bad."""
    bad: Literal["above", "below", "dropped", "spike", "risen"]
    """Comparison of a step's values with the threshold; see `train/stop_rules.py`."""
    words: str
    """Its message, with {metric} and {threshold}."""


KINDS: dict[str, StopKind] = {
    "entropy_below": StopKind(
        metric="entropy",
        threshold=0.1,
        patience=5,
        judges_sampler=True,
        bad="below",
        words="the policy hardly explores any more: {metric} below {threshold:g} nats",
    ),
    "kl_above": StopKind(
        metric="kl/ref",
        threshold=1.0,
        patience=3,
        judges_sampler=True,
        bad="above",
        words="the policy left its reference: {metric} above {threshold:g} nats a token",
    ),
    "kl_step_above": StopKind(
        metric="kl/old",
        threshold=0.05,
        patience=3,
        judges_sampler=False,
        bad="above",
        words="single steps move the policy too far: {metric} above {threshold:g} nats a token",
    ),
    "reward_drop": StopKind(
        metric="reward/mean",
        threshold=0.2,
        patience=10,
        judges_sampler=True,
        bad="dropped",
        words=f"the reward fell: {{metric}}, mean of {AVERAGED} steps, more than {{threshold:g}} below its best",
    ),
    "repetition_above": StopKind(
        metric="repetition/mean",
        threshold=0.5,
        patience=5,
        judges_sampler=True,
        bad="above",
        words="completions repeat themselves: {metric} above {threshold:g}",
    ),
    "truncated_above": StopKind(
        metric="truncated",
        threshold=0.5,
        patience=10,
        judges_sampler=True,
        bad="above",
        words="completions do not end: {metric} above {threshold:g}",
    ),
    "mismatch_above": StopKind(
        metric="mismatch/kl",
        threshold=0.01,
        patience=5,
        judges_sampler=True,
        bad="above",
        words="sampler and learner disagree: {metric} above {threshold:g} nats a token",
    ),
    "grad_spike": StopKind(
        metric="grad_norm",
        threshold=10.0,
        patience=3,
        judges_sampler=False,
        bad="spike",
        words="the gradient explodes: {metric} above {threshold:g} times the median of the 20 steps before",
    ),
    "loss_explodes": StopKind(
        metric="loss",
        threshold=1.5,
        patience=3,
        judges_sampler=True,
        bad="risen",
        words=f"the loss explodes: {{metric}}, mean of {AVERAGED} steps, above {{threshold:g}} times that of the first "
        f"{AVERAGED}",
    ),
    "non_finite": StopKind(
        metric="update/nonfinite",
        threshold=0.0,
        patience=1,
        judges_sampler=True,
        bad="above",
        words="a gradient was not finite: {metric} above {threshold:g}",
    ),
    "above": StopKind(
        metric="", threshold=None, patience=5, judges_sampler=True, bad="above", words="{metric} above {threshold:g}"
    ),
    "below": StopKind(
        metric="", threshold=None, patience=5, judges_sampler=True, bad="below", words="{metric} below {threshold:g}"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRule:
    """A stop rule with its numbers."""

    name: str
    metric: str
    threshold: float
    patience: int

    @classmethod
    def of(
        cls, name: str, *, metric: str = "", threshold: float | None = None, patience: int | None = None
    ) -> StopRule:
        """A rule with its defaults filled in."""
        kind = KINDS.get(name)
        if metric_name(metric) != metric:
            raise ValueError(f"stop rule {name!r}: metric = {metric!r} is now {metric_name(metric)!r}")
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


class StopRuleConfig(Section):
    """One reason to end a run early; `docs/diagnostics.md` has the table of rules."""

    name: str
    """The rule, e.g. entropy_below, kl_above, reward_drop or non_finite; above and below watch any metric."""
    metric: str = ""
    """Name of the metric, for `above` and `below` only."""
    threshold: float | None = None
    """Threshold of the metric; the rule's own default when left out."""
    patience: int | None = Field(default=None, ge=1)
    """Steps in a row that must be bad; the rule's own default when left out."""

    @model_validator(mode="after")
    def _check_rule(self) -> StopRuleConfig:
        StopRule.of(self.name, metric=self.metric, threshold=self.threshold, patience=self.patience)
        return self


class StopConfig(Section):
    """Early end of a run that goes wrong; its last good checkpoint is kept."""

    rules: list[StopRuleConfig] = Field(default_factory=list)
    """Each is asked after every step; none by default."""
