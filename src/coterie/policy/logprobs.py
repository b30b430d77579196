"""Log-probabilities at trained positions only, in chunks, so that full logits never exist.

`hidden_states_at` runs a packed row through a decoder and keeps the states that predict its trained tokens. The head is
recomputed in the backward pass. For one row, with z the logits over the temperature and p = softmax(z):
d log p(y) / d z = onehot(y) - p, and d H / d z = -p·(log p + H) for the entropy H = -Σ p·log p. Logits are taken to
float32 before the softmax (float64 stays float64), a cache-sized block of rows at a time, since on a CPU these passes
over the vocabulary otherwise cost more than the matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from coterie.algo.sampling import at_least_float32
from coterie.batches.batch import Batch
from coterie.policy.head import LogitTransform
from coterie.policy.kernels import Kernel, packed_layout, pad_row
from coterie.policy.model import Policy

CHUNK = 512
"""Rows of one matrix product with the head: 512 × 49,152 bfloat16 logits are 50 MB."""

_BLOCK = 1 << 19
"""Logits taken to full precision at once on a CPU: 2 MB stay in its cache through the passes of the softmax."""


def _blocks(logits: Tensor) -> Iterator[slice]:
    """Slices of rows that are processed at once."""
    rows, vocabulary = logits.shape
    size = max(1, _BLOCK // vocabulary) if logits.device.type == "cpu" else rows
    return (slice(start, start + size) for start in range(0, rows, size))


def _scaled(logits: Tensor, temperature: float, transform: LogitTransform) -> Tensor:
    """A copy in full precision, transformed as the model does it, over the temperature."""
    copy = logits.to(at_least_float32(logits.dtype), copy=True)
    if not transform.identity:
        transform.apply_(copy)
    return copy if temperature == 1 else copy.div_(temperature)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFlags:
    """Outputs to compute beside the log-probabilities; each costs a pass over the vocabulary."""

    entropy: bool = False
    entropy_gradient: bool = False
    """The entropies carry a gradient; implies `entropy`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenOutputs:
    """Outputs of the head for the trained tokens, all [N], float32 (float64 for float64 input); zeros by default."""

    logprobs: Tensor
    entropies: Tensor
    """nats."""


