"""The learner of several ranks: rows are shared out, gradients are added up, and every rank takes the same step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from coterie.algo.objective import Objective
from coterie.batches.batch import Batch
from coterie.cluster.hosts import Host, LostError, Service, UnplacedError
from coterie.cluster.learner_frames import packed_batch, packed_objective, packed_step, scores_of, sums_of
from coterie.errors import LearnerError
from coterie.policy.forward import Scores
from coterie.policy.learner import Learner, OptimizerStep, UpdateReport, UpdateSums
from coterie.policy.ranks import LostRankError, Ranks, Store, weights_digest
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

    members: Sequence[Service] = ()
    ranks: Ranks | None = None
    host: Host | None = None
    timeout_s: float = 300.0

    def join(self, members: Sequence[Service], *, start_s: float, timeout_s: float, host: Host | None = None) -> None:
        """Begin to share rows with other ranks, of which each serves a `ServedLearner`.

        Args:
            members: ranks 1, 2, …, which have been started.
            host: of the ranks, closed with them; None: of this machine, and closed by the caller.
            start_s: seconds until each has loaded its model.
            timeout_s: seconds that a rank waits for the others, in a sum or for an answer.

        Raises:
            LearnerError: a rank cannot be built.
        """
        self.members, self.timeout_s, self.host = members, start_s, host
        self._answers()
        world = len(members) + 1
        with TemporaryDirectory() as folder:
            address = "" if host is None else host.meeting
            store = Store.port(address, world) if address else Store.file(Path(folder) / "ranks", world)
            self._post([["join", rank, world, store.name, start_s, timeout_s] for rank in range(1, world)])
            try:
                self.ranks = Ranks(0, world, store, start_s=start_s, timeout_s=timeout_s)
            except LostRankError as error:
                self._answers()
                raise self._ended(str(error)) from error
            self._answers()
        self.timeout_s, self.gather = timeout_s, self.ranks.gather
        if self.reference is not None:
            self.reference.renewed = lambda: self._all(["renew"])

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
        parts = [shares(step.batches, len(self.members) + 1) for step in steps]
        orders = [
            [
                "update",
                [packed_step(replace(step, batches=part[rank])) for step, part in zip(steps, parts, strict=True)],
                packed_objective(objective),
            ]
            for rank in range(1, len(self.members) + 1)
        ]
        mine = [replace(step, batches=part[0]) for step, part in zip(steps, parts, strict=True)]
        self._post(orders)
        sums = self._took(mine, objective, before)
        digest = weights_digest(self.policy.parameters())
        for rank, row in enumerate(self._answers(), 1):
            theirs = sums_of(row["sums"])
            if (theirs.norms, row["digest"]) != (sums.norms, digest):
                raise LearnerError(
                    f"learner ranks 0 and {rank} no longer have the same weights (gradient norms {sums.norms} and "
                    f"{theirs.norms}, digests {digest} and {row['digest']}); this should never happen. Continue from "
                    "the newest checkpoint with `coterie resume`"
                )
            sums.merge(theirs)
        return sums.report()

    def _took(self, steps: Sequence[OptimizerStep], objective: Objective, before: int) -> UpdateSums:
        """This rank's part of the optimizer steps; where a rank did not come, which one."""
        try:
            return self.take(steps, objective, before)
        except LostRankError as error:
            if self.ranks is not None:
                self.ranks.close()  # those that still wait give up
            self._answers()
            raise LearnerError(f"{error}; continue with `coterie resume`") from error

    def score(self, batches: Sequence[Batch], *, with_reference: bool = True) -> dict[str, RolloutScores]:
        """See `Learner.score`."""
        parts = shares(batches, len(self.members) + 1)
        self._post([["score", [packed_batch(batch) for batch in part], with_reference] for part in parts[1:]])
        scores = super().score(parts[0], with_reference=with_reference)
        for row in self._answers():
            scores |= scores_of(row)
        return scores

    def load(self, folder: Path, counters: Mapping[str, float]) -> None:
        """Restore on every rank the state that `save` wrote; the folder must be there for all."""
        super().load(folder, counters)
        self._all(["load", str(folder), dict(counters)])

    def close(self) -> None:
        """End the other ranks."""
        if self.ranks is not None:
            self.ranks.close()
        for member in self.members:
            member.close()
        self.members = ()
        if self.host is not None:
            self.host.close()

    def _all(self, order: list[Any]) -> list[Any]:
        self._post([order] * len(self.members))
        return self._answers()

    def _post(self, orders: Sequence[list[Any]]) -> None:
        """Send each rank its order."""
        for rank, (member, order) in enumerate(zip(self.members, orders, strict=True), 1):
            try:
                member.send({"id": rank, "calls": [order]}, self.timeout_s)
            except LostError as error:
                raise self._ended(f"learner rank {rank} {error}") from error

    def _answers(self) -> list[Any]:
        """What the ranks answer to their last order.

        Raises:
            LearnerError: a rank is gone, or told of an error; the others are ended.
        """
        values, gone, failed = [], "", ""
        for rank, member in enumerate(self.members, 1):
            try:
                answer = member.receive(self.timeout_s)
            except (LostError, UnplacedError) as error:
                gone = gone or f"learner rank {rank} {error}"
                continue
            if "error" in answer:
                failed = failed or f"learner rank {rank} says: {answer['error']}"
            values.append(answer.get("value"))
        if gone or failed:
            raise self._ended(gone or failed)
        return values

    def _ended(self, cause: str) -> LearnerError:
        """The error of a lost rank; the others are killed."""
        for member in self.members:
            member.kill()
        self.members = ()
        return LearnerError(
            f"{cause}. The other ranks wait for it, so the run ends here; logs/ in its folder has what they said; "
            "continue with `coterie resume`"
        )
