"""The packed row: sequences behind shared prompts, unpacking, and cutting a row in two.

Axis letters: T tokens of the packed row, N trained tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

SAVING = 0.05
"""Share of the prompts' tokens that a shared head has to save at least."""
PADDING = 0.25
"""Share of tokens that padding may add where sequences of unequal length are computed together."""
LONG = 7000
"""What follows a head attends by an explicit mask, and so to all of itself instead of the causal half. Beside a small
model's matrix products that costs one such share for each token of its length; beside a larger model's less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One prompt and its continuations inside a packed row."""

    start: int
    """First token of the prompt, or of what follows the head."""
    prompt: int
    """Number of the prompt's tokens there, at least 1."""
    lengths: tuple[int, ...]
    """Length of each continuation, in the order in which they follow the prompt."""
    head: int = 0
    """Number of the prompt's tokens at the start of the row instead, equal for all its segments."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptRow:
    """Prompts alone in a packed row."""

    tokens: np.ndarray
    """[T] int64."""
    positions: np.ndarray
    """[T] int64."""
    segments: tuple[Segment, ...]
    """One a prompt, in the order given, without continuations."""
    head: int
    """Tokens at the start that belong to every prompt."""


def shared_head(prompts: Sequence[Sequence[int]]) -> int:
    """Number of tokens that all prompts start with, if running them once saves enough; else 0.

    Every prompt keeps a token of its own, whose state says what comes next. A prompt that is given twice counts once.
    """
    ordered = sorted({tuple(prompt) for prompt in prompts})  # all others start with what the first and the last share
    if len(ordered) < 2:
        return 0
    first, last, lengths = ordered[0], ordered[-1], [len(prompt) for prompt in ordered]
    limit = min(lengths) - 1
    head = next((index for index in range(limit) if first[index] != last[index]), limit)
    worth = SAVING + (max(lengths) - head) / LONG
    return head if head * (len(ordered) - 1) >= worth * sum(lengths) else 0


def pack_prompts(prompts: Sequence[Sequence[int]], head: int | None = None) -> PromptRow:
    """Prompts packed in one row: their shared head once, and the rest of each behind it.

    Args:
        head: tokens of the shared head, where these are some of more prompts; see `shared_head`.
    """
    if head is None:
        head = shared_head(prompts)
    rests = [np.array(prompt[head:], dtype=np.int64) for prompt in prompts]
    starts = head + np.cumsum([0, *map(len, rests)])
    segments = [
        Segment(start=int(start), prompt=len(rest), lengths=(), head=head)
        for start, rest in zip(starts, rests, strict=False)
    ]
    return PromptRow(
        tokens=np.concatenate([np.array(prompts[0][:head], dtype=np.int64), *rests]),
        positions=np.concatenate([np.arange(head), *(head + np.arange(len(rest)) for rest in rests)]),
        segments=tuple(segments),
        head=head,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Unpacked:
    """The sequences of a packed row, each with its prompt, grouped by length."""

    groups: tuple[np.ndarray, ...]
    """Each [n, L] int64: where in the row the tokens of n sequences of up to L tokens are. Shorter ones repeat their
    last token, which no token before it sees in a causal model."""
    order: np.ndarray
    """[T] int64: where in the groups, laid end to end, each token of the row is; of several places the first."""


def unpack(segments: Sequence[Segment]) -> Unpacked:
    """Undo the packing of a row: each continuation behind its whole prompt, and a prompt without one alone."""
    sequences: list[np.ndarray] = []
    for segment in segments:
        first = segment.start + segment.prompt
        prompt = np.concatenate([np.arange(segment.head), np.arange(segment.start, first)])
        ends = first + np.cumsum(segment.lengths, dtype=np.int64)
        runs = [np.arange(end - length, end) for end, length in zip(ends, segment.lengths, strict=True) if length]
        sequences += [np.concatenate([prompt, run]) for run in runs or [np.arange(0)]]
    groups = tuple(_padded(group) for group in _similar(sorted(sequences, key=len)))
    where = np.concatenate([group.ravel() for group in groups]) if groups else np.arange(0)
    _, order = np.unique(where, return_index=True)
    return Unpacked(groups=groups, order=order)


def _similar(sequences: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """Sequences in the order of their lengths, cut where padding would add more than `PADDING`."""
    groups: list[list[np.ndarray]] = []
    tokens = 0
    for sequence in sequences:
        tokens += len(sequence)
        if not groups or (len(groups[-1]) + 1) * len(sequence) > (1 + PADDING) * tokens:
            groups.append([])
            tokens = len(sequence)
        groups[-1].append(sequence)
    return groups


def _padded(group: Sequence[np.ndarray]) -> np.ndarray:
    longest = max(map(len, group))
    return np.stack([np.pad(sequence, (0, longest - len(sequence)), mode="edge") for sequence in group])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """One packed row with the inputs of its forward and backward pass."""

    tokens: np.ndarray
    """[T] int64."""
    positions: np.ndarray
    """[T] int64, restarting after each prompt for each of its continuations."""
    segments: tuple[Segment, ...]
    sources: np.ndarray
    """[N] int64: index in the row of the state that predicts the trained token."""
    targets: np.ndarray
    """[N] int64: the trained token."""
    sampler_logprobs: np.ndarray
    """[N] float64."""
    advantages: np.ndarray
    """[N] float64."""
    clip_low: np.ndarray
    clip_high: np.ndarray
    weights: np.ndarray
    """[N] float64: share of the optimizer step's global denominator."""
    replayed: np.ndarray
    """[N] bool: of a rollout of an earlier step; its ratio is to the policy that sampled it."""
    rollout: np.ndarray
    """[N] int64: which of the row's rollouts the token is of, from 0."""
    values: np.ndarray | None = None
    """[N] float64: the critic's values before the update; None without one."""
    returns: np.ndarray | None = None
    """[N] float64: the critic's targets."""
    spans: Mapping[str, tuple[int, int]]
    """rollout id → its trained tokens' half-open range in the [N] arrays."""


