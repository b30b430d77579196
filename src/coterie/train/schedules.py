"""Schedules between steps: the weights of KL and entropy, and the renewal of the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from coterie.algo.entropy import AdaptiveEntropy, EntropyState
from coterie.algo.kl import AdaptiveBeta
from coterie.algo.objective import Objective
from coterie.policy.reference import Reference


@dataclass(slots=True, kw_only=True)
class Schedules:
    """The objective of the next update, and what changes it between steps.

    Args:
        beta, entropy: controllers of the two weights; None where a weight is constant.
        reference: renewed as its settings say; None where there is none.
    """

    objective: Objective
    beta: AdaptiveBeta | None = None
    entropy: AdaptiveEntropy | None = None
    entropy_state: EntropyState = field(default_factory=EntropyState)
    reference: Reference | None = None

    def advance(self, step: int, metrics: Mapping[str, float], rollouts: int) -> dict[str, float]:
        """Adapt the objective and renew the reference after a step; returns the weights, for the record.

        Args:
            step: steps done, this one included.
            metrics: of the update.
            rollouts: how many the update trained on.
        """
        weights: dict[str, float] = {}
        if self.beta is not None and "kl/ref" in metrics:
            beta = self.beta.update(self.objective.kl_beta, metrics["kl/ref"], rollouts)
            self.objective = self.objective.weighted(kl_beta=beta)
            weights["kl/beta"] = beta
        if self.entropy is not None and "entropy" in metrics:
            self.entropy_state = self.entropy.update(self.entropy_state, metrics["entropy"])
            bonus = self.entropy.bonus(self.entropy_state)
            self.objective = self.objective.weighted(entropy_bonus=bonus)
            weights["entropy/bonus"] = bonus
        if self.reference is not None and self.reference.due(step):
            self.reference.renew()
        return weights

    def state(self) -> dict[str, Any]:
        """JSON-able, for a checkpoint; an entropy that was never measured is None."""
        measured = self.entropy_state.entropy
        return {
            "kl_beta": self.objective.kl_beta,
            "entropy_bonus": self.objective.entropy_bonus,
            "entropy_coefficient": self.entropy_state.coefficient,
            "entropy": measured if math.isfinite(measured) else None,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's state."""
        entropy = math.inf if state["entropy"] is None else state["entropy"]
        self.entropy_state = EntropyState(coefficient=state["entropy_coefficient"], entropy=entropy)
        self.objective = self.objective.weighted(kl_beta=state["kl_beta"], entropy_bonus=state["entropy_bonus"])
