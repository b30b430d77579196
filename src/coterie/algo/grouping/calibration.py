"""Numbers learned as a ratio of two running sums: how far to trust a predicted variance, how noisy rewards are."""

from __future__ import annotations

from coterie.algo.grouping.state import State


class Ratio:
    """A forgetting ratio of sums, sum(top) / sum(bottom), which starts at a prior worth `strength` of bottom.

    Used for kappa (realised over predicted variance), for the noise factor and for tau_p (lasting part of a prompt).
    """

    def __init__(self, start: float, strength: float, keep: float, low: float, high: float) -> None:
        self.prior = (start * strength, strength)
        self.top, self.bottom = self.prior
        self.keep, self.low, self.high = keep, low, high

    @property
    def value(self) -> float:
        return min(max(self.top / self.bottom, self.low), self.high)

    def add(self, top: float, bottom: float) -> None:
        """Forget a little, then add. Nothing is forgotten where nothing was seen."""
        if bottom <= 0:
            return
        self.top = self.keep * self.top + top
        # The floor keeps the ratio defined after years of forgetting; it is far below one batch.
        self.bottom = max(self.keep * self.bottom + bottom, 1e-9)

    def reset(self) -> None:
        self.top, self.bottom = self.prior

    def state(self) -> State:
        return {}, {"top": self.top, "bottom": self.bottom}

    def load(self, state: State) -> None:
        self.top, self.bottom = state[1]["top"], state[1]["bottom"]
