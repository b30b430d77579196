"""What an update measured: its metrics and log-probs, as sums over the passes of all ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from coterie.algo.losses import LossInputs, LossOutputs
from coterie.batches.batch import Batch
from coterie.policy.critic import ValueMetrics
from coterie.policy.forward import UpdateContext
from coterie.policy.metrics import TokenMetrics


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UpdatePass:
    """Tensors of one forward and backward pass, for the metrics."""

    inputs: LossInputs
    outputs: LossOutputs
    entropy: Tensor
    values: Tensor | None
    value_loss: Tensor | None
    batch: Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateReport:
    """Metrics and log-probs of one update."""

    metrics: dict[str, float]
    logprobs: dict[str, np.ndarray]
    """rollout id → [N] the learner's log-probs of its trained tokens before the first optimizer step; of fresh rollouts
    only."""
    skipped: int
    """Optimizer steps not taken because the gradient was not finite."""
    splits: int = 0
    """Number of packed batches cut in two because memory was refused."""


@dataclass(slots=True, kw_only=True, eq=False)
class UpdateSums:
    """What the optimizer steps of an update measured, as sums: `a.merge(b)` is that of both halves of the rows."""

    tokens: TokenMetrics = field(default_factory=TokenMetrics)
    values: ValueMetrics = field(default_factory=ValueMetrics)
    logprobs: dict[str, np.ndarray] = field(default_factory=dict)
    """See `UpdateReport.logprobs`."""
    rates: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    """Norm of the whole gradient, an optimizer step each."""
    splits: int = 0

    def add(self, part: UpdatePass, context: UpdateContext) -> None:
        """Add what one forward and backward pass measured."""
        measured = _before_update(part, context)
        self.tokens.add(part.outputs, part.inputs, part.entropy, part.batch.replayed, measured)
        if part.values is not None and part.value_loss is not None:
            self.values.add(part.batch, part.values, part.value_loss)
        if measured is not None:
            _keep(self.logprobs, part.batch, measured)

    def merge(self, other: UpdateSums) -> None:
        """Add what another part of the same optimizer steps measured."""
        self.tokens.merge(other.tokens)
        self.values.merge(other.values)
        self.logprobs |= other.logprobs
        self.splits += other.splits

    def report(self) -> UpdateReport:
        """The metrics of the whole update."""
        metrics = {**self.tokens.summary(), **self.values.summary(), "lr": self.rates[-1] if self.rates else 0.0}
        finite = [norm for norm in self.norms if math.isfinite(norm)]
        if finite:
            metrics["grad_norm"] = sum(finite) / len(finite)
        skipped = len(self.norms) - len(finite)
        return UpdateReport(metrics=metrics, logprobs=self.logprobs, skipped=skipped, splits=self.splits)


def _before_update(part: UpdatePass, context: UpdateContext) -> Tensor | None:
    """[N] the learner's log-probs under the weights that sampled; None where no pass has computed them."""
    if not context.bypass:
        return part.inputs.old_logprobs
    return None if context.moved else part.inputs.logprobs.detach()


def _keep(logprobs: dict[str, np.ndarray], batch: Batch, measured: Tensor) -> None:
    for rollout_id, (low, high) in batch.spans.items():
        if not batch.replayed[low:high].any():
            logprobs.setdefault(rollout_id, measured[low:high].numpy(force=True))
