"""Settings of imitation: supervised fine-tuning on conversations, and rejection sampling, which makes them."""

from __future__ import annotations

import string
from typing import Literal

from pydantic import Field, field_validator, model_validator

from coterie.config.base import Section

LR, LORA_LR = 2e-5, 2e-4
"""Learning rates of supervised fine-tuning where none is set: of all weights, and of an adapter."""


class SftConfig(Section):
    """Supervised fine-tuning (`coterie sft`): the rows of data.train are conversations to imitate."""

    batch_size: int = Field(default=16, ge=1)
    """Conversations per step."""
    epochs: float = Field(default=3.0, gt=0)
    """Passes over the conversations; used where `steps` is not set. Where optim.lr is not set, it is 2e-5, with
    model.lora 2e-4."""
    turns: Literal["all", "last"] = "all"
    """The assistant's turns that are trained: all of a conversation, or the last one."""
    max_tokens: int = Field(default=1024, ge=2)
    """Longest conversation in tokens, prompt included. A longer one is a bad row, counted in data.max_bad_share:
    nothing is ever cut."""
    completion_column: str | None = Field(default=None, min_length=1)
    """Column of the reply to the prompt. When left out, it is recognised: `completion`, `response`, `output`, or
    `solution`, where a row holds no conversation."""
    steps_column: str | None = Field(default=None, min_length=1)
    """Column with the list of annotated steps; `steps` when left out. A completion must hold them in their order, with
    nothing but white space between."""
    layout: str = "{steps}\n{answer}"
    """Completion of a row with `steps` and `answer` alone: `{steps}`, a line each, and `{answer}`. For example
    `<think>\n{steps}\n</think>\n<answer>{answer}</answer>`."""
    heldout_share: float = Field(default=0.05, ge=0, lt=1)
    """Share of the prompts whose conversations are not trained on and measure the held-out loss, beside the
    conversations in data.heldout."""
    best: Literal["loss", "accuracy", "last"] = "loss"
    """Which checkpoint is kept as the best, `RUN@best`: of the smallest held-out loss, of the highest held-out result,
    or the last one."""

    @field_validator("layout")
    @classmethod
    def _check_layout(cls, value: str) -> str:
        try:
            names = [name for _, name, _, _ in string.Formatter().parse(value) if name is not None]
        except ValueError as error:
            raise ValueError(f"layout = {value!r} is no layout: {error}; write {{{{ for a brace of the text") from None
        if sorted(names) != ["answer", "steps"]:
            raise ValueError(f"layout = {value!r} must hold {{steps}} and {{answer}} once each")
        return value

    def rate(self, *, adapter: bool) -> float:
        """Learning rate where none is set."""
        return LORA_LR if adapter else LR

    def steps(self, rows: int) -> int:
        """Number of steps of `epochs` passes over so many conversations."""
        return max(1, round(self.epochs * rows / self.batch_size))


class RejectionConfig(Section):
    """Rejection sampling (`coterie rejection`): the best rollouts, sampled or stored, become rows for `coterie sft`."""

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
    enough: int | None = Field(default=None, ge=1)
    """Sampling ends with the step in which so many rollouts are kept; none: every prompt of data.train is sampled."""
    min_rows: int = Field(default=1, ge=1)
    """Fewest rows of the data set. With fewer the stage ends in an error, before anything is trained on them."""
    balance: Literal["none", "task", "difficulty", "region"] = "none"
    """With `rows`: take rows in turn from the groups of the same task, difficulty, or region of the group-aware
    baseline, so that rare ones are not lost among easy ones."""
    prompt: Literal["whole", "question"] = "whole"
    """Prompt of the written conversations: whole, or the system message and the last question alone, without the worked
    examples before it, which fine-tuning then teaches the model to do without."""
    system: str | None = None
    """System message of the written conversations: none keeps it, empty removes it, a text replaces it."""

    @model_validator(mode="after")
    def _check_balance(self) -> RejectionConfig:
        if self.balance != "none" and self.rows is None:
            raise ValueError(f"balance = {self.balance!r} chooses which rows to leave out: it needs rows, their number")
        for name in ("enough", "min_rows"):
            value = getattr(self, name)
            if value is not None and self.rows is not None and value > self.rows:
                raise ValueError(f"{name} = {value} is above rows = {self.rows}: never so many are kept")
        if self.enough is not None and self.rollouts:
            raise ValueError(f"enough = {self.enough} ends sampling, and rollouts are read: leave one of them out")
        if self.max_tokens is not None and self.max_tokens < self.min_tokens:
            raise ValueError(f"max_tokens = {self.max_tokens} is below min_tokens = {self.min_tokens}: nothing is kept")
        return self
