"""Settings of rejection sampling: which rollouts are kept as conversations to imitate."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from coterie.config.base import Section


class RejectionConfig(Section):
    """Rejection sampling (`coterie rejection`): collect.group_size rollouts of each prompt of data.train are sampled,
    or stored ones are read, and the best are kept as conversations that `coterie sft` imitates."""

    rollouts: list[str] = Field(default_factory=list)
    """Runs whose stored rollouts are read instead of sampling: names or folders."""
    since: int = Field(default=1, ge=1)
    """First step of those runs that is read."""
    min_reward: float | None = None
    """Smallest reward of a kept rollout; none: those that are correct (eval.reward reaches eval.correct_threshold, or
    1)."""
    min_step_reward: float | None = None
    """Smallest reward of each of its steps, where steps are rewarded (rewards.steps)."""
    min_tokens: int = Field(default=1, ge=1)
    """Shortest kept rollout in tokens, over all turns of the model."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Longest kept rollout in tokens; none: any that ended by itself."""
    per_prompt: int = Field(default=1, ge=1)
    """Most rollouts that are kept of a prompt."""
    prefer: Literal["reward", "short", "first"] = "reward"
    """Which of a prompt's rollouts come first: of the highest reward (the shorter of equal ones), the shortest, or the
    earliest."""
    max_similarity: float = Field(default=0.9, gt=0, le=1)
    """A rollout is left out when it shares a larger part of its word pairs with a kept one of the same prompt; a
    repeated text always is."""
    rows: int | None = Field(default=None, ge=1)
    """Most rows of the data set; none: all that are kept."""
    balance: Literal["none", "task", "difficulty", "region"] = "none"
    """With `rows`: take rows in turn from the groups of the same task, difficulty, or region of the group-aware
    baseline, so that rare ones are not lost among easy ones."""
    system: str | None = None
    """System message of the written conversations: none keeps it, empty removes it, a text replaces it. Removing a
    worked example here is what lets fine-tuning teach the model to do without it."""

    @model_validator(mode="after")
    def _check_balance(self) -> RejectionConfig:
        if self.balance != "none" and self.rows is None:
            raise ValueError(f"balance = {self.balance!r} chooses which rows to leave out: it needs rows, their number")
        if self.max_tokens is not None and self.max_tokens < self.min_tokens:
            raise ValueError(f"max_tokens = {self.max_tokens} is below min_tokens = {self.min_tokens}: nothing is kept")
        return self
