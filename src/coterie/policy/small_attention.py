"""Attention over a few hundred keys as plain matrix products, with a backward pass of its own.

On a CPU the fused kernel's backward pass takes three times its forward pass on short continuations; four products
and a softmax take half of that. The probabilities are kept between the passes, so this is for short keys only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from coterie.algo.precision import at_least_float32

LONGEST = 384
"""Keys up to which it is faster than the fused kernel, and its probabilities small beside the other activations."""


class _SmallAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
        precision = at_least_float32(query.dtype)
        # Scores in full precision: rounded to bfloat16, a score of 10 would be off by 2 % of its probability.
        scores = (query.to(precision) * scale) @ key.to(precision).transpose(-1, -2)
        weights = torch.softmax(scores.add_(mask), -1).to(query.dtype)
        ctx.save_for_backward(query, key, value, weights)
        ctx.scale = scale
        return weights @ value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights = ctx.saved_tensors
        grad = grads[0].contiguous()
        value_grad = weights.transpose(-1, -2) @ grad
        weights_grad = (grad @ value.transpose(-1, -2)).mul_(weights)
        # d score = w · (d w - Σ w · d w)
        total = weights_grad.sum(-1, keepdim=True, dtype=at_least_float32(grad.dtype))
        scores_grad = torch.addcmul(weights_grad, weights, total.to(grad.dtype), value=-1).mul_(ctx.scale)
        return scores_grad @ key, scores_grad.transpose(-1, -2) @ query, value_grad, None, None


def small_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """softmax(query · keyᵀ · scale + mask) · value.

    Args:
        query: [B, K, Q, D]; key and value [B, K, S, D]; mask broadcasts to [B, K, Q, S], 0 or -inf.
    """
    return _SmallAttention.apply(query, key, value, mask, scale)
