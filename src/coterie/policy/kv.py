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
        """Copy rows over others, so that the rows in use stay together."""
        for tensor in (*self.keys.values(), *self.values.values()):
            tensor[list(targets), :, :length] = tensor[list(sources), :, :length]


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
    """Decoding of one new token a row, which attends to everything the row holds."""

    def __init__(self, pool: KVPool, positions: Tensor, length: int) -> None:
        self.pool = pool
        self.segments: Sequence[Segment] = ()
        self.positions = positions  # [n] where the new token goes
        self.length = length  # of each row that is attended to
        self.rows = torch.arange(positions.numel(), device=positions.device)
        self._masks: dict[int | None, Tensor] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: ScoreRule) -> Tensor:
        count = self.rows.numel()
        keys, values = self.pool.keys[layer], self.pool.values[layer]
        keys[self.rows, :, self.positions] = key[:, :, 0]
        values[self.rows, :, self.positions] = value[:, :, 0]
        attended = slice(0, self.length)
        mask = self._mask(rule.window, query, key)
        return masked_attention(query, keys[:count, :, attended], values[:count, :, attended], mask, rule)

    def _mask(self, window: int | None, query: Tensor, key: Tensor) -> Tensor:
        if window not in self._masks:
            keys = torch.arange(self.length, device=query.device)
            allowed = may_attend(self.positions[:, None], keys, window)
            self._masks[window] = fold_mask(additive(allowed, query.dtype)[:, None], query, key)
        return self._masks[window]
