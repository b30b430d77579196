"""Settings of supervised fine-tuning: which conversations a step imitates, and what counts as a bad one."""

from __future__ import annotations

import string
from typing import Literal

from pydantic import Field, field_validator

from coterie.config.base import Section

LR, LORA_LR = 2e-5, 2e-4
"""Learning rates of supervised fine-tuning where none is set: of all weights, and of an adapter."""


class SftConfig(Section):
    """Supervised fine-tuning: the rows of data.train are conversations to imitate (`coterie sft`). Where optim.lr is
    not set, it is 2e-5, with model.lora 2e-4."""

    batch_size: int = Field(default=16, ge=1)
    """Conversations per step."""
    epochs: float = Field(default=3.0, gt=0)
    """Passes over the conversations; used where `steps` is not set."""
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
