"""Settings of when to end a run that goes wrong."""

from __future__ import annotations

from pydantic import Field, model_validator

from coterie.config.section import Section


class StopRuleConfig(Section):
    """One reason to end a run early; `docs/diagnostics.md` has the table of rules."""

    name: str
    """The rule, e.g. entropy_below, kl_above, reward_drop or non_finite; above and below watch any metric."""
    metric: str = ""
    """Name of the metric, for `above` and `below` only."""
    threshold: float | None = None
    """Where it becomes bad; the rule's own default when left out."""
    patience: int | None = Field(default=None, ge=1)
    """Steps in a row that must be bad; the rule's own default when left out."""

    @model_validator(mode="after")
    def _known(self) -> StopRuleConfig:
        from coterie.diagnosis.stopping import StopRule  # brings numpy along

        StopRule.of(self.name, metric=self.metric, threshold=self.threshold, patience=self.patience)
        return self


class StopConfig(Section):
    """When to end a run that goes wrong; its last good checkpoint is kept."""

    rules: list[StopRuleConfig] = Field(default_factory=list)
    """Each is asked after every step; none by default."""
