"""Log-probabilities at trained positions only, in chunks, so that full logits never exist.

The head is recomputed in the backward pass: for one row, d logp(y) / d z = onehot(y) - softmax(z), with z the logits
over the temperature. Logits are taken to float32 before the softmax (float64 stays float64).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = 256
"""Rows per chunk: 256 × 49,152 float32 logits are 50 MB."""


def _scaled(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    logits = torch.nn.functional.linear(hidden, weight, bias)
    precision = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return logits.to(precision) / temperature


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
        logprobs, entropies, norms = [], [], []
        for rows, target in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
            scaled = _scaled(rows, weight, bias, temperature)
            peak = scaled.amax(-1, keepdim=True)
            picked = scaled.gather(1, target[:, None])
            shifted = scaled.sub_(peak)
            weights = shifted.exp()
            total = weights.sum(-1, keepdim=True)
            norm = peak + total.log()
            logprobs.append((picked - norm)[:, 0])
            norms.append(norm[:, 0])
            if entropy:  # H = log Σe - Σ e·z / Σe, on shifted logits
                entropies.append((total.log() - (weights * shifted).sum(-1, keepdim=True) / total)[:, 0])
        result = torch.cat(logprobs)
        ctx.save_for_backward(hidden, weight, targets, torch.cat(norms))
        ctx.bias, ctx.temperature = bias, temperature
        out = torch.cat(entropies) if entropy else torch.zeros_like(result)
        ctx.mark_non_differentiable(out)
        return result, out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, norms = ctx.saved_tensors
        grad = grads[0]
        need_weight = ctx.needs_input_grad[1]
        hidden_grads = []
        precision = torch.float64 if weight.dtype == torch.float64 else torch.float32
        weight_grad = torch.zeros(weight.shape, dtype=precision, device=weight.device) if need_weight else None
        bias_grad = torch.zeros_like(ctx.bias) if ctx.bias is not None and ctx.needs_input_grad[2] else None
        for start in range(0, hidden.shape[0], CHUNK):
            part = slice(start, start + CHUNK)
            rows, target = hidden[part], targets[part]
            delta = _scaled(rows, weight, ctx.bias, ctx.temperature).sub_(norms[part, None]).exp_().neg_()
            delta[torch.arange(target.numel(), device=target.device), target] += 1
            delta *= (grad[part] / ctx.temperature)[:, None]
            delta = delta.to(weight.dtype)
            hidden_grads.append(delta @ weight)
            if weight_grad is not None:
                weight_grad += delta.T @ rows
            if bias_grad is not None:
                bias_grad += delta.sum(0)
        weight_out = None if weight_grad is None else weight_grad.to(weight.dtype)
        return torch.cat(hidden_grads), weight_out, bias_grad, None, None, None


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
