"""A learner rank in a service: it computes its part of the rows, and takes every optimizer step with the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie.cluster.learner_frames import batch_of, objective_of, packed_scores, packed_sums, step_of
from coterie.policy.learner import Learner
from coterie.policy.ranks import Ranks, weights_digest


@dataclass(kw_only=True)
class ServedLearner:
    """Rank 1 or higher of a `LearnerGroup`.

    Args:
        learner: with the weights that rank 0 has.
    """

    learner: Learner
    ranks: Ranks | None = None
    """The process group of this rank, once it has joined."""

    def answer(self, calls: Sequence[Sequence[Any]]) -> dict[str, Any]:
        """Make calls in order; returns the value of the last one."""
        value = None
        try:
            for verb, *arguments in calls:
                value = getattr(self, f"_{verb}")(*arguments)
        except BaseException:
            self.close()  # the others wait in a sum to which this rank will not come
            raise
        return {"value": value}

    def close(self) -> None:
        """Leave the group."""
        if self.ranks is not None:
            self.ranks.close()

    def _join(self, rank: int, world: int, store: str, start_s: float, timeout_s: float) -> None:
        self.ranks = Ranks(rank, world, store, start_s=start_s, timeout_s=timeout_s)
        self.learner.gather = self.ranks.gather

    def _update(self, steps: Sequence[Mapping[str, Any]], objective: Mapping[str, Any]) -> dict[str, Any]:
        mine = objective_of(objective, self.learner.objective)
        sums = self.learner.take([step_of(step) for step in steps], mine)
        return {"sums": packed_sums(sums), "digest": weights_digest(self.learner.policy.parameters())}

    def _score(self, batches: Sequence[Mapping[str, Any]], with_reference: bool) -> dict[str, Any]:
        rows = [batch_of(batch) for batch in batches]
        return packed_scores(self.learner.score(rows, with_reference=with_reference))

    def _renew(self) -> None:
        if self.learner.reference is not None:
            self.learner.reference.renew()

    def _load(self, folder: str, counters: Mapping[str, float]) -> None:
        self.learner.load(Path(folder), counters)
