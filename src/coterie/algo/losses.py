"""The objective as a pure function of token tensors. Record in, record out; no model, no config.

Every tensor is [N]: one entry per trained token of the whole optimizer step or of any part of it that holds whole
rollouts. The loss is a *sum* in which each token carries its share of one global denominator (`weights`), so cutting
the same rollouts into one or eight parts adds up to the same loss and gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from coterie.algo.correction import Correction, correct
from coterie.algo.entropy import entropy_term
from coterie.algo.kl import KL_ESTIMATORS, k1, k2, k3
from coterie.algo.objective import Objective, Surrogate, TokenView
from coterie.algo.surrogates import SurrogateRow, surrogate_row
from coterie.algo.tokens import LIMIT, importance_ratio, log_ratio, segment_any, segment_mean


def off_policy_keep(
    logprobs: Tensor, sampler_logprobs: Tensor, advantages: Tensor, rollout: Tensor, counted: Tensor, delta: float
) -> Tensor:
    """Off-policy sequence mask (DeepSeek-V3.2): False where A < 0 and the rollout's mean log(π_sampler / π_θ) > δ.

    The distance is measured from the sampler, so it holds both the steps since and the sampler's other numerics (as in
    TRL and slime). TRL suggests δ = 0.5, slime 1e-4: choose from the logged values.

    Args:
        logprobs: [N], not differentiated.
        sampler_logprobs: [N].
        advantages: [N].
        rollout: [N] int64 index of each token's rollout.
        counted: [N] bool: tokens that take part in the mean.
        delta: nats per token.

    Returns:
        [N] bool.
    """
    distance = segment_mean(log_ratio(sampler_logprobs, logprobs.detach()), rollout, counted)
    return (advantages >= 0) | (distance <= delta)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """Inputs of the loss for one part of the optimizer step; all [N]."""

    logprobs: Tensor
    """log π_θ, with gradient."""
    old_logprobs: Tensor
    """log π at the start of the update, detached. Equal to `logprobs` on the first step, so the ratio is exactly 1.
    With `RolloutCorrectionConfig.bypass_mode` these are `sampler_logprobs`."""
    sampler_logprobs: Tensor
    """log π as the sampler reported it."""
    reference_logprobs: Tensor | None = None
    """log π_ref; None without a reference."""
    advantages: Tensor
    clip_low: Tensor
    """Offset below 1."""
    clip_high: Tensor
    """Offset above 1."""
    weights: Tensor
    """Share of the global denominator (see `aggregation`). Exactly 0 takes a token out of *everything*, sums over its
    rollout included, whatever its other numbers are."""
    rollout: Tensor
    """int64: index of the token's rollout inside this part, 0 … R-1; a rollout's tokens are side by side."""
    policy_mask: Tensor | None = None
    """bool: tokens whose policy term and entropy count (the top-entropy mask); None = all. The KL is not masked, and a
    ratio of the whole rollout still covers all its tokens (as in TRL). Rollouts that are left out altogether, as
    truncated ones with `mask_truncated`, are not among the inputs, or have weight 0."""
    covariant: Tensor | None = None
    """bool: tokens that clip_cov or kl_cov chose among all of the optimizer step; None = none."""
    entropy: Tensor | None = None
    """nats, with gradient; needed for an entropy bonus only."""
    entropy_weights: Tensor | None = None
    """Share of each token in the mean entropy that the bonus pays for; None takes `weights`. 1 / (all tokens that
    count) makes it a mean over tokens whatever the normalisation, as in TRL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutputs:
    """Loss of this part, and per-token statistics for the metrics, [N] and detached."""

    loss: Tensor
    """Scalar sum, with gradient."""
    terms: Mapping[str, Tensor]
    """Summands of the loss: "policy", "kl", "entropy"; scalars, detached."""
    ratio: Tensor
    """Of `Objective.ratio`; 1 where the token takes no part in it."""
    active: Tensor
    """bool: the policy term counts: not masked, not dropped by the correction or the off-policy mask."""
    clipped_low: Tensor
    """bool: the policy gradient of this token is really zero, because of the bound below. So the next two."""
    clipped_high: Tensor
    """bool: because of the bound above, with a positive advantage."""
    clipped_dual: Tensor
    """bool: because of a bound above with a negative advantage (dual clip, ratio cap, or the clamp at e²⁰)."""
    kl: Mapping[str, Tensor]
    """k1, k2 and k3 against the reference, whichever is in the loss; empty without a reference."""
    correction: Correction
    """Correction weights and kept tokens."""


