"""Weights of the objective that follow what was measured, and the renewal of the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from coterie.algo.entropy import AdaptiveEntropy, EntropyState
from coterie.algo.kl import AdaptiveBeta
from coterie.policy.learner import Learner


@dataclass(slots=True, kw_only=True)
class Schedules:
    """What changes between steps; None where a weight is constant."""

    beta: AdaptiveBeta | None = None
    entropy: AdaptiveEntropy | None = None
    entropy_state: EntropyState = field(default_factory=EntropyState)

    def after(self, step: int, metrics: Mapping[str, float], rollouts: int, learner: Learner) -> dict[str, float]:
        """Adapt the learner's objective and renew its reference after a step; returns the weights, for the record."""
        found: dict[str, float] = {}
        if self.beta is not None and "kl/ref" in metrics:
            beta = self.beta.update(learner.objective.kl_beta, metrics["kl/ref"], rollouts)
            learner.objective = learner.objective.weighted(kl_beta=beta)
            found["kl/beta"] = beta
        if self.entropy is not None and "entropy" in metrics:
            self.entropy_state = self.entropy.update(self.entropy_state, metrics["entropy"])
            bonus = self.entropy.bonus(self.entropy_state)
            learner.objective = learner.objective.weighted(entropy_bonus=bonus)
            found["entropy/bonus"] = bonus
        if learner.reference is not None and learner.reference.due(step):
            learner.reference.renew()
        return found

    def state(self) -> dict[str, Any]:
        """JSON-able; an entropy that was never measured is None."""
        if self.entropy is None:
            return {}
        measured = self.entropy_state.entropy
        return {
            "coefficient": self.entropy_state.coefficient,
            "entropy": measured if math.isfinite(measured) else None,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        if state:
            entropy = math.inf if state["entropy"] is None else state["entropy"]
            self.entropy_state = EntropyState(coefficient=state["coefficient"], entropy=entropy)
