"""The learner of several ranks that share one set of weights: each holds a shard of every tensor (FSDP2)."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from coterie.algo.objective import Objective
from coterie.batches.batch import Batch, idle_row
from coterie.cluster.learner_frames import packed_batch
from coterie.cluster.learner_group import LearnerGroup
from coterie.cluster.rank_services import RankServices
from coterie.policy.forward import Scores
from coterie.policy.ranks import Ranks
from coterie.policy.sharding import ShardedRunner, Sharding
from coterie.policy.tensor_parts import Gathered, cuts_of, local, whole_shape
from coterie.policy.update_report import UpdateReport
from coterie.runs import state_files

POLICY = "policy"
"""Stands for the policy's weights where a state file is named."""


def dealt(batches: Sequence[Batch], ranks: int) -> list[list[Batch]]:
    """Packed rows of each rank, as many for each: rows of similar length are computed at the same time.

    Who has the longer one alternates. Where rows are missing to the last ones, a rank has an `idle_row`.

    Args:
        ranks: their number.
    """
    parts: list[list[Batch]] = [[] for _ in range(ranks)]
    ordered = sorted(batches, key=lambda batch: -len(batch.tokens))
    for number, first in enumerate(range(0, len(ordered), ranks)):
        together = ordered[first : first + ranks]
        together += [idle_row()] * (ranks - len(together))
        for part, batch in zip(parts, reversed(together) if number % 2 else together, strict=True):
            part.append(batch)
    return parts


class ShardedGroup(LearnerGroup):
    """Learner group whose ranks hold shards: of policy, masters, moments, reference and critic.

    A checkpoint is that of one process: rank 0 gathers one tensor at a time while it writes, and every rank reads its
    part. So any number of ranks, with shards or with whole weights, resumes any other's.
    """

    def lead(self, services: RankServices, ranks: Ranks, sharding: Sharding | None = None) -> None:
        """See `LearnerGroup.lead`; policy, reference and critic have been cut."""
        super().lead(services, ranks, sharding)
        self.policy.whole = lambda tensors: Gathered(tensors, lambda name: self.whole(POLICY, name, tensors[name]))
        if isinstance(self.policy.runner, ShardedRunner):
            self.policy.runner.accompanied = self._accompanied

    def shares(self, batches: Sequence[Batch]) -> list[list[Batch]]:
        return dealt(batches, self.services.world)

    def update(
        self,
        minibatches: Sequence[Sequence[Batch]],
        objective: Objective | None = None,
        scores: Scores | None = None,
    ) -> UpdateReport:
        """See `LearnerGroup.update`."""
        kl = (objective or self.objective).kl_beta > 0
        if kl and scores is not None and any(score.reference is None for score in scores.values()):
            # Either every row needs a pass of the reference, or none does.
            scores = {name: replace(score, reference=None) for name, score in scores.items()}
        return super().update(minibatches, objective, scores)

    def gradient(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """See `Learner.gradient`; every rank runs these rows, and the sum over all is in the shards."""
        self.services.post([["gradient", [packed_batch(batch) for batch in batches]]] * (self.services.world - 1))
        with self.together():
            gradients = super().gradient(batches)
        self.services.answers()
        return gradients

    def save(self, folder: Path) -> None:
        """Write whole tensors of optimizer, critic and reference into `folder`, gathered one by one."""
        parameters = self._parameters()
        for file, tensors in self.files().items():
            cuts = cuts_of(parameters, self.services.world)
            places = {key: whole_shape(key, cuts) for key in tensors}
            shapes = {
                key: (tensor.dtype, tuple(tensor.shape) if place is None else place[1])
                for (key, tensor), place in zip(tensors.items(), places.values(), strict=True)
            }
            state_files.stream(
                folder / file,
                shapes,
                lambda key, file=file, tensors=tensors, places=places: (
                    tensors[key] if places[key] is None else self.whole(file, key, tensors[key])
                ),
            )

    def whole(self, file: str, key: str, part: Tensor) -> Tensor:
        """A tensor of which each rank has a part, in the memory of the CPU.

        Args:
            file: of `Learner.files`, or `POLICY`.
            key: of the tensor there.
            part: this rank's.

        Raises:
            LearnerError: a rank was lost.
        """
        place = whole_shape(key, cuts_of(self._parameters(), self.services.world))
        assert place is not None, f"{key} is no shard"
        cut, shape = place
        whole = torch.empty(shape, dtype=part.dtype)
        flat = whole.view(-1)
        self.services.post([["part", file, key]] * (self.services.world - 1))
        with self.together():
            for rank in range(self.services.world):
                first, last = cut.values(rank)
                if rank:
                    self.ranks.receive(flat[first:last], rank)
                else:
                    flat[first:last] = local(part).reshape(-1)
        self.services.answers()
        return whole

    def _parameters(self) -> Mapping[str, Tensor]:
        """All that may be cut, by name."""
        critic = {} if self.critic is None else self.critic.optimizer.parameters
        return dict(self.policy.model.named_parameters()) | critic

    @contextmanager
    def _accompanied(self) -> Generator[None]:
        self.services.post([["accompany"]] * (self.services.world - 1))
        with self.together():
            yield
        self.services.answers()

    def close(self) -> None:
        super().close()
        if self.sharding is not None:
            self.sharding.close()
