"""Rollout correction: importance weights w = π_old / π_sampler between learner and sampler, and their statistics.

Both read the same weights, so w would be 1 but for rounding, another kernel, or a sampler that lags behind. The weights
are constants of the objective: nothing here is ever differentiated. When the old log-probs *are* the sampler's
(not scored again), w is 1 and every mode leaves the loss as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from coterie.algo.sampling import widened
from coterie.algo.tokens import LIMIT, log_ratio, segment_any, segment_mean, segment_sum
from coterie.config.objective import RolloutCorrectionConfig

CORRECTIONS: dict[str, tuple[str, str]] = {
    "none": ("1", "nothing is corrected, all is recorded"),
    "token_truncate": ("min(w_t, high)", "truncated importance sampling; biased, low variance"),
    "token_clip": ("clip(w_t, low, high)", "slime"),
    "token_mask": ("w_t · 1[low <= w_t <= high]", "IcePop, Ling Team 2510.18855"),
    "sequence_truncate": ("min(Π_t w_t, high)", "verl, TRL; grows with the length: 1.1¹⁰ = 2.6, 1.1¹⁰⁰ = 13,780"),
    "sequence_mask": ("Π_t w_t · 1[low <= Π_t w_t <= high]", "verl, TRL's default with high = 3"),
    "geometric_mask": ("1[low <= exp(mean_t log w_t) <= high]", "verl; does not grow with the length, only masks"),
}
"""kind → (factor on the policy term of token t, source)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Correction:
    """Correction of every token's policy term; all [N], detached."""

    weight: Tensor
    """The factor; 0 where not kept."""
    kept: Tensor
    """bool: False where a mask mode or the veto takes the token out."""
    truncated: Tensor
    """bool: the factor is not the ratio itself because a bound cut it."""
    log_total: Tensor
    """Log of the factor of the token's whole rollout, for objectives that weigh rollouts as a whole."""


def correct(
    old_logprobs: Tensor,
    sampler_logprobs: Tensor,
    rollout: Tensor,
    counted: Tensor,
    settings: RolloutCorrectionConfig,
) -> Correction:
    """Correction weights of all tokens.

    Log-weights are clamped to ±20 per token, and again once summed, before the exponential.

    Args:
        old_logprobs: [N] of the learner at the start of the update.
        sampler_logprobs: [N] as the sampler reported them.
        rollout: [N] int64 index of each token's rollout.
        counted: [N] bool: tokens that take part; elsewhere the weight is 1 and nothing counts.
        settings: see `CORRECTIONS`. "token_truncate" and "sequence_truncate" have no lower bound.
    """
    mode, low, high, veto = settings.kind, settings.low, settings.high, settings.veto
    with torch.no_grad():
        log_w = torch.where(counted, log_ratio(old_logprobs, sampler_logprobs), 0.0)
        if mode == "none":
            raw = torch.ones_like(log_w)
        elif mode.startswith("token"):
            raw = log_w.exp()
        elif mode == "geometric_mask":
            raw = segment_mean(log_w, rollout, counted).exp()
        else:
            raw = segment_sum(log_w, rollout).clamp(-LIMIT, LIMIT).exp()
        weight, kept = raw, torch.ones_like(counted)
        if mode.endswith("mask"):
            kept = (raw >= low) & (raw <= high)
            weight = torch.ones_like(raw) if mode == "geometric_mask" else raw
        elif mode == "token_clip":
            weight = raw.clamp(low, high)
        elif mode.endswith("truncate"):
            weight = raw.clamp(max=high)
        truncated = torch.zeros_like(counted) if mode.endswith("mask") else weight != raw
        if veto is not None:
            kept = kept & ~segment_any((log_w.exp() < veto) & counted, rollout)
        weight = torch.where(counted, torch.where(kept, weight, 0.0), 1.0)
        log_total = _log_total(weight, rollout, counted, per_token=mode.startswith("token"))
        return Correction(
            weight=weight, kept=kept | ~counted, truncated=truncated & kept & counted, log_total=log_total
        )


SMALLEST = 1e-8
"""A weight of 0 counts as this in a product of weights (TRL's VESPO)."""


def _log_total(weight: Tensor, rollout: Tensor, counted: Tensor, *, per_token: bool) -> Tensor:
    logs = torch.where(counted, weight.clamp(min=SMALLEST).log(), 0.0)
    return segment_sum(logs, rollout) if per_token else logs


