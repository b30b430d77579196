"""The objective of GRPO as a pure function of token tensors. Record in, record out; no model, no config.

Every tensor is [N]: one entry per trained token of the whole optimizer step or of any part of it. The loss is a *sum*
in which each token carries its share of one global denominator (`weights`), so cutting the same tokens into one or
eight micro-batches adds up to the same loss and gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from coterie.algo.kl import LIMIT, k3


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """What one part of the batch hands to the loss; all [N]."""

    logprobs: Tensor
    """log π_θ, with gradient."""
    old_logprobs: Tensor
    """log π at the start of the update, detached. Equal to `logprobs` on the first step, so the ratio is exactly 1."""
    reference_logprobs: Tensor | None
    """log π_ref of the frozen reference; None when kl_beta = 0."""
    advantages: Tensor
    clip_low: Tensor
    """Offset below 1."""
    clip_high: Tensor
    """Offset above 1."""
    weights: Tensor
    """Share of the global denominator: 1/(rollouts · tokens of the rollout), or 1/(all tokens)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutputs:
    """The loss of this part, and what each token did, [N] and detached, for the metrics."""

    loss: Tensor
    """Scalar sum, with gradient."""
    ratio: Tensor
    clipped_low: Tensor
    """bool: the gradient is zero because the ratio fell below the bound while the advantage is negative."""
    clipped_high: Tensor
    """bool: the gradient is zero because the ratio passed the bound while the advantage is positive."""
    kl: Tensor | None
    """k3 against the reference."""


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip_low: Tensor | float, clip_high: Tensor | float) -> Tensor:
    """min(ρA, clip(ρ, 1 - low, 1 + high)·A), DeepSeekMath eq. 3: what is maximised, per token.

    >>> one = torch.tensor
    >>> clipped_surrogate(one([1.5, 0.5, 1.5, 0.5]), one([1.0, 1.0, -1.0, -1.0]), 0.2, 0.2).tolist()
    [1.2000000476837158, 0.5, -1.5, -0.800000011920929]
    """
    low = 1 - torch.as_tensor(clip_low, dtype=ratio.dtype, device=ratio.device)
    high = 1 + torch.as_tensor(clip_high, dtype=ratio.dtype, device=ratio.device)
    clipped = torch.maximum(torch.minimum(ratio, high), low)
    return torch.minimum(ratio * advantages, clipped * advantages)


def grpo_loss(inputs: LossInputs, *, kl_beta: float) -> LossOutputs:
    """Negative GRPO objective (DeepSeekMath eq. 3; DeepSeek-R1 eq. 1 read per token).

    Args:
        inputs: see `LossInputs`.
        kl_beta: weight of the k3 KL inside the loss.

    Raises:
        ValueError: kl_beta > 0 without reference log-probs.
    """
    ratio = torch.exp((inputs.logprobs - inputs.old_logprobs).clamp(-LIMIT, LIMIT))
    per_token = -clipped_surrogate(ratio, inputs.advantages, inputs.clip_low, inputs.clip_high)
    kl = None
    if kl_beta > 0:
        if inputs.reference_logprobs is None:
            raise ValueError(f"kl_beta = {kl_beta} needs reference log-probs; got none")
        kl = k3(inputs.logprobs, inputs.reference_logprobs)
        per_token = per_token + kl_beta * kl
    held = ratio.detach()
    return LossOutputs(
        loss=(per_token * inputs.weights).sum(),
        ratio=held,
        clipped_low=(held < 1 - inputs.clip_low) & (inputs.advantages < 0),
        clipped_high=(held > 1 + inputs.clip_high) & (inputs.advantages > 0),
        kl=None if kl is None else kl.detach(),
    )
