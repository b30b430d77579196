"""Policy-gradient surrogates: what is maximised per token. One table, one function a row.

Where a row's gradient flows through the log-probability and not through the ratio ("cispo", "dppo_tv", "dppo_kl",
"vespo"), the value of the loss means nothing; only its gradient does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from coterie.algo.objective import Objective, Surrogate, TokenView
from coterie.algo.tokens import LIMIT, segment_mean, segment_sum

DIVERGENCE_CAP = 20.0
"""Largest ratio that "dppo_tv" and "dppo_kl" weigh a token with (verl)."""
GAMMA_POSITIVE = (2.0, 3.0)
GAMMA_NEGATIVE = (3.0, 2.0)
"""(k, λ) of "vespo" where A >= 0 and where A < 0 (VESPO's published setting, TRL's default)."""


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip_low: Tensor | float, clip_high: Tensor | float) -> Tensor:
    """min(ρA, clip(ρ, 1 - low, 1 + high)·A), DeepSeekMath eq. 3: what is maximised, per token.

    >>> ratio, advantages = torch.tensor([1.5, 0.5, 1.5, 0.5]), torch.tensor([1.0, 1.0, -1.0, -1.0])
    >>> clipped_surrogate(ratio, advantages, 0.2, 0.2).tolist()
    [1.2000000476837158, 0.5, -1.5, -0.800000011920929]
    """
    return torch.minimum(ratio * advantages, _clip(ratio, clip_low, clip_high) * advantages)


def _clip(ratio: Tensor, clip_low: Tensor | float, clip_high: Tensor | float) -> Tensor:
    low = 1 - torch.as_tensor(clip_low, dtype=ratio.dtype, device=ratio.device)
    high = 1 + torch.as_tensor(clip_high, dtype=ratio.dtype, device=ratio.device)
    return torch.maximum(torch.minimum(ratio, high), low)


def pessimistic(view: TokenView) -> Surrogate:
    """PPO's and GRPO's minimum, with the cap δ on the unclipped ratio and the floor c·A where they are set.

    For A < 0 both act alike, by their smaller: the value falls no lower than min(c, δ)·A. For A > 0 neither does
    anything as long as δ > 1 + clip_high.
    """
    ratio, advantages, settings = view.ratio, view.advantages, view.objective.settings
    value = clipped_surrogate(ratio, advantages, view.clip_low, view.clip_high)
    detached_ratio = ratio.detach()
    low = (detached_ratio < 1 - view.clip_low) & (advantages < 0)
    high = (detached_ratio > 1 + view.clip_high) & (advantages > 0)
    dual = torch.zeros_like(low)
    if settings.delta is not None:
        capped = ratio.clamp(max=settings.delta)
        value = torch.minimum(capped * advantages, _clip(ratio, view.clip_low, view.clip_high) * advantages)
        high |= (detached_ratio > settings.delta) & (advantages > 0)
        dual |= (detached_ratio > settings.delta) & (advantages < 0)
    if settings.dual_clip is not None:
        value = torch.where(advantages < 0, torch.maximum(value, settings.dual_clip * advantages), value)
        dual |= (detached_ratio > settings.dual_clip) & (advantages < 0)
    return Surrogate(value=value, clipped_low=low, clipped_high=high, clipped_dual=dual)


def unclipped(view: TokenView) -> Surrogate:
    """ρA: importance sampling without a bound."""
    return Surrogate(value=view.ratio * view.advantages)


def detached(view: TokenView) -> Surrogate:
    """CISPO: the bound acts on a constant weight, so that no token loses its gradient.

    clip_low >= 1 means no lower bound, the canonical form. clip_high is an offset here as everywhere: TRL's
    `epsilon_high` for this loss is the bound itself, 1 + clip_high; verl and slime clamp as written here.
    """
    weight = _clip(view.ratio.detach(), view.clip_low, view.clip_high)
    return Surrogate(value=weight * view.advantages * view.logprobs)


def soft(view: TokenView) -> Surrogate:
    """SAPO: a sigmoid gate of slope 1 at ρ = 1 instead of a bound; steeper where the advantage is not positive."""
    settings = view.objective.settings
    tau = torch.full_like(view.ratio, settings.sapo_tau_neg)
    tau = tau.masked_fill(view.advantages > 0, settings.sapo_tau_pos)
    return Surrogate(value=4 / tau * torch.sigmoid(tau * (view.ratio - 1)) * view.advantages)


def geometric(view: TokenView) -> Surrogate:
    """GMPO: A times the geometric mean of a rollout's ratios, each bounded first on the side that A pushes to.

    clip_low and clip_high are offsets of the *log*-ratio (0.4 in the paper: ratios within e^±0.4). Where A is 0 the
    log-ratio enters the mean as it is (verl, which takes A's sign as a factor, would enter 0; equal for an advantage
    that is constant over a rollout).
    """
    logs, advantages = view.log_ratios, view.advantages
    low = (logs < -view.clip_low) & (advantages < 0)
    high = (logs > view.clip_high) & (advantages > 0)
    bounded = torch.where(advantages > 0, torch.minimum(logs, view.clip_high.to(logs.dtype)), logs)
    bounded = torch.where(advantages < 0, torch.maximum(bounded, -view.clip_low.to(logs.dtype)), bounded)
    mean = torch.exp(segment_mean(bounded, view.rollout, view.counted))
    return Surrogate(value=mean * advantages, clipped_low=low, clipped_high=high)


def _divergence_masked(view: TokenView, outside_low: Tensor, outside_high: Tensor) -> Surrogate:
    """A·ρ·lp with ρ a constant of at most 20, and 0 for the tokens outside."""
    low, high = outside_low & (view.advantages < 0), outside_high & (view.advantages > 0)
    weight = view.ratio.detach().clamp(max=DIVERGENCE_CAP)
    value = torch.where(low | high, 0.0, weight * view.advantages * view.logprobs)
    return Surrogate(value=value, clipped_low=low, clipped_high=high)


def total_variation(view: TokenView) -> Surrogate:
    """DPPO with the total variation of {this token, any other}: bounds on the change of probability, not the ratio.

    A token is out when π - π_old > clip_high and A > 0, or π - π_old < -clip_low and A < 0.
    """
    with torch.no_grad():
        change = view.logprobs.exp() - view.old_logprobs.exp()
        low, high = change < -view.clip_low, change > view.clip_high
    return _divergence_masked(view, low, high)


def binary_kl(view: TokenView) -> Surrogate:
    """DPPO with the KL of {this token, any other} from old to new: out when it passes the bound on the side of A.

    The side is tested as in `total_variation`: only a token that moved further in the direction in which A pushes is
    out. clip_high bounds the divergence where A > 0, clip_low where A < 0, in nats.
    """
    with torch.no_grad():
        now, old = view.logprobs, view.old_logprobs
        smallest = torch.finfo(now.dtype).tiny
        rest, old_rest = (-torch.expm1(now)).clamp(min=smallest), (-torch.expm1(old)).clamp(min=smallest)
        divergence = old.exp() * (old - now) + old_rest * (old_rest.log() - rest.log())
        low = (divergence > view.clip_low) & (now < old)
        high = (divergence > view.clip_high) & (now > old)
    return _divergence_masked(view, low, high)


def gamma(view: TokenView) -> Surrogate:
    """VESPO: each rollout weighs φ(W) = e^λ·W^k·e^(-λW), a constant, with W its whole ratio to the *sampler*.

    W = Π_t (π_θ/π_old)_t · (the mismatch weight of the rollout), its log clamped to [log 1e-8, 20]. As in TRL the
    mismatch weight enters W as corrected by `rollout_correction` instead of multiplying the term once more, and
    (k, λ) go by the sign of each token's advantage. φ(1) = 1.
    """
    with torch.no_grad():
        total = segment_sum(torch.where(view.counted, view.log_ratios, 0.0), view.rollout) + view.log_correction
        log_w = total.clamp(math.log(1e-8), LIMIT)
        positive = view.advantages >= 0
        k = torch.where(positive, GAMMA_POSITIVE[0], GAMMA_NEGATIVE[0])
        rate = torch.where(positive, GAMMA_POSITIVE[1], GAMMA_NEGATIVE[1])
        weight = torch.exp(rate + k * log_w - rate * log_w.exp())
    return Surrogate(value=weight * view.advantages * view.logprobs)


def covariance_clipped(view: TokenView) -> Surrogate:
    """Clip-Cov: PPO's minimum, and 0 for the chosen tokens."""
    ratio, advantages, chosen = view.ratio, view.advantages, view.covariant
    value = clipped_surrogate(ratio, advantages, view.clip_low, view.clip_high)
    outside_low, outside_high = ratio.detach() < 1 - view.clip_low, ratio.detach() > 1 + view.clip_high
    return Surrogate(
        value=torch.where(chosen, 0.0, value),
        clipped_low=(outside_low | chosen) & (advantages < 0),
        clipped_high=(outside_high | chosen) & (advantages > 0),
    )