def policy_loss(inputs: LossInputs, objective: Objective) -> LossOutputs:
    """Negative objective: Σ_t weight_t·(-w_t·surrogate_t + β·KL_t) - c·mean entropy.

    Tokens without a part in a term are replaced *before* anything is computed from them, so that their values, finite
    or not, can change neither the loss nor a gradient.

    Args:
        inputs: see `LossInputs`.
        objective: see `Objective`; the defaults, without a correction, are DeepSeekMath's eq. 3.

    Raises:
        ValueError: choices that do not fit each other, or a term without its inputs.
    """
    _check(inputs, objective)
    row = surrogate_row(objective)
    valid = inputs.weights != 0
    chosen = valid if inputs.policy_mask is None else valid & inputs.policy_mask
    inputs = _zero_invalid(inputs, valid)
    correction, active = _corrected(inputs, objective, valid, chosen)
    # What is summed over a rollout needs all its tokens; else a masked one is left out from the start.
    alone = row.per_token and objective.settings.ratio == "token"
    view = _token_view(inputs, objective, correction, chosen if alone else valid)
    surrogate = row.function(view)
    value = surrogate.value if row.corrects else surrogate.value * correction.weight
    if objective.settings.positive_weight != 1:
        value = torch.where(view.advantages > 0, objective.settings.positive_weight * value, value)
    per_token = torch.where(active, -value, 0.0)
    terms = {"policy": (per_token.detach() * inputs.weights).sum()}
    kl = {}
    if inputs.reference_logprobs is not None:
        kl = _divergences(inputs.logprobs.detach(), inputs.reference_logprobs)
        if objective.kl_beta > 0:
            penalty = objective.kl_beta * _kl_penalty(inputs, inputs.reference_logprobs, objective)
            per_token = per_token + penalty
            terms["kl"] = (penalty.detach() * inputs.weights).sum()
    loss = (per_token * inputs.weights).sum()
    if objective.entropy_bonus and inputs.entropy is not None:
        shares = inputs.weights if inputs.entropy_weights is None else inputs.entropy_weights
        bonus = -objective.entropy_bonus * entropy_term(inputs.entropy, shares, chosen)
        loss = loss + bonus
        terms["entropy"] = bonus.detach()
    low, high, dual = _clipped(surrogate, view, active, row)
    return LossOutputs(
        loss=loss,
        terms=terms,
        ratio=view.ratio.detach(),
        active=active,
        clipped_low=low,
        clipped_high=high,
        clipped_dual=dual,
        kl=kl,
        correction=correction,
    )


def check_choices(objective: Objective) -> None:
    """Refuse choices that do not fit each other."""
    settings, correction = objective.settings, objective.correction.kind
    levels = surrogate_row(objective).levels
    if settings.ratio not in levels:
        raise ValueError(
            f"objective.ratio = {settings.ratio!r} does not fit objective.loss = {settings.loss!r}; expected one of "
            f"{list(levels)}"
        )
    if settings.loss == "vespo" and not correction.startswith(("none", "token")):
        raise ValueError(
            f"rollout_correction.kind = {correction!r} does not fit objective.loss = 'vespo', which weighs rollouts "
            "itself; expected none or a token mode"
        )


def _check(inputs: LossInputs, objective: Objective) -> None:
    check_choices(objective)
    if objective.kl_beta > 0 and inputs.reference_logprobs is None:
        raise ValueError(f"kl_beta = {objective.kl_beta} needs reference log-probs; got none")
    if objective.entropy_bonus and inputs.entropy is None:
        raise ValueError(f"entropy_bonus = {objective.entropy_bonus} needs entropies with gradient; got none")


