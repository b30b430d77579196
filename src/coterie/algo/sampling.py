"""Inverse-CDF sampling of tokens from logits."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Precision of sums and softmaxes: float64 stays, everything else is raised to float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@cache
def has_float64(kind: str) -> bool:
    """True if devices of this kind (`cuda`, `mps`, …) compute in float64. Apple's MPS does not, nor some Intel GPUs."""
    if kind in ("cpu", "cuda", "meta"):
        return True
    try:
        return bool(torch.ones(1, dtype=torch.float64, device=kind).add(1).item() == 2)
    except (TypeError, RuntimeError):
        return False


def widened(tensor: Tensor) -> Tensor:
    """A tensor as float64: on its own device, or on the CPU where that has none."""
    return (tensor if has_float64(tensor.device.type) else tensor.cpu()).double()


_BLOCK = 512
_CACHED = 1 << 18
"""Logits worked on at once on a CPU: 1 MB in float32."""
_LAUNCHED = 1 << 24
"""On another device: 64 MB, so that working memory does not grow with the number of rows."""
_NEVER = -1e4
"""In place of logits this far below the largest: its exponential is 0 too, but times 0 it is no NaN, as -inf is."""


def filter_logits(scaled: Tensor, top_k: int, top_p: float) -> Tensor:
    """Keep the k likeliest tokens, then the smallest set whose probability reaches p; the rest becomes -inf.

    Args:
        scaled: [N, V] logits divided by the temperature.
        top_k: 0 = off. Ties at the border are all kept.
        top_p: 1 = off. The likeliest token always stays.
    """
    if top_k and top_k < scaled.shape[-1]:
        border = scaled.topk(top_k, dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < border, float("-inf"))
    if top_p < 1:
        ordered, index = scaled.sort(dim=-1, descending=True, stable=True)
        before = ordered.softmax(-1).cumsum(-1).roll(1, dims=-1)
        before[:, 0] = 0
        drop = torch.zeros_like(scaled, dtype=torch.bool).scatter(-1, index, before >= top_p)
        scaled = scaled.masked_fill(drop, float("-inf"))
    return scaled


def sample(
    logits: Tensor, uniform: Tensor, temperature: float, top_k: int, top_p: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Inverse-CDF sampling of one token a row, with its log-probability under the distribution sampled from, and the
    entropy of that distribution.

    The cumulative sum is taken in two levels (blocks, then inside one block), which reads the vocabulary once; on a
    CPU a few rows at a time, which stay in its cache through all passes. No row's result depends on the others.

    Args:
        logits: [N, V] any float dtype.
        uniform: [N] float64 in [0, 1), on the CPU or where the logits are. A device without float64 has its tokens
            drawn on the CPU.
        temperature: 0 takes the likeliest token, with log-probability and entropy at temperature 1 and without filters.

    Returns:
        Tokens [N] int64; log-probabilities and entropies [N] float32 (float64 for float64 logits), both in nats.
    """
    device = logits.device
    if not has_float64(device.type):
        tokens, logprobs, entropies = sample(logits.cpu(), uniform.cpu(), temperature, top_k, top_p)
        return tokens.to(device), logprobs.to(device), entropies.to(device)
    uniform = uniform.to(device)
    rows = max(1, (_CACHED if device.type == "cpu" else _LAUNCHED) // logits.shape[-1])
    parts = [
        _likeliest(some) if temperature == 0 else _sample(some, draws, temperature, top_k, top_p)
        for some, draws in zip(logits.split(rows), uniform.split(rows), strict=True)
    ]
    tokens, logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(tokens), torch.cat(logprobs), torch.cat(entropies)


def _likeliest(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scores = logits.to(at_least_float32(logits.dtype)).log_softmax(-1)
    chosen, tokens = scores.max(-1)
    return tokens, chosen, scores.clamp_(min=_NEVER).mul_(scores.exp()).sum(-1).neg_()


def _sample(
    logits: Tensor, uniform: Tensor, temperature: float, top_k: int, top_p: float
) -> tuple[Tensor, Tensor, Tensor]:
    precision = at_least_float32(logits.dtype)
    scaled = logits.to(precision, copy=True)
    scaled = filter_logits(scaled if temperature == 1 else scaled.div_(temperature), top_k, top_p)
    rows, size = scaled.shape
    blocks = -(-size // _BLOCK)
    if blocks * _BLOCK != size:
        scaled = torch.nn.functional.pad(scaled, (0, blocks * _BLOCK - size), value=float("-inf"))
    scaled = scaled.sub_(scaled.amax(-1, keepdim=True)).clamp_(min=_NEVER).view(rows, blocks, _BLOCK)
    weights = scaled.exp()
    # Sums of 512 in float32 (pairwise, so good to 1e-6), sums of blocks in float64.
    cumulative = weights.sum(-1).double().cumsum(-1)  # [N, blocks]
    total = cumulative[:, -1]
    target = uniform * total
    block = torch.searchsorted(cumulative, target[:, None], right=True).clamp_(max=blocks - 1)
    before = torch.where(block > 0, cumulative.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = weights[torch.arange(rows, device=logits.device), block[:, 0]]  # [N, BLOCK]
    steps = inside.cumsum(-1, dtype=torch.float64)
    offset = torch.searchsorted(steps, target[:, None] - before, right=True)
    # Rounding may leave the target a hair above the block's sum: fall back on its last possible token.
    last = _BLOCK - 1 - (inside.flip(-1) > 0).int().argmax(-1, keepdim=True)
    offset = torch.minimum(offset, last)
    chosen = inside.gather(1, offset)[:, 0]
    logprobs = torch.log(chosen.double() / total).to(precision)
    # With z the logit less the largest: log p = z - log Σ exp z, so the entropy is log Σ exp z - Σ p z.
    mean = scaled.mul_(weights).sum(-1).double().sum(-1) / total
    return block[:, 0] * _BLOCK + offset[:, 0], logprobs, (torch.log(total) - mean).to(precision)
