"""The learner of several ranks: rows are shared out, gradients are added up, and every rank takes the same step."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from coterie.algo.objective import Objective
from coterie.batches.batch import Batch
from coterie.cluster.learner_frames import packed_batch, packed_objective, packed_step, scores_of, sums_of
from coterie.cluster.rank_services import RankServices
from coterie.errors import LearnerError
from coterie.policy.forward import Scores
from coterie.policy.learner import Learner
from coterie.policy.ranks import LostRankError, Ranks, weights_digest
from coterie.policy.sharding import Sharding
from coterie.policy.update_report import UpdateReport
from coterie.types import RolloutScores


def shares(batches: Sequence[Batch], ranks: int) -> list[list[Batch]]:
    """Packed rows of each rank: the longest first, each to the rank with the fewest tokens so far.

    It depends on the rows alone, so a run repeats. A rank may have none.

    Args:
        ranks: their number.
    """
    loads = [0] * ranks
    parts: list[list[Batch]] = [[] for _ in range(ranks)]
    for batch in sorted(batches, key=lambda batch: -len(batch.tokens)):
        rank = loads.index(min(loads))
        parts[rank].append(batch)
        loads[rank] += len(batch.tokens)
    return parts


class LearnerGroup(Learner):
    """Learner whose rows are shared out among ranks; rank 0 is this process, the others are services.

    Every rank holds the whole policy and the whole optimizer, and takes the same optimizer step from the sum of all
    gradients (data parallelism with replicas). Weights are shares of one denominator of the whole optimizer step, so
    the sum is the gradient of one rank, up to rounding. A rank that is lost ends the run, since the others wait for it;
    `coterie resume` continues from the newest checkpoint, to the same bits with as many ranks.
    """

    services: RankServices
    ranks: Ranks

    def lead(self, services: RankServices, ranks: Ranks, sharding: Sharding | None = None) -> None:
        """Begin to share rows with other ranks, once they have built their learners.

        Args:
            sharding: see `Learner.attach`.

        Raises:
            LearnerError: a rank cannot be built.
        """
        self.services, self.ranks = services, ranks
        services.ready()
        self.attach(ranks, sharding)
        if self.reference is not None:
            self.reference.renewed = lambda: services.all("renew")

    def shares(self, batches: Sequence[Batch]) -> list[list[Batch]]:
        """The rows of each rank."""
        return shares(batches, self.services.world)

    def update(
        self,
        minibatches: Sequence[Sequence[Batch]],
        objective: Objective | None = None,
        scores: Scores | None = None,
    ) -> UpdateReport:
        """See `Learner.update`.

        Raises:
            LearnerError: a rank was lost, or the ranks' weights differ.
        """
        objective = objective or self.objective
        before = self.splits
        steps = self.plan(minibatches, objective, scores)
        parts = [self.shares(step.batches) for step in steps]
        orders = [
            [
                "update",
                [packed_step(replace(step, batches=part[rank])) for step, part in zip(steps, parts, strict=True)],
                packed_objective(objective),
            ]
            for rank in range(1, self.services.world)
        ]
        mine = [replace(step, batches=part[0]) for step, part in zip(steps, parts, strict=True)]
        self.services.post(orders)
        with self.together():
            sums = self.take(mine, objective, before)
        digest = weights_digest(self.policy.parameters())
        for rank, row in enumerate(self.services.answers(), 1):
            theirs = sums_of(row["sums"])
            if (theirs.norms, row["digest"]) != (sums.norms, digest):
                raise LearnerError(
                    f"learner ranks 0 and {rank} no longer have the same weights (gradient norms {sums.norms} and "
                    f"{theirs.norms}, digests {digest} and {row['digest']}); this should never happen. Continue from "
                    "the newest checkpoint with `coterie resume`"
                )
            sums.merge(theirs)
        return sums.report()

    @contextmanager
    def together(self) -> Generator[None]:
        """Context of this rank's part of what all ranks do; where a rank did not come, its error says which one."""
        # FSDP2 talks to the other ranks in the middle of a pass.
        passes = nullcontext() if self.sharding is None else self.ranks.talking("a pass")
        try:
            with passes:
                yield
        except LostRankError as error:
            self.ranks.close()  # those that still wait give up
            self.services.answers()
            raise LearnerError(f"{error}; continue with `coterie resume`") from error

    def score(self, batches: Sequence[Batch], *, with_reference: bool = True) -> dict[str, RolloutScores]:
        """See `Learner.score`."""
        mine, *others = self.shares(batches)
        self.services.post([["score", [packed_batch(batch) for batch in part], with_reference] for part in others])
        with self.together():
            scores = super().score(mine, with_reference=with_reference)
        for row in self.services.answers():
            scores |= scores_of(row)
        return scores

    def load(self, folder: Path, counters: Mapping[str, float]) -> None:
        """Restore on every rank the state that `save` wrote; the folder must be there for all."""
        super().load(folder, counters)
        self.services.all("load", str(folder), dict(counters))

    def close(self) -> None:
        """End the other ranks."""
        self.ranks.close()
        self.services.close()
