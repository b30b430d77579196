"""Key/value cache of the embedded engine: live rows, prompts that several sequences wait for, conversations at rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from coterie.engines.sequence import SampledSequence, attempt_of
from coterie.policy.kv import KVPool, PromptKV, reserved
from coterie.types import SampleKey


@dataclass(slots=True, kw_only=True)
class Prefilled:
    """A prompt that was computed for its first sequence and is kept until the last one has it."""

    kv: PromptKV
    logits: Tensor  # [V] after the prompt's last token


@dataclass(slots=True, kw_only=True)
class Resting:
    """A conversation between two turns."""

    tokens: tuple[int, ...]
    """Those whose keys and values are here: all but the last one sampled."""
    kv: PromptKV


SHORTEST = 16
"""Tokens that a start must have to be taken: below, computing the prompts of a pass together is as fast."""


def common_start(tokens: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Number of tokens that two sequences begin with alike."""
    count = min(len(tokens), len(other))
    if tokens[:count] == other[:count]:
        return count
    return next(place for place in range(count) if tokens[place] != other[place])


class KVCache:
    """Keys and values by row, by prompt and by conversation.

    Args:
        slots: rows.
        max_kept_tokens: most tokens of conversations at rest. The oldest is freed first, and computed anew when its
            next turn comes.
        shared: every sequence rests after its end, for any prompt that begins alike (prefix caching).
    """

    def __init__(self, slots: int, max_kept_tokens: int, *, shared: bool = False) -> None:
        self.slots, self.shared = slots, shared
        self.max_kept_tokens = max_kept_tokens
        self.pool: KVPool | None = None
        self.prompts: dict[tuple[int, ...], Prefilled] = {}
        self.resting: dict[SampleKey | tuple[int, ...], Resting] = {}
        """By attempt, or by their tokens where they are shared; the oldest first."""
        self._due: Counter[tuple[int, ...]] = Counter()  # waiting sequences of each prompt

    def reserve(self, capacity: int) -> KVPool:
        """The pool, with room for sequences of `capacity` tokens; what its rows hold stays."""
        if self.pool is None:
            self.pool = KVPool(self.slots, reserved(capacity))
        elif self.pool.capacity < capacity:
            self.pool.grow(reserved(capacity))
        return self.pool

    def expect(self, sequence: SampledSequence) -> None:
        """Count a sequence that waits for its prompt."""
        self._due[sequence.prompt] += 1

    def dismiss(self, sequence: SampledSequence) -> None:
        """A sequence has its prompt, or needs it no more; the last one frees it."""
        self._due[sequence.prompt] -= 1
        if self._due[sequence.prompt] <= 0:
            del self._due[sequence.prompt]
            self.prompts.pop(sequence.prompt, None)

    def admit(self, sequences: Sequence[SampledSequence], first_row: int) -> None:
        """Copy prefilled prompts to the rows of their sequences, from `first_row` on; others are passed over."""
        pool = self.reserve(0)
        rows: dict[tuple[int, ...], list[int]] = {}
        for row, sequence in enumerate(sequences, start=first_row):
            if sequence.prompt in self.prompts:
                rows.setdefault(sequence.prompt, []).append(row)
        for prompt, targets in rows.items():
            pool.admit(targets, self.prompts[prompt].kv)

    def keep(self, sequence: SampledSequence, row: int) -> None:
        """Put a conversation aside whose turn ended in `row`."""
        pool, length = self.reserve(0), sequence.position
        tokens = (*sequence.prompt, *sequence.tokens)[:length]
        if self.shared:
            for name in [name for name, old in self.resting.items() if tokens[: len(old.tokens)] == old.tokens]:
                del self.resting[name]
        key = tokens if self.shared else attempt_of(sequence.request.key)
        self.resting[key] = Resting(tokens=tokens, kv=pool.copy(row, length))
        while sum(len(resting.tokens) for resting in self.resting.values()) > self.max_kept_tokens:
            del self.resting[next(iter(self.resting))]

    def take(self, sequence: SampledSequence) -> Resting | None:
        """What is kept of the conversation that a sequence continues, token for token; None where nothing is."""
        if self.shared:
            alone = self._due[sequence.prompt] == 1 and sequence.prompt not in self.prompts
            return self._longest_start(sequence.prompt) if alone else None
        resting = self.resting.pop(attempt_of(sequence.request.key), None)
        if resting is None or len(resting.tokens) >= len(sequence.prompt):
            return None
        return resting if sequence.prompt[: len(resting.tokens)] == resting.tokens else None

    def _longest_start(self, prompt: tuple[int, ...]) -> Resting | None:
        """The longest start of a prompt that rests, but for the last token, after which there must be logits."""
        name, length = None, SHORTEST - 1
        for key, resting in self.resting.items():
            count = common_start(resting.tokens, prompt[:-1])
            if count > length:
                name, length = key, count
        if name is None:
            return None
        resting = self.resting[name] = self.resting.pop(name)  # the newest from now on
        return Resting(tokens=resting.tokens[:length], kv=resting.kv.start(length))

    def forget(self, sequence: SampledSequence) -> None:
        """Free what is kept of a conversation."""
        self.resting.pop(attempt_of(sequence.request.key), None)

    def clear(self, *, pool: bool) -> None:
        """Free prompts and conversations, and the rows' memory where asked."""
        self.prompts.clear()
        self.resting.clear()
        self._due.clear()
        if pool:
            self.pool = None
