"""A learner rank in a service: it computes its part of the rows, and takes every optimizer step with the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from coterie.batches.batch import idle_row
from coterie.cluster.learner_frames import batch_of, objective_of, packed_scores, packed_sums, step_of
from coterie.cluster.sharded_group import POLICY
from coterie.policy.learner import Learner
from coterie.policy.logprobs import OutputFlags
from coterie.policy.ranks import Ranks, weights_digest
from coterie.policy.tensor_parts import local


@dataclass(kw_only=True)
class ServedLearner:
    """Rank 1 or higher of a `LearnerGroup`.

    Args:
        build: makes the learner of this rank, with the weights that rank 0 has.
    """

    build: Callable[[Ranks], Learner]
    ranks: Ranks = field(init=False)
    """The process group of this rank, once it has joined."""
    learner: Learner = field(init=False)
    """From then on."""

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
        if hasattr(self, "ranks"):
            self.ranks.close()
        if hasattr(self, "learner") and self.learner.sharding is not None:
            self.learner.sharding.close()

    def _join(self, rank: int, world: int, store: str, start_s: float, timeout_s: float) -> None:
        self.ranks = Ranks(rank, world, store, start_s=start_s, timeout_s=timeout_s)
        self.learner = self.build(self.ranks)

    def _update(self, steps: Sequence[Mapping[str, Any]], objective: Mapping[str, Any]) -> dict[str, Any]:
        mine = objective_of(objective, self.learner.objective)
        sums = self.learner.take([step_of(step) for step in steps], mine)
        return {"sums": packed_sums(sums), "digest": weights_digest(self.learner.policy.parameters())}

    def _score(self, batches: Sequence[Mapping[str, Any]], with_reference: bool) -> dict[str, Any]:
        rows = [batch_of(batch) for batch in batches]
        return packed_scores(self.learner.score(rows, with_reference=with_reference))

    def _gradient(self, batches: Sequence[Mapping[str, Any]]) -> None:
        self.learner.gradient([batch_of(batch) for batch in batches])

    def _part(self, file: str, key: str) -> None:
        files = self.learner.files() if file != POLICY else {POLICY: dict(self.learner.policy.model.named_parameters())}
        self.ranks.send(local(files[file][key]), 0)

    @torch.no_grad()
    def _accompany(self) -> None:
        self.learner.passes.forward(self.learner.policy, idle_row(), OutputFlags())

    def _renew(self) -> None:
        if self.learner.reference is not None:
            self.learner.reference.renew()

    def _load(self, folder: str, counters: Mapping[str, float]) -> None:
        self.learner.load(Path(folder), counters)