def idle_row() -> Batch:
    """A packed row of two tokens of which none is trained, so that nothing of it counts."""
    none, ids = np.zeros(0), np.zeros(0, dtype=np.int64)
    return Batch(
        tokens=np.zeros(2, dtype=np.int64),
        positions=np.arange(2),
        segments=(Segment(start=0, prompt=1, lengths=(1,)),),
        sources=ids,
        targets=ids,
        sampler_logprobs=none,
        advantages=none,
        clip_low=none,
        clip_high=none,
        weights=none,
        replayed=np.zeros(0, dtype=bool),
        rollout=ids,
        spans={},
    )


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """Cut a packed row in two where the parts come closest to the same length; a prompt cut through is in both.

    Weights stay as they are, so the parts' losses and gradients add up to the whole's.
    """
    if len(batch.spans) < 2:
        raise ValueError(f"a packed row of {len(batch.spans)} rollouts cannot be cut in two; expected at least 2")
    ends = np.concatenate([segment.start + segment.prompt + np.cumsum(segment.lengths) for segment in batch.segments])
    cut = 1 + int(np.argmin(np.abs(ends[:-1] - len(batch.tokens) / 2)))
    return _select(batch, 0, cut), _select(batch, cut, len(batch.spans))


def _select(batch: Batch, first: int, last: int) -> Batch:
    """The rollouts first..last-1 of a packed row, in its order."""
    head = batch.segments[0].head
    indices = [np.arange(head)]  # where in the old row the new row's tokens are
    segments: list[Segment] = []
    offset, cursor = 0, head
    for segment in batch.segments:
        here = range(max(first - offset, 0), min(last - offset, len(segment.lengths)))
        offset += len(segment.lengths)
        if not here:
            continue
        lengths = tuple(segment.lengths[k] for k in here)
        begin = segment.start + segment.prompt + sum(segment.lengths[: here.start])
        indices.append(np.arange(segment.start, segment.start + segment.prompt))
        indices.append(np.arange(begin, begin + sum(lengths)))
        segments.append(Segment(start=cursor, prompt=segment.prompt, lengths=lengths, head=head))
        cursor += segment.prompt + sum(lengths)
    where = np.concatenate(indices)
    names = list(batch.spans)[first:last]
    low, high = batch.spans[names[0]][0], batch.spans[names[-1]][1]
    part = slice(low, high)
    return replace(
        batch,
        tokens=batch.tokens[where],
        positions=batch.positions[where],
        segments=tuple(segments),
        sources=np.searchsorted(where, batch.sources[part]),
        targets=batch.targets[part],
        sampler_logprobs=batch.sampler_logprobs[part],
        advantages=batch.advantages[part],
        clip_low=batch.clip_low[part],
        clip_high=batch.clip_high[part],
        weights=batch.weights[part],
        replayed=batch.replayed[part],
        rollout=batch.rollout[part] - first,
        values=None if batch.values is None else batch.values[part],
        returns=None if batch.returns is None else batch.returns[part],
        spans={name: (batch.spans[name][0] - low, batch.spans[name][1] - low) for name in names},
    )
