"""What a surrogate sees of the tokens, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from coterie.algo.objective import Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenView:
    """What a surrogate sees, built in or the user's own. All [N]; a rollout's tokens are all here, side by side."""

    logprobs: Tensor
    """log π_θ, with gradient."""
    old_logprobs: Tensor
    log_ratios: Tensor
    """logprobs - old_logprobs, clamped to ±20, with gradient; always the token's own."""
    ratio: Tensor
    """The ratio of `Objective.ratio`, with gradient."""
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
    objective: Objective

    @property
    def params(self) -> Mapping[str, Any]:
        """The settings of a surrogate of the user's own."""
        return self.objective.params


@dataclass(frozen=True, slots=True, kw_only=True)
class Surrogate:
    """What each token is worth, and which tokens a bound holds still."""

    value: Tensor
    """[N] with gradient, to be maximised."""
    clipped_low: Tensor | None = None
    """[N] bool: gradient zero, held by the lower bound; None when there is no such bound. So the next two."""
    clipped_high: Tensor | None = None
    clipped_dual: Tensor | None = None
    """Held by a bound above that acts on a negative advantage."""