def _statistics(
    logits: Tensor, target: Tensor, temperature: float, flags: OutputFlags, transform: LogitTransform
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of each target, log of the softmax's denominator, and entropy, all [rows]."""
    scaled = _scaled(logits, temperature, transform)
    peak = scaled.amax(-1, keepdim=True)
    picked = scaled.gather(1, target[:, None])
    shifted = scaled.sub_(peak)
    weights = shifted.exp()
    total = weights.sum(-1, keepdim=True)
    norm = peak + total.log()
    logprob = (picked - norm)[:, 0]
    entropy = torch.zeros_like(logprob)
    if flags.entropy or flags.entropy_gradient:
        # H = log Σe - Σ e·z / Σe, on shifted logits
        entropy = (total.log() - weights.mul_(shifted).sum(-1, keepdim=True) / total)[:, 0]
    return logprob, norm[:, 0], entropy


def _to_gradient(
    logits: Tensor,
    target: Tensor,
    norm: Tensor,
    grad: Tensor,
    transform: LogitTransform,
    temperature: float,
    entropy: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Overwrite the head's output [rows, V] with the gradient that reaches it: (onehot - p) · grad / temperature, times
    the transform's slope.

    With `entropy`, the entropies [rows] and their gradient, plus -p·(log p + H) · gradient / temperature.
    """
    delta = _scaled(logits, temperature, transform)
    slope = None if transform.identity else transform.slope(delta * temperature)
    delta.sub_(norm[:, None])
    scale = grad / temperature
    if entropy is None:
        delta.exp_().mul_(-scale[:, None])
    else:
        value, entropy_grad = entropy[0][:, None], (entropy[1] / temperature)[:, None]
        weights = delta.exp()
        delta.add_(value).mul_(-entropy_grad).sub_(scale[:, None]).mul_(weights)
    delta[torch.arange(target.numel(), device=target.device), target] += scale
    logits.copy_(delta if slope is None else delta.mul_(slope))


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        flags: OutputFlags,
        transform: LogitTransform,
    ) -> tuple[Tensor, Tensor]:
        statistics: list[tuple[Tensor, ...]] = []
        for rows, target in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
            logits = torch.nn.functional.linear(rows, weight, bias)
            statistics += [
                _statistics(logits[part], target[part], temperature, flags, transform) for part in _blocks(logits)
            ]
        empty = hidden.new_zeros(0, dtype=at_least_float32(hidden.dtype))
        columns = (
            [torch.cat(column) for column in zip(*statistics, strict=True)]
            if statistics
            else [empty.clone() for _ in range(3)]
        )
        logprobs, norms, entropies = columns
        ctx.save_for_backward(hidden, weight, targets, norms, entropies if flags.entropy_gradient else None)
        ctx.bias, ctx.temperature, ctx.transform = bias, temperature, transform
        if not flags.entropy_gradient:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, norms, entropies = ctx.saved_tensors
        grad, entropy_grad, bias = grads[0], grads[1], ctx.bias
        # Sums over chunks in full precision: many small terms would vanish in bfloat16.
        weight_grad = torch.zeros_like(weight, dtype=norms.dtype) if ctx.needs_input_grad[1] else None
        bias_grad = torch.zeros_like(bias, dtype=norms.dtype) if bias is not None and ctx.needs_input_grad[2] else None
        hidden_grad = torch.empty_like(hidden)
        for start in range(0, hidden.shape[0], CHUNK):
            part = slice(start, start + CHUNK)
            logits = torch.nn.functional.linear(hidden[part], weight, bias)
            for block in _blocks(logits):
                rows = slice(start + block.start, min(start + block.stop, part.stop))
                both = None if entropies is None else (entropies[rows], entropy_grad[rows])
                terms = (targets[rows], norms[rows], grad[rows])
                _to_gradient(logits[block], *terms, ctx.transform, ctx.temperature, both)
            hidden_grad[part] = logits @ weight
            if weight_grad is not None:
                weight_grad += logits.T @ hidden[part]
            if bias_grad is not None:
                bias_grad += logits.sum(0)
        weight_out = None if weight_grad is None else weight_grad.to(weight.dtype)
        bias_out = None if bias_grad is None else bias_grad.to(bias.dtype)
        return hidden_grad, weight_out, bias_out, None, None, None, None


def chunked_scores(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    temperature: float,
    flags: OutputFlags,
    transform: LogitTransform | None = None,
) -> TokenOutputs:
    """Log-probability of each target, and the outputs that `flags` names, in one pass over the head.

    Args:
        hidden: [N, D] the states that predict the targets.
        weight: [V, D] of the head; bias [V] or None.
        targets: [N] int64.
        temperature: divides the logits.
        flags: see `OutputFlags`.
        transform: applied to the head's output before it is divided by the temperature; None for none.
    """
    transform = transform or LogitTransform()
    logprobs, entropies = _ChunkedLogprobs.apply(hidden, weight, bias, targets, temperature, flags, transform)
    return TokenOutputs(logprobs=logprobs, entropies=entropies)


def hidden_states_at(policy: Policy, batch: Batch, kernel: Kernel) -> Tensor:
    """Hidden states [N, D] of the policy's decoder that predict the trained tokens of a packed row."""
    device = policy.device
    layout = packed_layout(batch.segments, device, kernel)
    tokens = torch.from_numpy(batch.tokens).to(device)[None]
    positions = torch.from_numpy(batch.positions).to(device)[None]
    hidden = policy.hidden(*pad_row(tokens, positions, layout), layout)[0]
    return hidden.index_select(0, torch.from_numpy(batch.sources).to(device))
