"""The settings of replay: which past groups are trained on once more, and how far the policy may have moved."""

from __future__ import annotations

from pydantic import Field, model_validator

from coterie.config.section import Section


class ReplayConfig(Section):
    """Train on whole groups of earlier steps again, while the policy is near the one that sampled them."""

    groups: int = Field(default=0, ge=0)
    """Past groups that join each step's update; 0 = off."""
    capacity: int = Field(default=64, ge=1)
    """Most groups that are kept; those with the least priority go first."""
    candidates: int = Field(default=2, ge=1)
    """Groups whose present probabilities are computed (one forward pass each) for each one that may join."""
    staleness: int = Field(default=4, ge=1)
    """Greatest age of a group, in policy versions."""
    low: float = Field(default=0.5, gt=0, lt=1)
    """A group is left out when the geometric mean of π_now / π_sampler over any of its rollouts is below this."""
    high: float = Field(default=2.0, gt=1)
    """Or above this."""
    half_life: float = Field(default=2.0, gt=0)
    """Versions in which a group's priority, its mean |advantage|, halves."""
    uniform: bool = False
    """Weigh replayed advantages by the inverse of the chance to be drawn, so that all kept groups count alike; else
    surprising and fresh groups count more, as often as they are drawn."""

    @model_validator(mode="after")
    def _fits(self) -> ReplayConfig:
        if self.groups > self.capacity:
            raise ValueError(
                f"groups = {self.groups} past groups a step cannot come from a memory of capacity = {self.capacity}"
            )
        return self
