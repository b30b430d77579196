"""Settings of the reward: reward functions, step rewards and worker processes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from coterie.config.base import Section


class RewardConfig(Section):
    """One named part of the reward."""

    name: str
    """`task` (the source's own scorer), `exact`, `number`, `math`, `format`, `length`, `overlong`, `language`,
    `environment` (what the environment gave, over all turns), `call_valid`, `call_useful`, `call_needed`,
    `call_cost` (of calls of tools), `code` (hidden tests in a sandbox), `judge` (a model's grade), `valid_steps`,
    `faithful` and `unsound` (of worked solutions: docs/traces.md), or `module:function`. A run that Python started
    with a function of no module has `python:NAME#HASH` here."""
    weight: float = 1.0
    """Weight in the sum."""
    gate: bool = False
    """Multiply what the other parts earn by this one, a number from 0 to 1, instead of adding it; penalties of other
    parts are not multiplied. A gate that does not apply to a row leaves its reward as it is."""
    label: str | None = None
    """Name of the part in records and metrics; the function's name when left out."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the function."""
    completions: Literal["auto", "text", "messages"] = "auto"
    """How your own function gets completions: text, one string each; messages, a list of one message each, as TRL gives
    them for conversations. auto asks its annotations, its source and, where these do not tell, one call."""
    prompts: Literal["auto", "text", "messages"] = "auto"
    """The same for prompts: messages, the list of them; text, the last message's."""

    @model_validator(mode="after")
    def _check_forms(self) -> RewardConfig:
        if ":" not in self.name and (self.completions != "auto" or self.prompts != "auto"):
            raise ValueError(f"completions and prompts are for functions of your own; leave them out of {self.name!r}")
        return self

    @property
    def key(self) -> str:
        """Name of the part in records and metrics."""
        return self.label or self.name.split(":")[-1]


class StepRewardConfig(RewardConfig):
    """One function that rewards single steps of a completion."""

    name: str
    """`arithmetic`, `stages`, `trace` (docs/traces.md), or `module:function`."""
    weight: float = 1.0
    """Factor of its normalised scores beside those of other step functions; 0 records and trains nothing."""


class RewardsConfig(Section):
    """Scoring of rollouts, by functions in worker processes with a timeout."""

    functions: list[RewardConfig] = Field(default_factory=lambda: [RewardConfig(name="task")])
    """Reward functions; the reward is their weighted sum, times the gates."""
    steps: list[StepRewardConfig] = Field(default_factory=list)
    """Process reward functions, which score single steps of a completion."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Timeout of one call in seconds; the worker is killed then, and the rows end as reward errors. On Linux, time in
    which it only waits for a processor is not counted, up to ten times the limit."""
    workers: int = Field(default=1, ge=1)
    """Worker processes."""

    @model_validator(mode="after")
    def _distinct(self) -> RewardsConfig:
        if not self.functions:
            raise ValueError("rewards.functions is empty: a run needs at least one reward part")
        if all(part.gate for part in self.functions):
            raise ValueError("every part of rewards.functions is a gate; at least one must earn what gates multiply")
        for part in (*self.functions, *self.steps):
            # A stored run writes the default weight; that is none.
            if part.gate and (part.weight != 1.0 or isinstance(part, StepRewardConfig)):
                raise ValueError(f"{part.key!r} is a gate, which has no weight and is no step reward; leave one out")
        if len(self.environment) > 1:
            raise ValueError(
                f"rewards.functions has the environment's reward {len(self.environment)} times; name it once"
            )
        for section, labels in (("functions", self.labels()), ("steps", [step.key for step in self.steps])):
            twice = sorted({label for label in labels if labels.count(label) > 1})
            if twice:
                raise ValueError(f"rewards.{section} has several parts called {twice[0]!r}; give each its own label")
        return self

    def labels(self) -> list[str]:
        """Names of the parts, in order."""
        return [part.key for part in self.functions]

    @property
    def environment(self) -> dict[str, float]:
        """Weight of the part that is the environment's own reward, by its label; empty without one."""
        return {part.key: part.weight for part in self.functions if part.name == "environment"}

    def step_weights(self) -> dict[str, float]:
        """Weight of each step function by its label."""
        return {step.key: step.weight for step in self.steps}
