"""Objective of an update, the tokens that its surrogate reads, and the values that it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

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


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenView:
    """Input of a surrogate, built in or custom. All [N]; a rollout's tokens are all here, side by side."""

    logprobs: Tensor
    """log π_θ, with gradient."""
    old_logprobs: Tensor
    log_ratios: Tensor
    """logprobs - old_logprobs, clamped to ±20, with gradient; always the token's own."""
    ratio: Tensor
    """The ratio of `objective.ratio`, with gradient."""
    advantages: Tensor
    clip_low: Tensor
    """Offset below 1."""
    clip_high: Tensor
    """Offset above 1."""
    rollout: Tensor
    """int64: index of the token's rollout."""
    counted: Tensor
    """bool: tokens that take part in sums over their rollout."""
    log_correction: Tensor
    """Log of the mismatch weight of the token's whole rollout, detached."""
    covariant: Tensor
    """bool: tokens that clip_cov or kl_cov chose; see `coterie.algo.entropy`."""
    objective: Objective

    @property
    def params(self) -> Mapping[str, Any]:
        """Keyword arguments of the user's own loss."""
        return self.objective.settings.params


@dataclass(frozen=True, slots=True, kw_only=True)
class Surrogate:
    """Output of a surrogate: the value of each token, and which tokens are clipped."""

    value: Tensor
    """[N] with gradient, to be maximised."""
    clipped_low: Tensor | None = None
    """[N] bool: gradient zero, held by the lower bound; None when there is no such bound. So the next two."""
    clipped_high: Tensor | None = None
    clipped_dual: Tensor | None = None
    """Held by a bound above that acts on a negative advantage."""
