"""The clock by which evidence fades, where it follows the policy and not the count of updates."""

from __future__ import annotations

from math import isfinite


class PolicyClock:
    """Policy time: each update lasts as long as it moved the policy, against the mean of all updates so far.

        t ← t + m_k / mean(m_1 … m_k)

    m is the mean |change of log-prob| of a token, in nats: SPO's measure of age (2509.13232). Against its running mean
    the average update lasts about one unit, so that all memories stay given in steps whatever the learning rate is; an
    update that moves nothing lasts nothing. The time of a step depends on the updates before it alone.

    >>> clock = PolicyClock()
    >>> [round(clock.advance(moved), 4) for moved in (0.02, 0.04, 0.0, 0.06)]
    [1.0, 2.3333, 2.3333, 4.3333]
    """

    def __init__(self) -> None:
        self.now, self.moved, self.updates = 0.0, 0.0, 0

    def advance(self, moved: float) -> float:
        """After an update. Returns the time now.

        Raises:
            ValueError: `moved` is negative or not finite.
        """
        if not (isfinite(moved) and moved >= 0):
            raise ValueError(f"moved is {moved}; expected a mean |log-prob change| of at least 0")
        self.moved, self.updates = self.moved + moved, self.updates + 1
        if moved > 0:
            self.now += moved * self.updates / self.moved
        return self.now

    def state(self) -> dict[str, float]:
        return {"now": self.now, "moved": self.moved, "updates": self.updates}

    def load(self, state: dict[str, float]) -> None:
        self.now, self.moved, self.updates = float(state["now"]), float(state["moved"]), int(state["updates"])
