"""Attention for packed and for resident sequences, plugged into any transformers model.

transformers lets a model call a registered attention function and hands it every keyword argument given to `forward`.
coterie registers one function and gives it a `Layout`: the object that knows which token may attend to which.
The model's own code (projections, rotary embedding, norms) stays untouched, so every architecture that supports
pluggable attention works: Llama, Qwen, Gemma, Mistral, SmolLM …

Axis letters: B rows, H query heads, K key heads, R = H / K queries per key head, T tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from coterie.algo.sampling import at_least_float32
from coterie.batches.batch import Segment
from coterie.errors import ModelError

LONGEST = 384
"""Maximum keys for `small_attention`: up to here it is faster than the fused kernel, and its probabilities small."""


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
    """softmax(query · keyᵀ · scale + mask) · value, as plain matrix products with a backward pass of its own.

    On a CPU the fused kernel's backward pass takes three times its forward pass on short continuations; four products
    and a softmax take half of that. The probabilities are kept between the passes, so this is for short keys only.

    Args:
        query: [B, K, Q, D]; key and value [B, K, S, D]; mask broadcasts to [B, K, Q, S], 0 or -inf.
    """
    return _SmallAttention.apply(query, key, value, mask, scale)


NAME = "coterie"

_SHORT = 128
"""Up to this length one folded product with a mask is at least as fast as a causal kernel that takes heads one by
one."""


_PADDED = 1.25
"""Runs of unequal length are computed at once as long as that makes at most this many times as many tokens."""


@dataclass(frozen=True, slots=True, eq=False)
class ScoreRule:
    """Attention scores of one layer, from the products of queries and keys."""

    scale: float
    """Factor of the products."""
    window: int | None = None
    """Tokens that a sliding window lets a token attend to, itself included; None = all before it."""
    softcap: float | None = None
    """Scores become softcap · tanh(score / softcap) before the mask (Gemma 2)."""
    sinks: Tensor | None = None
    """[H] one learned score a head that takes part in the softmax without a value (gpt-oss)."""

    @property
    def plain(self) -> bool:
        """True if a fused kernel computes it: scaling alone."""
        return self.softcap is None and self.sinks is None


class Layout(Protocol):
    """Attention pattern over the sequences of one packed row or of resident sequences."""

    segments: Sequence[Segment]
    """The sequences in the packed row."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: ScoreRule) -> Tensor:
        """query [1 or B, H, T, D], key and value [.., K, T, D] → [.., H, T, D]."""
        ...


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    layout: Layout | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    if layout is None:
        raise ModelError(
            f"{type(module).__name__} was called without a layout: call the model through coterie.policy; inside it, "
            "the model's layers do not hand keyword arguments on to the attention"
        )
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    rule = ScoreRule(scale, sliding_window, softcap, s_aux)
    out = layout.attend(module.layer_idx, query, key, value, rule)
    return out.transpose(1, 2).contiguous(), None


def register() -> None:
    """Make `attn_implementation="coterie"` known to transformers; masks come from the layout."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)


def fold(query: Tensor, key_heads: int) -> Tensor:
    """[B, H, T, D] → [B, K, R·T, D]: queries that share a key head become rows of one matrix product."""
    batch, heads, length, size = query.shape
    return query.reshape(batch, key_heads, (heads // key_heads) * length, size)


def fold_mask(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """[B, 1, T, S] → [B, 1, R·T, S], for the folded queries of `query` [.., H, .., ..] and `key` [.., K, .., ..]."""
    return mask.repeat(1, 1, query.shape[1] // key.shape[1], 1)


def unfold(out: Tensor, heads: int) -> Tensor:
    """[B, K, R·T, D] → [B, H, T, D]."""
    batch, _, _, size = out.shape
    return out.reshape(batch, heads, -1, size)


def masked_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, rule: ScoreRule) -> Tensor:
    """Grouped-query attention with an additive mask in the query's dtype: [B or 1, 1, R·T, S], see `fold_mask`."""
    heads, folded = query.shape[1], fold(query, key.shape[1])
    if not rule.plain:
        return unfold(_ruled_attention(folded, key, value, mask, rule), heads)
    if query.requires_grad and query.device.type == "cpu" and query.dtype == torch.bfloat16 and key.shape[2] <= LONGEST:
        return unfold(small_attention(folded, key, value, mask, rule.scale), heads)
    return unfold(F.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=rule.scale), heads)


