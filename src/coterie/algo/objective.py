"""The objective of an update: the sections `[objective]` and `[rollout_correction]`, and the user's own loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import Tensor

from coterie.config.objective import ObjectiveConfig, RolloutCorrectionConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Objective that `policy_loss` maximises."""

    settings: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    correction: RolloutCorrectionConfig = field(default_factory=RolloutCorrectionConfig)
    function: Callable[..., Tensor] | None = None
    """The user's own loss, where `settings.loss` names one: from a `TokenView` to [N], which is maximised."""

    @property
    def kl_beta(self) -> float:
        """Weight of the KL in the loss; 0 where the KL is in the reward or absent."""
        return self.settings.kl_beta if self.settings.kl_in == "loss" else 0.0

    @property
    def entropy_bonus(self) -> float:
        """c: the loss falls by c times the mean entropy."""
        return self.settings.entropy_bonus

    def weighted(self, **weights: float) -> Objective:
        """Copy with other weights, `kl_beta` or `entropy_bonus`: they adapt during a run."""
        return replace(self, settings=self.settings.model_copy(update=weights))
