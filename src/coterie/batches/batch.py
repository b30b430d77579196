"""One packed row with all that an update needs to know of its tokens, and how it is cut in two.

Axis letters: T tokens of the packed row, N trained tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from coterie.batches.segments import Segment


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """One packed row: what a forward and backward pass needs."""

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
    """[N] float64: what the critic said before the update; None without one."""
    returns: np.ndarray | None = None
    """[N] float64: what it should have said."""
    spans: Mapping[str, tuple[int, int]]
    """rollout id → its trained tokens' half-open range in the [N] arrays."""


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """Cut a packed row in two where the parts come closest to the same length; a prompt cut through is in both.

    Weights stay as they are, so the parts' losses and gradients add up to the whole's.

    Raises:
        ValueError: a single rollout cannot be cut.
    """
    if len(batch.spans) < 2:
        raise ValueError(f"a packed row of {len(batch.spans)} rollouts cannot be cut in two; expected at least 2")
    ends = np.concatenate([segment.start + segment.prompt + np.cumsum(segment.lengths) for segment in batch.segments])
    cut = 1 + int(np.argmin(np.abs(ends[:-1] - len(batch.tokens) / 2)))
    return _select(batch, 0, cut), _select(batch, cut, len(batch.spans))


def _select(batch: Batch, first: int, last: int) -> Batch:
    """The rollouts first..last-1 of a packed row, in its order."""
    head = batch.segments[0].head
    pieces = [np.arange(head)]  # where in the old row the new row's tokens are
    segments: list[Segment] = []
    seen, cursor = 0, head
    for segment in batch.segments:
        here = range(max(first - seen, 0), min(last - seen, len(segment.lengths)))
        seen += len(segment.lengths)
        if not here:
            continue
        lengths = tuple(segment.lengths[k] for k in here)
        begin = segment.start + segment.prompt + sum(segment.lengths[: here.start])
        pieces.append(np.arange(segment.start, segment.start + segment.prompt))
        pieces.append(np.arange(begin, begin + sum(lengths)))
        segments.append(Segment(start=cursor, prompt=segment.prompt, lengths=lengths, head=head))
        cursor += segment.prompt + sum(lengths)
    where = np.concatenate(pieces)
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