def _ruled_attention(folded: Tensor, key: Tensor, value: Tensor, mask: Tensor, rule: ScoreRule) -> Tensor:
    """Attention of folded queries [B, K, R·T, D] with all scores in memory, since no fused kernel knows the rule."""
    precision = at_least_float32(folded.dtype)
    scores = (folded.to(precision) * rule.scale) @ key.to(precision).transpose(-1, -2)
    if rule.softcap is not None:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    scores = scores + mask
    if rule.sinks is not None:
        heads = key.shape[1]
        sinks = rule.sinks.to(precision).view(1, heads, -1, 1)  # [1, K, R, 1]
        column = sinks.expand(folded.shape[0], -1, -1, folded.shape[2] // sinks.shape[2])
        scores = torch.cat([scores, column.flatten(2)[..., None]], dim=-1)
    weights = torch.softmax(scores, -1)
    return weights[..., : key.shape[2]].to(value.dtype) @ value


class CausalAttention:
    """Grouped-query attention of sequences [1, H, T, D] to themselves; keeps its masks for the layers that follow."""

    def __init__(self) -> None:
        self._masks: dict[tuple[int, int | None], Tensor] = {}

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, rule: ScoreRule) -> Tensor:
        length, window = query.shape[2], rule.window
        if length > _SHORT and (window is None or length <= window) and rule.plain:
            # The kernel skips the half that is masked; with an explicit mask it computes all of it.
            shared = query.shape[1] != key.shape[1]
            return F.scaled_dot_product_attention(
                query, key, value, is_causal=True, enable_gqa=shared, scale=rule.scale
            )
        if (length, window) not in self._masks:
            steps = torch.arange(length, device=query.device)
            mask = additive(may_attend(steps, steps, window), query.dtype)[None, None]
            self._masks[length, window] = fold_mask(mask, query, key)
        return masked_attention(query, key, value, self._masks[length, window], rule)


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Boolean mask → 0 where allowed, -inf elsewhere."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, float("-inf"))


def may_attend(query_positions: Tensor, key_positions: Tensor, window: int | None) -> Tensor:
    """Causal mask, optionally with a sliding window; positions [.., T] and [.., S] → [.., T, S]."""
    distance = query_positions[..., :, None] - key_positions[..., None, :]
    allowed = distance >= 0
    return allowed if window is None else allowed & (distance < window)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Block:
    """Runs of tokens that follow the same ones, as index tensors made once per packed row and used by every layer."""

    prefix: tuple[slice, ...]
    """Where in the row lies what all of them follow, in order."""
    index: Tensor  # [G, L] where in the row each (padded) token lives
    rows: Tensor  # [ΣL] flat index into [G·L] of the real tokens
    masks: dict[int | None, Tensor] = field(default_factory=dict)


def _block(prefix: tuple[slice, ...], starts: Sequence[int], lengths: Sequence[int], device: torch.device) -> _Block:
    """The block of runs that begin at `starts` and have these `lengths`."""
    longest = max(lengths, default=0)
    long = torch.tensor(lengths, dtype=torch.long, device=device)[:, None]
    first = torch.tensor(starts, dtype=torch.long, device=device)[:, None]
    first = torch.where(long > 0, first, min(starts))  # an empty run may start where the row ends
    offsets = torch.arange(longest, device=device).expand(len(lengths), longest)
    real = offsets < long
    # Padding repeats the run's first token: causal masking keeps it out of sight of every real one.
    index = torch.where(real, first + offsets, first)
    return _Block(prefix=prefix, index=index, rows=real.flatten().nonzero().squeeze(1))


