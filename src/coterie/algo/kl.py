"""Estimators of the KL divergence from token log-probabilities (Schulman, "Approximating KL divergence")."""

from __future__ import annotations

import torch
from torch import Tensor

LIMIT = 20.0
"""Log-ratios are clamped to ± this before exp, so that one token cannot overflow the batch."""


def k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """log π - log π_ref: unbiased as a value, signed."""
    return logprobs - reference


def k2(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Half the squared log-ratio."""
    return (logprobs - reference).square() / 2


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """π_ref/π - log(π_ref/π) - 1, never negative: the KL of GRPO (DeepSeekMath eq. 4).

    >>> k3(torch.tensor([0.693147]), torch.tensor([0.0])).item()  # doctest: +ELLIPSIS
    0.193...
    """
    ratio = (reference - logprobs).clamp(-LIMIT, LIMIT)
    return torch.exp(ratio) - ratio - 1
