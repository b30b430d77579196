"""Services of the learner ranks 1 and up: orders go to all of them, and one that is lost ends the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from coterie.cluster.hosts import Host, LostError, Service, UnplacedError
from coterie.errors import LearnerError
from coterie.policy.ranks import LostRankError, Ranks, Store


class RankServices:
    """Ranks 1, 2, … of a learner, of which each serves a `ServedLearner`.

    Args:
        members: which have been started.
        host: of the members, closed with them; None: of this machine, and closed by the caller.
        start_s: seconds until each has started, and then until each has loaded its model.
        timeout_s: seconds that a rank waits for the others, in a sum or for an answer.
    """

    def __init__(
        self, members: Sequence[Service], host: Host | None = None, *, start_s: float, timeout_s: float
    ) -> None:
        self.members, self.host = members, host
        self.start_s, self.timeout_s = start_s, timeout_s
        self._seconds = start_s
        self._folder: TemporaryDirectory[str] | None = None

    @property
    def world(self) -> int:
        """Number of ranks, with rank 0."""
        return len(self.members) + 1

    def meet(self) -> Ranks:
        """The process group of rank 0; the others build their learners meanwhile, and `ready` waits for them.

        Raises:
            LearnerError: a rank did not come.
        """
        self.answers()
        world, self._folder = self.world, TemporaryDirectory()
        address = "" if self.host is None else self.host.meeting
        store = Store.port(address, world) if address else Store.file(Path(self._folder.name) / "ranks", world)
        self.post([["join", rank, world, store.name, self.start_s, self.timeout_s] for rank in range(1, world)])
        try:
            return Ranks(0, world, store, start_s=self.start_s, timeout_s=self.timeout_s)
        except LostRankError as error:
            self.answers()
            raise self.ended(str(error)) from error

    def ready(self) -> None:
        """Wait until all have built their learners.

        Raises:
            LearnerError: one cannot.
        """
        self.answers()
        self._seconds = self.timeout_s

    def all(self, *order: Any) -> list[Any]:
        """What the ranks answer to the same order."""
        self.post([list(order)] * len(self.members))
        return self.answers()

    def post(self, orders: Sequence[list[Any]]) -> None:
        """Send each rank its order.

        Raises:
            LearnerError: a rank is gone; the others are ended.
        """
        for rank, (member, order) in enumerate(zip(self.members, orders, strict=True), 1):
            try:
                member.send({"id": rank, "calls": [order]}, self._seconds)
            except LostError as error:
                raise self.ended(f"learner rank {rank} {error}") from error

    def answers(self) -> list[Any]:
        """What the ranks answer to their last order.

        Raises:
            LearnerError: a rank is gone, or told of an error; the others are ended.
        """
        values, gone, failed = [], "", ""
        for rank, member in enumerate(self.members, 1):
            try:
                answer = member.receive(self._seconds)
            except (LostError, UnplacedError) as error:
                gone = gone or f"learner rank {rank} {error}"
                continue
            if "error" in answer:
                failed = failed or f"learner rank {rank} says: {answer['error']}"
            values.append(answer.get("value"))
        if gone or failed:
            raise self.ended(gone or failed)
        return values

    def ended(self, cause: str) -> LearnerError:
        """The error of a lost rank; the others are killed."""
        for member in self.members:
            member.kill()
        self.members = ()
        return LearnerError(
            f"{cause}. The other ranks wait for it, so the run ends here; logs/ in its folder has what they said; "
            "continue with `coterie resume`"
        )

    def close(self) -> None:
        """End the ranks."""
        for member in self.members:
            member.close()
        self.members = ()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
        if self.host is not None:
            self.host.close()