class PackedLayout:
    """Shared-prefix packing: the prompt runs once, each continuation attends to it and to itself.

    Exactly equal, up to rounding, to running every (prompt + continuation) on its own: positions restart after the
    prompt and no continuation sees another. Where the prompts share a head, it runs once for all of them.
    """

    def __init__(self, segments: Sequence[Segment], device: torch.device) -> None:
        self.segments = segments
        self.ruled = False
        """True once a layer had capped scores or sinks."""
        head = segments[0].head if segments else 0
        self._parts: list[slice | _Block] = [slice(0, head), *_rests(segments, device)] if head else []
        for segment in segments:
            first = segment.start + segment.prompt
            prompt = slice(segment.start, first)
            if not head:
                self._parts.append(prompt)
            if any(segment.lengths):
                starts = [first + sum(segment.lengths[:number]) for number in range(len(segment.lengths))]
                prefix = (slice(0, head), prompt) if head else (prompt,)
                self._parts.append(_block(prefix, starts, segment.lengths, device))
        self._causal = CausalAttention()
        row_index = torch.cat([_tokens(part, device) for part in self._parts]) if self._parts else torch.arange(0)
        order = torch.argsort(row_index)  # where in what `attend` puts together each token of the row is
        self._reordered = (order, row_index) if head else None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: ScoreRule) -> Tensor:
        self.ruled = self.ruled or not rule.plain
        outputs = []
        for part in self._parts:
            if isinstance(part, _Block):
                outputs.append(self._follow(part, query, key, value, rule))
            else:
                outputs.append(self._causal(query[:, :, part], key[:, :, part], value[:, :, part], rule))
        out = torch.cat(outputs, dim=2)
        return out if self._reordered is None else _Reorder.apply(out, *self._reordered)

    def _follow(self, block: _Block, query: Tensor, key: Tensor, value: Tensor, rule: ScoreRule) -> Tensor:
        """[1, H, ΣL, D] of the block's real tokens."""
        count, longest = block.index.shape
        flat = block.index.flatten()

        def rows(tensor: Tensor) -> Tensor:  # [1, N, T, D] → [G, N, L, D]
            picked = tensor[0].index_select(1, flat)
            return picked.view(tensor.shape[1], count, longest, tensor.shape[3]).transpose(0, 1)

        def with_prefix(tensor: Tensor) -> Tensor:
            prefix = [tensor[:, :, where].expand(count, -1, -1, -1) for where in block.prefix]
            return torch.cat([*prefix, rows(tensor)], dim=2)

        mask = self._mask(block, rule.window, query, key)
        out = masked_attention(rows(query), with_prefix(key), with_prefix(value), mask, rule)
        flat_out = out.transpose(0, 1).reshape(query.shape[1], count * longest, value.shape[3])
        return flat_out.index_select(1, block.rows)[None]

    def _mask(self, block: _Block, window: int | None, query: Tensor, key: Tensor) -> Tensor:
        if window not in block.masks:
            size = sum(where.stop - where.start for where in block.prefix)
            keys = torch.arange(size + block.index.shape[1], device=query.device)
            mask = additive(may_attend(keys[size:], keys, window), query.dtype)[None, None]
            block.masks[window] = fold_mask(mask, query, key)
        return block.masks[window]


def _tokens(part: slice | _Block, device: torch.device) -> Tensor:
    """Indices in the row of a part's tokens, in the order of computation."""
    if isinstance(part, _Block):
        return part.index.flatten()[part.rows]
    return torch.arange(part.start, part.stop, device=device)


class _Reorder(torch.autograd.Function):
    """Permutation of tokens [.., T, D] whose backward pass is a gather too, where autograd would scatter."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return tokens.index_select(2, order)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (inverse,) = ctx.saved_tensors
        return grads[0].index_select(2, inverse), None, None


def _rests(segments: Sequence[Segment], device: torch.device) -> list[_Block]:
    """Blocks of the prompts' tokens after the shared head: one block, unless that would pad too much."""
    head = (slice(0, segments[0].head),)
    starts, lengths = [segment.start for segment in segments], [segment.prompt for segment in segments]
    if max(lengths) * len(lengths) <= _PADDED * sum(lengths):
        return [_block(head, starts, lengths, device)]
    return [_block(head, [start], [length], device) for start, length in zip(starts, lengths, strict=True)]
