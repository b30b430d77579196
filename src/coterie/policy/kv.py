"""Preallocated key/value memory of the sequences being decoded, and the two layouts that fill and read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from coterie.batches.batch import Segment
from coterie.policy.attention import (
    PackedLayout,
    ScoreRule,
    additive,
    fold_mask,
    masked_attention,
    may_attend,
)


@dataclass(slots=True, kw_only=True)
class PromptKV:
    """Keys and values of one prefilled prompt, kept until all its rollouts were admitted."""

    keys: dict[int, Tensor] = field(default_factory=dict)  # layer → [K, P, D]
    values: dict[int, Tensor] = field(default_factory=dict)

    def start(self, length: int) -> PromptKV:
        """The first `length` tokens, as views."""
        keys, values = (
            {layer: tensor[:, :length] for layer, tensor in tensors.items()} for tensors in (self.keys, self.values)
        )
        return PromptKV(keys=keys, values=values)


def reserved(length: int) -> int:
    """Tokens reserved for a sequence of up to `length`: a multiple of 64."""
    return -(-length // 64) * 64


class KVPool:
    """One preallocated [slots, K, capacity, D] tensor a layer, for keys and for values; rows 0..n-1 are in use."""

    def __init__(self, slots: int, capacity: int) -> None:
        self.slots = slots
        self.capacity = capacity
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def admit(self, rows: Sequence[int], prompt: PromptKV) -> None:
        """Copy one prompt's keys and values to several rows."""
        for layer, key in prompt.keys.items():
            if layer not in self.keys:
                value = prompt.values[layer]
                # Zeros, not garbage: a masked-out NaN would still poison the product with the values.
                self.keys[layer] = key.new_zeros(self.slots, key.shape[0], self.capacity, key.shape[2])
                self.values[layer] = key.new_zeros(self.slots, value.shape[0], self.capacity, value.shape[2])
            length = key.shape[1]
            self.keys[layer][list(rows), :, :length] = key
            self.values[layer][list(rows), :, :length] = prompt.values[layer]

    def move(self, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        """Copy the first `length` tokens of rows over others, so that the rows in use stay together."""
        for tensor in (*self.keys.values(), *self.values.values()):
            tensor[list(targets), :, :length] = tensor[list(sources), :, :length]

    def copy(self, row: int, length: int) -> PromptKV:
        """A copy of the first `length` tokens of a row."""
        keys, values = (
            {layer: tensor[row, :, :length].clone() for layer, tensor in tensors.items()}
            for tensors in (self.keys, self.values)
        )
        return PromptKV(keys=keys, values=values)

    def grow(self, capacity: int) -> None:
        """Make room for sequences of `capacity` tokens; what the rows hold stays."""
        for tensors in (self.keys, self.values):
            for layer, tensor in tensors.items():
                tensors[layer] = tensor.new_zeros(self.slots, tensor.shape[1], capacity, tensor.shape[3])
                tensors[layer][:, :, : self.capacity] = tensor
        self.capacity = capacity


class PrefillLayout:
    """Prefill of prompts packed in one row behind their shared head; keeps the keys and values of each."""

    def __init__(self, segments: Sequence[Segment], device: torch.device) -> None:
        self.kept = [PromptKV() for _ in segments]
        self.segments = segments
        self._packed = PackedLayout(segments, device)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: ScoreRule) -> Tensor:
        for segment, kept in zip(self.segments, self.kept, strict=True):
            rest = slice(segment.start, segment.start + segment.prompt)
            kept.keys[layer], kept.values[layer] = (
                torch.cat([tensor[0, :, : segment.head], tensor[0, :, rest]], dim=1)
                if segment.head
                else tensor[0, :, rest]
                for tensor in (key, value)
            )
        return self._packed.attend(layer, query, key, value, rule)


