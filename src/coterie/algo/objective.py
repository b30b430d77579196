"""What the loss is made of: a few independent choices, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

KlName = Literal["k1", "k2", "k3", "k3_unbiased", "k3_straight"]
CorrectionMode = Literal[
    "none",
    "token_truncate",
    "token_clip",
    "token_mask",
    "sequence_truncate",
    "sequence_mask",
    "geometric_mask",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The choices of `policy_loss`; each is independent of the others unless its own line says otherwise.

    Raises:
        ValueError: a number lies outside its range.
    """

    ratio: RatioLevel = "token"
    """See `ratio.RATIOS`."""
    loss: str | Callable[..., Tensor] = "clip"
    """A name of `surrogates.SURROGATES`, or a function of one `token_view.TokenView` that returns [N] to maximise."""
    dual_clip: float | None = None
    """c > 1: with a negative advantage, "clip" falls no lower than c·A (Ye et al. 1912.09729)."""
    delta: float | None = None
    """δ > 1: "clip" caps the unclipped ratio too (INTELLECT-2 2505.07291); meant to lie above 1 + clip_high."""
    sapo_tau_pos: float = 1.0
    """τ of "sapo" where the advantage is positive."""
    sapo_tau_neg: float = 1.05
    """τ of "sapo" elsewhere."""
    off_policy_mask: float | None = None
    """δ ≥ 0: drop rollouts with a negative advantage that the policy has moved this far from; see `opsm`."""
    kl_beta: float = 0.0
    """Weight of the KL in the loss; 0 where the KL is in the reward or absent."""
    kl_estimator: KlName = "k3"
    """See `kl.KL_ESTIMATORS`."""
    entropy_bonus: float = 0.0
    """c: the loss falls by c times the mean entropy."""
    correction: CorrectionMode = "token_truncate"
    """How the sampler's and the learner's different numerics are corrected; see `mismatch.CORRECTIONS`."""
    correction_low: float = 0.0
    correction_high: float = 2.0
    veto: float | None = None
    """Drop a rollout in which any w_t lies below this."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """For a loss of the user's own."""

    def __post_init__(self) -> None:
        for name in ("dual_clip", "delta"):
            value = getattr(self, name)
            if value is not None and not value > 1:
                raise ValueError(f"{name} = {value} must be above 1; leave it out to have no such bound")
        for name in ("sapo_tau_pos", "sapo_tau_neg"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)} must be above 0")
        for name in ("off_policy_mask", "veto", "kl_beta"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name} = {value} must not be negative")
        if not 0 <= self.correction_low < self.correction_high:
            raise ValueError(
                f"correction_low = {self.correction_low} and correction_high = {self.correction_high} must satisfy "
                "0 <= low < high"
            )
        for name in ("dual_clip", "delta"):
            if getattr(self, name) is not None and self.loss != "clip":
                raise ValueError(f"{name} bounds the loss 'clip' only; leave it out with {self.loss!r}")


RatioLevel = Literal["token", "sequence", "sequence_token"]
