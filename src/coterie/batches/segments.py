"""Where prompts lie in a packed row, and what they all start with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    """How many tokens of the prompt lie there, at least 1."""
    lengths: tuple[int, ...]
    """Length of each continuation, in the order in which they follow the prompt."""
    head: int = 0
    """How many tokens of the prompt lie at the start of the row instead, equal for all its segments."""


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
    """With how many tokens all prompts start that are worth running only once; 0 where that would save too little.

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
    """What all of them start with once, and the rest of each behind it.

    Args:
        head: how many tokens that is, where these are some of more prompts; see `shared_head`.
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
    """Every sequence of a packed row on its own, those of similar length together."""

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