class DecodeLayout:
    """New tokens of rows, which attend to everything their row holds, and to those before them.

    Args:
        positions: [n, L] where the new tokens of each row go.
        length: of each row that is attended to.
        rows: [n] rows of the pool; None: the first n.
        real: [n, L] bool; False where a token only fills up a shorter row. None: all are real.
    """

    def __init__(
        self, pool: KVPool, positions: Tensor, length: int, *, rows: Tensor | None = None, real: Tensor | None = None
    ) -> None:
        self.pool = pool
        self.segments: Sequence[Segment] = ()
        self.positions = positions
        self.length = length
        self.count = positions.shape[0]
        self.rows = rows
        self.real = real
        self._slots = torch.arange(self.count, device=positions.device) if rows is None else rows
        self._masks: dict[int | None, Tensor] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: ScoreRule) -> Tensor:
        keys, values = (
            self._written(tensors[layer], new) for tensors, new in ((self.pool.keys, key), (self.pool.values, value))
        )
        return masked_attention(query, keys, values, self._mask(rule.window, query, key), rule)

    def _written(self, resident: Tensor, new: Tensor) -> Tensor:
        """Write the new keys or values [n, K, L, D]; returns all that the rows hold, [n, K, S, D]."""
        if self.positions.shape[1] == 1 and self.real is None:
            resident[self._slots, :, self.positions[:, 0]] = new[:, :, 0]
        else:
            real = torch.ones_like(self.positions, dtype=torch.bool) if self.real is None else self.real
            slots = self._slots[:, None].expand_as(self.positions)
            resident[slots[real], :, self.positions[real]] = new.transpose(1, 2)[real]
        if self.rows is None:
            return resident[: self.count, :, : self.length]
        return resident[self.rows, :, : self.length]

    def _mask(self, window: int | None, query: Tensor, key: Tensor) -> Tensor:
        if window not in self._masks:
            keys = torch.arange(self.length, device=query.device)
            allowed = may_attend(self.positions, keys, window)
            self._masks[window] = fold_mask(additive(allowed, query.dtype)[:, None], query, key)
        return self._masks[window]


class RaggedLayout:
    """Several new tokens of each row, as many as `counts` says, side by side in one packed row [1, T].

    The linear layers see no padding; attention is one product a row, padded to the largest count.

    Args:
        positions: [T] where each token goes in its row; those of a row follow each other.
        counts: [n] new tokens of each of the rows 0..n-1, at least one.
        length: of each row that is attended to.
    """

    def __init__(self, pool: KVPool, positions: Tensor, counts: Sequence[int], length: int) -> None:
        self.pool = pool
        self.segments: Sequence[Segment] = ()
        self.positions = positions
        self.count, self.longest, self.length = len(counts), max(counts), length
        device = positions.device
        sizes = torch.tensor(counts, device=device)
        self._slots = torch.repeat_interleave(torch.arange(self.count, device=device), sizes)
        starts = torch.cumsum(sizes, 0) - sizes
        offsets = torch.arange(self.longest, device=device)
        self._padded = starts[:, None] + torch.minimum(offsets, sizes[:, None] - 1)
        """[n, L] token of each query; padding repeats the row's last one."""
        self._real = (offsets < sizes[:, None]).flatten().nonzero().squeeze(1)
        self._masks: dict[int | None, Tensor] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: ScoreRule) -> Tensor:
        keys, values = (
            self._written(tensors[layer], new) for tensors, new in ((self.pool.keys, key), (self.pool.values, value))
        )
        queries = query[0][:, self._padded].transpose(0, 1)  # [n, H, L, D]
        out = masked_attention(queries, keys, values, self._mask(rule.window, queries, keys), rule)
        return out.transpose(0, 1).flatten(1, 2).index_select(1, self._real)[None]

    def _written(self, resident: Tensor, new: Tensor) -> Tensor:
        resident[self._slots, :, self.positions] = new[0].transpose(0, 1)
        return resident[: self.count, :, : self.length]

    def _mask(self, window: int | None, query: Tensor, key: Tensor) -> Tensor:
        if window not in self._masks:
            keys = torch.arange(self.length, device=query.device)
            allowed = may_attend(self.positions[self._padded], keys, window)
            self._masks[window] = fold_mask(additive(allowed, query.dtype)[:, None], query, key)
        return self._masks[window]
