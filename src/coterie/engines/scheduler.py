"""Scheduler of the embedded engine: which sequences wait, which are decoded, and in which row.

Every decision depends on what was submitted and on the sampled tokens, never on time, so a re-run repeats it.
"""

from __future__ import annotations

from collections import deque

from coterie.engines.sequence import SampledSequence


class Scheduler:
    """Queue and rows: who came first is decoded first, and a row that ends makes room at once.

    Args:
        slots: most sequences decoded at once.
        alike: sequences are only decoded beside others whose prompts are as long, and begin together: for models whose
            layers would take padding for text.
    """

    def __init__(self, slots: int, *, alike: bool = False) -> None:
        self.slots = slots
        self.alike = alike
        self.waiting: deque[SampledSequence] = deque()
        self.live: list[SampledSequence] = []
        """By row: rows in use stay together."""

    @property
    def sequences(self) -> list[SampledSequence]:
        """All that have not ended."""
        return [sequence for sequence in (*self.live, *self.waiting) if sequence.reason is None]

    def add(self, sequence: SampledSequence) -> None:
        """Queue a sequence: a conversation under way goes before those that have not begun, so that few are open."""
        if not sequence.request.key.turn:
            self.waiting.append(sequence)
            return
        under_way = sum(other.request.key.turn > 0 for other in self.waiting)
        self.waiting.insert(under_way, sequence)

    def drop_ended(self) -> None:
        """Take sequences that were aborted out of the queue; those with a row leave by `retire`."""
        if any(sequence.reason is not None for sequence in self.waiting):
            self.waiting = deque(sequence for sequence in self.waiting if sequence.reason is None)

    def admit(self) -> list[SampledSequence]:
        """The sequences that get the next free rows; they are live from now on."""
        if not self.waiting or len(self.live) >= self.slots or (self.alike and self.live):
            return []
        if self.alike:
            length = len(self.waiting[0].prompt)
            fresh = [sequence for sequence in self.waiting if len(sequence.prompt) == length][: self.slots]
            chosen = {sequence.id for sequence in fresh}
            self.waiting = deque(sequence for sequence in self.waiting if sequence.id not in chosen)
        else:
            fresh = [self.waiting.popleft() for _ in range(min(len(self.waiting), self.slots - len(self.live)))]
        self.live.extend(fresh)
        return fresh

    def retire(self) -> tuple[list[SampledSequence], list[int]]:
        """Take ended sequences out of their rows.

        Returns:
            Those that ended, by row, and for each row that stays in use the row of before that it continues. The last
            ones move into the holes; sequences that began together keep their order.
        """
        ended = [row for row, sequence in enumerate(self.live) if sequence.reason is not None]
        count = len(self.live) - len(ended)
        if self.alike:
            order = [row for row, sequence in enumerate(self.live) if sequence.reason is None]
        else:
            order = list(range(count))
            tail = [row for row in range(count, len(self.live)) if self.live[row].reason is None]
            for hole, row in zip([row for row in ended if row < count], tail, strict=True):
                order[hole] = row
        gone = [self.live[row] for row in ended]
        self.live = [self.live[row] for row in order]
        return gone, order