@dataclass(frozen=True, slots=True, kw_only=True)
class MismatchSums:
    """Sampler-learner mismatch as sums: `a + b` equals the sums over both parts."""

    tokens: int = 0
    rollouts: int = 0
    log_w: float = 0.0
    k3: float = 0.0
    """Σ (w - log w - 1); so the next, of its squares."""
    k3_squared: float = 0.0
    w: float = 0.0
    w_squared: float = 0.0
    sequence_w: float = 0.0
    """Over rollouts; so the next."""
    sequence_w_squared: float = 0.0
    low: float = float("inf")
    high: float = float("-inf")
    truncated: int = 0
    """Tokens whose weight a bound cut."""
    masked: int = 0
    """Tokens taken out by a mask mode or the veto."""

    def __add__(self, other: MismatchSums) -> MismatchSums:
        return MismatchSums(
            tokens=self.tokens + other.tokens,
            rollouts=self.rollouts + other.rollouts,
            log_w=self.log_w + other.log_w,
            k3=self.k3 + other.k3,
            k3_squared=self.k3_squared + other.k3_squared,
            w=self.w + other.w,
            w_squared=self.w_squared + other.w_squared,
            sequence_w=self.sequence_w + other.sequence_w,
            sequence_w_squared=self.sequence_w_squared + other.sequence_w_squared,
            low=min(self.low, other.low),
            high=max(self.high, other.high),
            truncated=self.truncated + other.truncated,
            masked=self.masked + other.masked,
        )

    def summary(self) -> dict[str, float]:
        """Metrics by name; empty when there was no token.

        kl_k1 and kl_k3 estimate KL(π_sampler‖π_old) in nats per token, the latter with a standard error of kl_error,
        infinite for one token; chi2 = E[w²] - 1; ess = (Σw)² / (N·Σw²) in (0, 1]; the shares are of tokens.
        """
        if not self.tokens:
            return {}
        metrics = {
            "kl_k1": -self.log_w / self.tokens,
            "kl_k3": self.k3 / self.tokens,
            "kl_error": self._k3_error(),
            "chi2": self.w_squared / self.tokens - 1,
            "chi2_sequence": self.sequence_w_squared / self.rollouts - 1,
            "ess": self.w**2 / (self.tokens * self.w_squared),
            "ess_sequence": self.sequence_w**2 / (self.rollouts * self.sequence_w_squared),
            "min": self.low,
            "mean": self.w / self.tokens,
            "max": self.high,
            "truncated": self.truncated / self.tokens,
            "masked": self.masked / self.tokens,
        }
        return metrics

    def _k3_error(self) -> float:
        if self.tokens < 2:
            return math.inf
        scatter = self.k3_squared - self.k3**2 / self.tokens
        return math.sqrt(max(0.0, scatter) / (self.tokens - 1) / self.tokens)


def mismatch_metrics(
    old_logprobs: Tensor, sampler_logprobs: Tensor, rollout: Tensor, counted: Tensor, correction: Correction
) -> MismatchSums:
    """The sums of one part; arguments as of `correct`, and what it returned. Sums are taken in float64."""
    with torch.no_grad():
        tokens = int(counted.sum())
        if not tokens:
            return MismatchSums()
        log_w = widened(log_ratio(old_logprobs, sampler_logprobs)[counted])
        owner = torch.unique(rollout[counted], return_inverse=True)[1].to(log_w.device)
        totals = log_w.new_zeros(int(owner.max()) + 1).index_add(0, owner, log_w)
        w, sequence_w = log_w.exp(), totals.clamp(-LIMIT, LIMIT).exp()
        k3 = w - log_w - 1
        sums = torch.stack(
            [
                log_w.sum(),
                k3.sum(),
                k3.square().sum(),
                w.sum(),
                w.square().sum(),
                sequence_w.sum(),
                sequence_w.square().sum(),
                w.min(),
                w.max(),
                (correction.truncated & counted).sum().to(log_w.device),
                (~correction.kept & counted).sum().to(log_w.device),
            ]
        ).tolist()
    names = ("log_w", "k3", "k3_squared", "w", "w_squared", "sequence_w", "sequence_w_squared", "low", "high")
    return MismatchSums(
        tokens=tokens,
        rollouts=len(totals),
        truncated=int(sums[9]),
        masked=int(sums[10]),
        **dict(zip(names, sums[:9], strict=True)),
    )
