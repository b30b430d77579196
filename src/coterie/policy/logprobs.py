"""Log-probabilities at trained positions only, in chunks, so that full logits never exist.

The head is recomputed in the backward pass: for one row, d logp(y) / d z = onehot(y) - softmax(z), with z the logits
over the temperature. Logits are taken to float32 before the softmax (float64 stays float64), a cache-sized block of
rows at a time, since on a CPU these passes over the vocabulary otherwise cost more than the matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from coterie.algo.precision import at_least_float32

CHUNK = 512
"""Rows of one matrix product with the head: 512 × 49,152 bfloat16 logits are 50 MB."""

_BLOCK = 1 << 19
"""Logits taken to full precision at once on a CPU: 2 MB stay in its cache through the passes of the softmax."""


def _blocks(logits: Tensor) -> Iterator[slice]:
    """Rows to work on at once."""
    rows, vocabulary = logits.shape
    size = max(1, _BLOCK // vocabulary) if logits.device.type == "cpu" else rows
    return (slice(start, start + size) for start in range(0, rows, size))


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """A copy in full precision, over the temperature."""
    copy = logits.to(at_least_float32(logits.dtype), copy=True)
    return copy if temperature == 1 else copy.div_(temperature)


def _statistics(logits: Tensor, target: Tensor, temperature: float, entropy: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of each target, log of the softmax's denominator and entropy, all [rows]."""
    scaled = _scaled(logits, temperature)
    peak = scaled.amax(-1, keepdim=True)
    picked = scaled.gather(1, target[:, None])
    shifted = scaled.sub_(peak)
    weights = shifted.exp()
    total = weights.sum(-1, keepdim=True)
    norm = peak + total.log()
    logprob = (picked - norm)[:, 0]
    if not entropy:
        return logprob, norm[:, 0], torch.zeros_like(logprob)
    # H = log Σe - Σ e·z / Σe, on shifted logits
    return logprob, norm[:, 0], (total.log() - weights.mul_(shifted).sum(-1, keepdim=True) / total)[:, 0]


def _to_gradient(logits: Tensor, target: Tensor, norm: Tensor, grad: Tensor, temperature: float) -> None:
    """Overwrite logits [rows, V] with the gradient that reaches them: (onehot - softmax) · grad / temperature."""
    delta = _scaled(logits, temperature).sub_(norm[:, None]).exp_()
    scale = grad / temperature
    delta.mul_(-scale[:, None])
    delta[torch.arange(target.numel(), device=target.device), target] += scale
    logits.copy_(delta)


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for rows, target in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
            logits = torch.nn.functional.linear(rows, weight, bias)
            found += [_statistics(logits[part], target[part], temperature, entropy) for part in _blocks(logits)]
        empty = hidden.new_zeros(0, dtype=at_least_float32(hidden.dtype))
        logprobs, norms, entropies = (
            (torch.cat(column) for column in zip(*found, strict=True)) if found else (empty,) * 3
        )
        ctx.save_for_backward(hidden, weight, targets, norms)
        ctx.bias, ctx.temperature = bias, temperature
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, norms = ctx.saved_tensors
        grad, bias = grads[0], ctx.bias
        # Sums over chunks in full precision: many small terms would vanish in bfloat16.
        weight_grad = torch.zeros_like(weight, dtype=norms.dtype) if ctx.needs_input_grad[1] else None
        bias_grad = torch.zeros_like(bias, dtype=norms.dtype) if bias is not None and ctx.needs_input_grad[2] else None
        hidden_grad = torch.empty_like(hidden)
        for start in range(0, hidden.shape[0], CHUNK):
            part = slice(start, start + CHUNK)
            logits = torch.nn.functional.linear(hidden[part], weight, bias)
            for block in _blocks(logits):
                rows = slice(start + block.start, min(start + block.stop, part.stop))
                _to_gradient(logits[block], targets[rows], norms[rows], grad[rows], ctx.temperature)
            hidden_grad[part] = logits @ weight
            if weight_grad is not None:
                weight_grad += logits.T @ hidden[part]
            if bias_grad is not None:
                bias_grad += logits.sum(0)
        weight_out = None if weight_grad is None else weight_grad.to(weight.dtype)
        bias_out = None if bias_grad is None else bias_grad.to(bias.dtype)
        return hidden_grad, weight_out, bias_out, None, None, None


def chunked_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    temperature: float,
    entropy: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, and the entropy of its distribution.

    Args:
        hidden: [N, D] the states that predict the targets.
        weight: [V, D] of the head; bias [V] or None.
        targets: [N] int64.
        temperature: divides the logits.
        entropy: also return the entropies (no gradient flows through them); else zeros.

    Returns:
        log-probabilities [N] and entropies [N], float32 (float64 for float64 input).
    """
    return _ChunkedLogprobs.apply(hidden, weight, bias, targets, temperature, entropy)
