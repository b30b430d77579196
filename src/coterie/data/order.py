"""Which prompts a step draws: a pure function of the seed and of how many were consumed."""

from __future__ import annotations

from collections.abc import Sequence

from coterie.algo.streams import generator
from coterie.types import Prompt


class PromptOrder:
    """Every epoch is its own permutation of all prompts; the cursor is what was consumed, so nothing else is saved."""

    def __init__(self, prompts: Sequence[Prompt], *, seed: int) -> None:
        self.prompts = list(prompts)
        self.seed = seed
        self._known: dict[int, list[int]] = {}

    def draw(self, cursor: int, count: int) -> list[Prompt]:
        """The prompts number `cursor` … `cursor + count - 1` of the endless stream."""
        size = len(self.prompts)
        epochs = {epoch: self._permutation(epoch) for epoch in range(cursor // size, (cursor + count - 1) // size + 1)}
        return [self.prompts[epochs[at // size][at % size]] for at in range(cursor, cursor + count)]

    def _permutation(self, epoch: int) -> list[int]:
        if epoch not in self._known:
            drawn = generator("order", self.seed, epoch).permutation(len(self.prompts)).tolist()
            self._known = {**{old: order for old, order in self._known.items() if old == epoch - 1}, epoch: drawn}
        return self._known[epoch]