def covariance_penalised(view: TokenView) -> Surrogate:
    """KL-Cov: ρA, less ppo_kl_coef·|log ρ| for the chosen tokens."""
    penalty = view.objective.settings.ppo_kl_coef * view.log_ratios.abs()
    return Surrogate(value=view.ratio * view.advantages - torch.where(view.covariant, penalty, 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class SurrogateRow:
    """Row of the table: a surrogate with its formula, source and properties."""

    function: Callable[[TokenView], Surrogate]
    formula: str
    """Maximised quantity per token; sg[] is a constant of the gradient."""
    source: str
    levels: tuple[str, ...] = ("token", "sequence", "sequence_token")
    """Values of `objective.ratio` that it is defined for."""
    through_ratio: bool = True
    """The gradient flows through the ratio, so it ends where the log-ratio is clamped."""
    per_token: bool = True
    """A token's value depends on its own numbers only (given a token ratio)."""
    corrects: bool = False
    """Takes the mismatch weight into its own, so that it is not multiplied once more."""


SURROGATES: dict[str, SurrogateRow] = {
    "clip": SurrogateRow(
        function=pessimistic,
        formula="min(ρA, clip(ρ, 1 - clip_low, 1 + clip_high)·A); at least dual_clip·A where A < 0; ρ capped at delta",
        source="PPO 1707.06347, eq. 7; DeepSeekMath 2402.03300, eq. 3; clip-higher: DAPO 2503.14476; dual clip: "
        "1912.09729; cap: INTELLECT-2 2505.07291",
    ),
    "unclipped": SurrogateRow(function=unclipped, formula="ρA", source="importance sampling without a bound"),
    "cispo": SurrogateRow(
        function=detached,
        formula="sg[clip(ρ, 1 - clip_low, 1 + clip_high)]·A·lp; clip_low >= 1: no lower bound",
        source="CISPO, MiniMax-M1 2506.13585, eq. 4",
        through_ratio=False,
    ),
    "sapo": SurrogateRow(
        function=soft,
        formula="(4/τ)·sigmoid(τ(ρ - 1))·A, τ = sapo_tau_pos where A > 0, else sapo_tau_neg",
        source="SAPO 2511.20347",
    ),
    "gmpo": SurrogateRow(
        function=geometric,
        formula="exp(mean_t bounded log ρ_t)·A; log ρ_t at most clip_high where A > 0, at least -clip_low where A < 0",
        source="GMPO 2507.20673",
        levels=("token",),
        per_token=False,
    ),
    "dppo_tv": SurrogateRow(
        function=total_variation,
        formula="sg[min(ρ, 20)]·A·lp; 0 where π - π_old > clip_high and A > 0, or < -clip_low and A < 0",
        source="DPPO-TV 2602.04879",
        levels=("token",),
        through_ratio=False,
    ),
    "dppo_kl": SurrogateRow(
        function=binary_kl,
        formula="sg[min(ρ, 20)]·A·lp; 0 where KL({y, not y}: old‖new) > clip_high, π > π_old and A > 0, or > clip_low, "
        "π < π_old and A < 0",
        source="DPPO-KL 2602.04879",
        levels=("token",),
        through_ratio=False,
    ),
    "vespo": SurrogateRow(
        function=gamma,
        formula="sg[φ(W)]·A·lp, φ(W) = e^λ·W^k·e^(-λW), W = Π_t π_θ/π_sampler; (k, λ) = (2, 3) where A >= 0, else "
        "(3, 2)",
        source="VESPO 2602.10693",
        levels=("token",),
        through_ratio=False,
        per_token=False,
        corrects=True,
    ),
    "clip_cov": SurrogateRow(
        function=covariance_clipped,
        formula="min(ρA, clip(ρ, 1 - clip_low, 1 + clip_high)·A); 0 for clip_cov_ratio of the tokens, drawn where "
        "clip_cov_lb < (lp - mean lp)(A - mean A) < clip_cov_ub",
        source="Clip-Cov 2505.22617, eq. 11",
        levels=("token",),
    ),
    "kl_cov": SurrogateRow(
        function=covariance_penalised,
        formula="ρA; less ppo_kl_coef·|log ρ| for the kl_cov_ratio of the tokens with the highest "
        "(lp - mean lp)(A - mean A)",
        source="KL-Cov 2505.22617, eq. 13; the penalty as in verl",
        levels=("token",),
    ),
}
"""name → row, for `objective.loss`."""


def surrogate_row(objective: Objective) -> SurrogateRow:
    """Row of the surrogate that the settings name, or of a user's function `(TokenView) -> [N] to maximise`.

    Nothing is known of a user's function, so no token counts as clipped by it.
    """
    function = objective.function
    if function is None:
        return SURROGATES[objective.settings.loss]
    name = getattr(function, "__qualname__", repr(function))

    def call(view: TokenView) -> Surrogate:
        value = function(view)
        if not isinstance(value, Tensor) or value.shape != view.logprobs.shape:
            got = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"{type(value).__name__}"
            raise ValueError(f"loss {name} returned {got}; expected one number per token, {[len(view.logprobs)]}")
        return Surrogate(value=value)

    return SurrogateRow(
        function=call, formula=f"{name}(tokens)", source="the user's own", through_ratio=False, per_token=False
    )
