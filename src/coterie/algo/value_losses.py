"""Losses of a critic's values: squared error, with the clipping of PPO or without, or cross-entropy for 0/1 rewards;
and the share of the returns' variance that the values explain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def explained_variance(returns: np.ndarray, values: np.ndarray) -> float:
    """1 - Var(returns - values) / Var(returns): 1 for a perfect critic, 0 for a constant, below 0 for one that harms.

    0 where the returns do not vary.
    """
    returns, values = np.asarray(returns, dtype=np.float64), np.asarray(values, dtype=np.float64)
    whole = float(returns.var()) if returns.size else 0.0
    return 1 - float((returns - values).var()) / whole if whole > 1e-12 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueLoss:
    """Value loss of a set of tokens."""

    loss: Tensor
    """Scalar: the sum of weight times error, so that parts of a batch add up to the whole."""
    clipped: Tensor
    """[N] bool: tokens whose gradient the clip really zeroed."""


def squared_value_loss(
    values: Tensor, returns: Tensor, weights: Tensor, *, old_values: Tensor | None = None, clip: float | None = None
) -> ValueLoss:
    """Half the squared error: the sum of weights · ½ max((v - G)², (v_old + clamp(v - v_old, ±clip) - G)²).

    The maximum makes the loss larger, never smaller: clipping slows the critic down, and off is a sensible default.

    Args:
        values: [N] the critic now, with gradient.
        returns: [N] targets.
        weights: [N] share of the optimizer step's global denominator.
        old_values: [N] the critic at the start of the update; needed to clip.
        clip: how far a value may move from the old one; None does not clip.
    """
    error = (values - returns) ** 2
    clipped = torch.zeros_like(values, dtype=torch.bool)
    if clip is not None:
        if old_values is None or not clip > 0:
            raise ValueError(f"clip = {clip} needs old_values and must be above 0")
        moved = values - old_values
        bounded = (old_values + moved.clamp(-clip, clip) - returns) ** 2
        clipped = (bounded > error) & (moved.abs() > clip)
        error = torch.maximum(error, bounded)
    return ValueLoss(loss=0.5 * (weights * error).sum(), clipped=clipped)


def binary_value_loss(logits: Tensor, returns: Tensor, weights: Tensor) -> ValueLoss:
    """Cross-entropy for returns from 0 to 1: the critic's value is sigmoid(logit), and cannot leave that range.

    Args:
        logits: [N] with gradient.
        returns: [N] targets, from 0 to 1; those outside are taken as the nearer end.
        weights: [N] as above.
    """
    error = F.binary_cross_entropy_with_logits(logits, returns.clamp(0, 1), reduction="none")
    return ValueLoss(loss=(weights * error).sum(), clipped=torch.zeros_like(logits, dtype=torch.bool))
