"""Runners of the embedded engine: prompts and next tokens of the live rows, packed or through the model's own code."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from coterie.algo.sampling import sample
from coterie.batches.batch import pack_prompts, shared_head
from coterie.engines.kv_cache import KVCache, Prefilled, Resting
from coterie.engines.sequence import SampledSequence, by_sampling
from coterie.engines.static import StaticDecoder
from coterie.policy.fused_decoder import FusedDecoder, fused_decoder
from coterie.policy.kv import DecodeLayout, PrefillLayout, RaggedLayout
from coterie.policy.model import Policy
from coterie.policy.path import PlainDecoder
from coterie.policy.prepack import Products

_PREFILL_TOKENS = 4096

Drawn = tuple[list[int], list[float], list[float]]
"""Tokens, their log-probabilities, and the entropies of the distributions that they were drawn from."""


def draw(sequences: Sequence[SampledSequence], logits: Tensor, counts: Sequence[int] = ()) -> Drawn:
    """The next token of each sequence, [n], from its logits, [n, V].

    Args:
        counts: [n] tokens of each sequence that are drawn side by side, as logits [sum, V] follow; one by default.
    """
    counts = counts or [1] * len(sequences)
    numbers = [sequence.draws(count) for sequence, count in zip(sequences, counts, strict=True)]
    draws = torch.tensor([number for row in numbers for number in row], dtype=torch.float64)
    groups = by_sampling([sequence for sequence, count in zip(sequences, counts, strict=True) for _ in range(count)])
    if len(groups) == 1:
        return _listed(sample(logits, draws, *next(iter(groups))))
    tokens, logprobs, entropies = [0] * len(draws), [0.0] * len(draws), [0.0] * len(draws)
    for settings, members in groups.items():
        part = _listed(sample(logits[members], draws[members], *settings))
        for index, token, logprob, entropy in zip(members, *part, strict=True):
            tokens[index], logprobs[index], entropies[index] = token, logprob, entropy
    return tokens, logprobs, entropies


def _listed(drawn: tuple[Tensor, Tensor, Tensor]) -> Drawn:
    tokens, logprobs, entropies = drawn
    return tokens.tolist(), logprobs.tolist(), entropies.tolist()


class Runner(Protocol):
    """Forward passes of a session: from the first request until nothing is open."""

    def open(self, waiting: Sequence[SampledSequence], capacity: int, products: Products) -> None:
        """Begin a session with these sequences.

        Args:
            capacity: the longest one's length in tokens.
            products: of the linear layers whose weights are packed for this session.
        """
        ...

    def close(self) -> None:
        """The session has ended: drop what holds its packed weights."""
        ...

    def prefill(self, fresh: Sequence[SampledSequence], first_row: int) -> Drawn:
        """The first token of sequences that got rows, from `first_row` on."""
        ...

    def decode(self, live: Sequence[SampledSequence]) -> Drawn:
        """The next token of each row."""
        ...

    def retire(self, order: Sequence[int], live: Sequence[SampledSequence]) -> None:
        """Rows have ended: row i, now of live[i], continues what was row order[i]."""
        ...


class PackedRunner:
    """Prompts packed in one row behind their shared head, then one token of each row a pass; on CUDA as graphs.

    Attributes:
        decoder: CUDA graphs, kept as long as the pool.
    """

    def __init__(self, policy: Policy, cache: KVCache) -> None:
        self.policy, self.cache = policy, cache
        self.decoder: StaticDecoder | None = None
        self._head: tuple[int, ...] = ()
        self._fused: FusedDecoder | None = None

    def open(self, waiting: Sequence[SampledSequence], capacity: int, products: Products) -> None:
        self._fused = fused_decoder(self.policy.decoder, products)
        # The head of all, so that each prompt is cut where the learner will cut it.
        prompts = list(dict.fromkeys(sequence.prompt for sequence in waiting))
        self._head = prompts[0][: shared_head(prompts)] if prompts else ()
        pool = self.cache.pool
        if pool is not None and pool.capacity < capacity:
            self.cache.pool = self.decoder = None  # free the old memory first
        pool = self.cache.reserve(capacity)
        if self.decoder is None and self.policy.device.type == "cuda":
            self.decoder = StaticDecoder(self.policy, pool)

    def close(self) -> None:
        self._fused = None

    def prefill(self, fresh: Sequence[SampledSequence], first_row: int) -> Drawn:
        pool = self.cache.reserve(max(sequence.longest for sequence in fresh))
        continued: dict[int, Resting] = {}
        for index, sequence in enumerate(fresh):
            resting = self.cache.take(sequence) if sequence.request.key.turn or self.cache.shared else None
            if resting is not None:
                continued[index] = resting
                pool.admit([first_row + index], resting.kv)
        new = [sequence for index, sequence in enumerate(fresh) if index not in continued]
        self._prefill([sequence.prompt for sequence in new])
        self.cache.admit([] if not new else fresh, first_row)
        after = self._extend(fresh, continued, first_row)
        logits = torch.stack(
            [
                after[index] if index in after else self.cache.prompts[sequence.prompt].logits
                for index, sequence in enumerate(fresh)
            ]
        )
        for sequence in fresh:
            self.cache.dismiss(sequence)
        return draw(fresh, logits)

    def _prefill(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """Compute prompts that are not in the cache."""
        todo = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.cache.prompts]
        size = len(self._head)
        behind = [prompt for prompt in todo if len(prompt) > size and prompt[:size] == self._head]
        others = [prompt for prompt in todo if prompt not in set(behind)] if len(behind) < len(todo) else []
        for part, head in ((behind, size), (others, 0)):
            while part:
                batch = [part.pop(0)]
                while part and sum(map(len, batch)) + len(part[0]) <= _PREFILL_TOKENS:
                    batch.append(part.pop(0))
                self._prefill_row(batch, head)

    def _prefill_row(self, prompts: Sequence[tuple[int, ...]], head: int) -> None:
        device, packed = self.policy.device, pack_prompts(prompts, head)
        layout = PrefillLayout(packed.segments, device)
        tokens, positions = (torch.from_numpy(array).to(device)[None] for array in (packed.tokens, packed.positions))
        hidden = self.policy.hidden(tokens, positions, layout)
        ends = torch.tensor([segment.start + segment.prompt - 1 for segment in packed.segments], device=device)
        logits = self.policy.head(hidden[0, ends])
        for row, (prompt, kept) in enumerate(zip(prompts, layout.kept, strict=True)):
            self.cache.prompts[prompt] = Prefilled(kv=kept, logits=logits[row])

    def _extend(
        self, fresh: Sequence[SampledSequence], continued: dict[int, Resting], first_row: int
    ) -> dict[int, Tensor]:
        """Compute what is new of continued conversations; the logits [V] after each one's prompt."""
        added = {index: fresh[index].prompt[len(resting.tokens) :] for index, resting in continued.items()}
        logits: dict[int, Tensor] = {}
        todo = list(added)
        while todo:
            batch = [todo.pop(0)]
            while todo and (len(batch) + 1) * max(len(added[i]) for i in (*batch, todo[0])) <= _PREFILL_TOKENS:
                batch.append(todo.pop(0))
            starts = [len(continued[index].tokens) for index in batch]
            hidden = self._forward([first_row + index for index in batch], [added[index] for index in batch], starts)
            ends = torch.tensor([len(added[index]) - 1 for index in batch], device=hidden.device)
            last = self.policy.head(hidden[torch.arange(len(batch), device=hidden.device), ends])
            logits |= dict(zip(batch, last, strict=True))
        return logits

    def _forward(self, rows: Sequence[int], tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> Tensor:
        """States [n, L, D] of tokens that follow what rows hold; shorter ones are padded at their end.

        Args:
            tokens: of each row.
            starts: position of each row's first.
        """
        device, pool = self.policy.device, self.cache.reserve(0)
        longest = max(map(len, tokens))
        padded = torch.tensor([[*row, *([row[-1]] * (longest - len(row)))] for row in tokens], device=device)
        steps = torch.arange(longest, device=device)
        lengths = torch.tensor([len(row) for row in tokens], device=device)[:, None]
        # Padding stands where the last token does: rotary embeddings may change with the greatest position.
        positions = torch.tensor(starts, device=device)[:, None] + torch.minimum(steps, lengths - 1)
        real = steps < lengths
        length = max(start + len(row) for start, row in zip(starts, tokens, strict=True))
        layout = DecodeLayout(pool, positions, length, rows=torch.tensor(rows, device=device), real=real)
        return self.policy.hidden(padded, positions, layout)

    def decode(self, live: Sequence[SampledSequence]) -> Drawn:
        newest, positions = [row.tokens[-1] for row in live], [row.position for row in live]
        if self.decoder is not None:
            settings = by_sampling(live)
            if len(settings) > 1:
                return draw(live, self.decoder.step(newest, positions))
            return _listed(self.decoder.sample(newest, positions, [row.draw for row in live], live[0].sampling))
        device = self.policy.device
        places = torch.tensor(positions, device=device)[:, None]
        layout = DecodeLayout(self.cache.reserve(0), places, max(positions) + 1)
        tokens = torch.tensor(newest, device=device)
        if self._fused is not None:
            return draw(live, self.policy.head(self._fused(tokens, places, layout)))
        return draw(live, self.policy.head(self.policy.hidden(tokens[:, None], places, layout)[:, 0]))

    @property
    def verifies(self) -> bool:
        """False where passes are graphs of one token a row."""
        return self.policy.device.type != "cuda"

    def verify(self, live: Sequence[SampledSequence], guesses: Sequence[Sequence[int]]) -> list[Drawn]:
        """The next token of each row, and the one after each of its guesses.

        Args:
            guesses: [n] tokens that may follow each row's newest.

        Returns:
            [n] tokens of each row, with their log-probs and entropies, one more than its guesses. Those after a wrong
            guess mean nothing.
        """
        device = self.policy.device
        tokens = [[row.tokens[-1], *guessed] for row, guessed in zip(live, guesses, strict=True)]
        counts = [len(row) for row in tokens]
        places = [row.position + step for row, count in zip(live, counts, strict=True) for step in range(count)]
        positions = torch.tensor(places, device=device)
        layout = RaggedLayout(self.cache.reserve(0), positions, counts, max(places) + 1)
        newest = torch.tensor([token for row in tokens for token in row], device=device)
        hidden = self.policy.hidden(newest[None], positions[None], layout)
        chosen, logprobs, entropies = draw(live, self.policy.head(hidden[0]), counts)
        parts = [slice(end - count, end) for end, count in zip(accumulate(counts), counts, strict=True)]
        return [(chosen[part], logprobs[part], entropies[part]) for part in parts]

    def retire(self, order: Sequence[int], live: Sequence[SampledSequence]) -> None:
        moves = [(source, target) for target, source in enumerate(order) if source != target]
        if moves:
            sources, targets = zip(*moves, strict=True)
            self.cache.reserve(0).move(sources, targets, max(live[row].position for row in targets) + 1)


class PlainRunner:
    """Rows of equal length through the model's own forward pass and cache, where the packed path is not exact.

    Nothing is padded: layers that carry a state along the sequence would take padding for text. Each distinct prompt is
    computed once for all its rollouts.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.rows = PlainDecoder(policy.runner)

    def open(self, waiting: Sequence[SampledSequence], capacity: int, products: Products) -> None:
        """Nothing is reserved: the model's own cache grows as it needs to."""

    def close(self) -> None:
        """Nothing is held."""

    def prefill(self, fresh: Sequence[SampledSequence], first_row: int) -> Drawn:
        number = {prompt: row for row, prompt in enumerate(dict.fromkeys(sequence.prompt for sequence in fresh))}
        device = self.policy.device
        copies = torch.tensor([number[sequence.prompt] for sequence in fresh], device=device)
        self.rows = PlainDecoder(self.policy.runner)
        logits = self.rows.prefill(torch.tensor(list(number), device=device))
        self.rows.select(copies)
        return draw(fresh, logits[copies])

    def decode(self, live: Sequence[SampledSequence]) -> Drawn:
        newest = torch.tensor([row.tokens[-1] for row in live], device=self.policy.device)
        return draw(live, self.rows.step(newest))

    def retire(self, order: Sequence[int], live: Sequence[SampledSequence]) -> None:
        if order:
            self.rows.select(torch.tensor(order, device=self.policy.device))
