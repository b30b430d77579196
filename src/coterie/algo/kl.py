"""Estimators of the KL divergence from token log-probabilities (Schulman, "Approximating KL divergence").

As values under π_θ, k1 and k3 are unbiased for KL(π_θ‖π_ref). As terms of a loss their gradients are another matter:
k1 gives pure noise, k2 and `k3_unbiased` give the gradient of the reverse KL, k3 that of the forward KL(π_ref‖π_θ).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from coterie.algo.tokens import log_ratio


def k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """log π - log π_ref: unbiased as a value, signed."""
    return log_ratio(logprobs, reference)


def k2(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Half the squared log-ratio."""
    return log_ratio(logprobs, reference).square() / 2


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """π_ref/π - log(π_ref/π) - 1, never negative: the KL of GRPO (DeepSeekMath eq. 4).

    >>> k3(torch.tensor([0.693147]), torch.tensor([0.0])).item()  # doctest: +ELLIPSIS
    0.193...
    """
    ratio = log_ratio(reference, logprobs)
    return torch.exp(ratio) - ratio - 1


def k3_unbiased(logprobs: Tensor, reference: Tensor, ratio: Tensor) -> Tensor:
    """ρ·k3 with gradient through the token ratio ρ = π_θ/π_old: DeepSeek-V3.2's unbiased KL estimate.

    DeepSeek-V3.2 weighs each token by its own ratio. TRL (`use_bias_correction_kl`) multiplies by whatever ratio its
    surrogate uses, which is the rollout's under GSPO; here it is always the token's, which is what removes the bias.
    """
    return ratio * k3(logprobs, reference)


def k3_straight(logprobs: Tensor, reference: Tensor) -> Tensor:
    """The value of k3 with the gradient of k2 (verl's `k3+`)."""
    through = k2(logprobs, reference)
    return through - through.detach() + k3(logprobs, reference).detach()


@dataclass(frozen=True, slots=True, kw_only=True)
class KlEstimator:
    """A row of the table of estimators."""

    function: Callable[[Tensor, Tensor, Tensor], Tensor]
    """(log π_θ [N], log π_ref [N], token ratio [N]) → [N], all but the reference with gradient."""
    formula: str
    gradient: str
    """Its expected gradient inside a loss."""
    source: str


SCHULMAN = "Schulman, Approximating KL divergence, 2020"
KL_ESTIMATORS: dict[str, KlEstimator] = {
    "k1": KlEstimator(
        function=lambda now, ref, ratio: k1(now, ref),
        formula="x, with x = log π_θ - log π_ref",
        gradient="zero on average: only noise inside a loss",
        source=SCHULMAN,
    ),
    "k2": KlEstimator(
        function=lambda now, ref, ratio: k2(now, ref),
        formula="x²/2",
        gradient="reverse KL(π_θ‖π_ref), on-policy",
        source=SCHULMAN,
    ),
    "k3": KlEstimator(
        function=lambda now, ref, ratio: k3(now, ref),
        formula="exp(-x) - 1 + x",
        gradient="forward KL(π_ref‖π_θ)",
        source="DeepSeekMath 2402.03300, eq. 4",
    ),
    "k3_unbiased": KlEstimator(
        function=k3_unbiased,
        formula="ρ·(exp(-x) - 1 + x), gradient through ρ = π_θ/π_old",
        gradient="reverse KL(π_θ‖π_ref), off-policy too",
        source="DeepSeek-V3.2 2512.02556",
    ),
    "k3_straight": KlEstimator(
        function=lambda now, ref, ratio: k3_straight(now, ref),
        formula="value of k3, gradient of k2",
        gradient="reverse KL(π_θ‖π_ref), on-policy",
        source="verl, `k3+`",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveBeta:
    """Moves the weight of the KL so that the KL meets a target (Ziegler et al. 1909.08593; verl).

    >>> AdaptiveBeta(target=0.1, horizon=1000).update(0.04, kl=0.3, count=100)  # 20 % of error at most, a tenth of it
    0.0408
    """

    target: float
    """KL aimed at, in nats per token."""
    horizon: float
    """Over how many rollouts a full correction is spread."""

    def __post_init__(self) -> None:
        if not (self.target > 0 and self.horizon > 0):
            raise ValueError(f"target = {self.target} and horizon = {self.horizon} must both be above 0")

    def update(self, beta: float, kl: float, count: int) -> float:
        """The next weight: β·(1 + clip(KL/target - 1, ±0.2)·count/horizon), never below 0.

        Args:
            beta: the weight used so far: all the state there is.
            kl: measured over the step, mean per token.
            count: rollouts that the measurement covers.
        """
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        return max(0.0, beta * (1 + error * count / self.horizon))
