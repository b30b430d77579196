"""Expected lengths of answers from those of earlier steps, for the cost of a rollout before it is sampled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coterie.grouping.arrays import State
from coterie.stats import Floats

PRIOR_ROLLOUTS = 4.0
"""A prompt's own mean counts like the mean of all prompts from so many rollouts on."""


class AnswerLengths:
    """Mean tokens of a prompt's answers, shrunk towards the mean of all prompts; both fade with time.

    Args:
        decay_steps: steps in which a length fades to 1/e.
    """

    def __init__(self, decay_steps: float) -> None:
        self.decay_steps = decay_steps
        self.all = (0.0, 0.0, 0.0)
        """Fading sum of tokens, fading number of rollouts, time of both."""
        self.prompts: dict[str, tuple[float, float, float]] = {}

    def expect(self, names: Sequence[str], time: float, start: float) -> Floats:
        """[N] tokens of one rollout.

        Args:
            start: expected before anything was observed.
        """
        tokens, weight = self._faded(self.all, time)
        mean = tokens / weight if weight > 0 else start
        sums = np.array([self._faded(self.prompts.get(name, (0.0, 0.0, time)), time) for name in names]).reshape(-1, 2)
        return (sums[:, 0] + PRIOR_ROLLOUTS * mean) / (sums[:, 1] + PRIOR_ROLLOUTS)

    def observe(self, names: Sequence[str], lengths: Sequence[int], time: float) -> None:
        """Add the rollouts of a step: prompt and tokens of each."""
        for name, length in zip(names, lengths, strict=True):
            tokens, weight = self._faded(self.prompts.get(name, (0.0, 0.0, time)), time)
            self.prompts[name] = tokens + length, weight + 1.0, time
            tokens, weight = self._faded(self.all, time)
            self.all = tokens + length, weight + 1.0, time

    def _faded(self, sums: tuple[float, float, float], time: float) -> tuple[float, float]:
        tokens, weight, at = sums
        keep = float(np.exp(-max(time - at, 0.0) / self.decay_steps))
        return keep * tokens, keep * weight

    def state(self) -> State:
        rows = np.array([self.all, *self.prompts.values()], dtype=np.float64)
        return {"rows": rows}, {"names": list(self.prompts)}

    def load(self, state: State) -> None:
        arrays, facts = state
        everything, *rows = (tuple(row) for row in arrays["rows"].tolist())
        self.all, self.prompts = everything, dict(zip(facts["names"], rows, strict=True))