def _zero_invalid(inputs: LossInputs, valid: Tensor) -> LossInputs:
    """Inputs with every number of an invalid token set to 0."""
    reference = inputs.reference_logprobs
    return replace(
        inputs,
        logprobs=torch.where(valid, inputs.logprobs, 0.0),
        old_logprobs=torch.where(valid, inputs.old_logprobs, 0.0),
        sampler_logprobs=torch.where(valid, inputs.sampler_logprobs, 0.0),
        reference_logprobs=None if reference is None else torch.where(valid, reference, 0.0),
        advantages=torch.where(valid, inputs.advantages, 0.0),
    )


def _corrected(inputs: LossInputs, objective: Objective, valid: Tensor, chosen: Tensor) -> tuple[Correction, Tensor]:
    """Correction weights, and the chosen tokens that remain in the policy term."""
    correction = correct(
        inputs.old_logprobs,
        inputs.sampler_logprobs,
        inputs.rollout,
        valid,
        objective.correction,
    )
    active = chosen & correction.kept
    if objective.settings.off_policy_mask is not None:
        active = active & off_policy_keep(
            inputs.logprobs,
            inputs.sampler_logprobs,
            inputs.advantages,
            inputs.rollout,
            valid,
            objective.settings.off_policy_mask,
        )
    return correction, active


def _token_view(inputs: LossInputs, objective: Objective, correction: Correction, counted: Tensor) -> TokenView:
    logprobs = torch.where(counted, inputs.logprobs, 0.0)
    old = torch.where(counted, inputs.old_logprobs, 0.0)
    logs = log_ratio(logprobs, old)
    return TokenView(
        logprobs=logprobs,
        old_logprobs=old,
        log_ratios=logs,
        ratio=importance_ratio(objective.settings.ratio, logs, logprobs, inputs.rollout, counted),
        advantages=torch.where(counted, inputs.advantages, 0.0),
        clip_low=inputs.clip_low,
        clip_high=inputs.clip_high,
        rollout=inputs.rollout,
        counted=counted,
        log_correction=correction.log_total,
        covariant=torch.zeros_like(counted) if inputs.covariant is None else inputs.covariant & counted,
        objective=objective,
    )


def _divergences(logprobs: Tensor, reference: Tensor) -> dict[str, Tensor]:
    return {"k1": k1(logprobs, reference), "k2": k2(logprobs, reference), "k3": k3(logprobs, reference)}


def _kl_penalty(inputs: LossInputs, reference: Tensor, objective: Objective) -> Tensor:
    ratio = torch.exp(log_ratio(inputs.logprobs, inputs.old_logprobs))
    return KL_ESTIMATORS[objective.settings.kl_estimator].function(inputs.logprobs, reference, ratio)


def _clipped(surrogate: Surrogate, view: TokenView, active: Tensor, row: SurrogateRow) -> tuple[Tensor, Tensor, Tensor]:
    """The surrogate's flags, and the clamp of the log-ratio where the gradient has to pass it."""
    none = torch.zeros_like(active)
    low, high, dual = (
        none if flag is None else flag & active
        for flag in (surrogate.clipped_low, surrogate.clipped_high, surrogate.clipped_dual)
    )
    if view.objective.settings.ratio == "sequence":
        # One ratio for all: a token stands still only where no token of its rollout moves it.
        moves = active & (view.advantages != 0) & ~(low | high | dual)
        still = ~segment_any(moves, view.rollout)
        low, high, dual = low & still, high & still, dual & still
    if row.through_ratio and view.objective.settings.ratio != "sequence_token":
        raw = (view.logprobs - view.old_logprobs).detach()
        low = low | (active & (raw < -LIMIT) & (view.advantages != 0))
        beyond = active & (raw > LIMIT)
        high = high | (beyond & (view.advantages > 0))
        dual = dual | (beyond & (view.advantages < 0))
    return low, high, dual
