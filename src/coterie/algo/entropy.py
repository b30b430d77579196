"""Entropy in the objective: the top-entropy mask, the entropy bonus and its adaptive coefficient, and the tokens that
Clip-Cov and KL-Cov choose.

The last are of Cui et al., "The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models" (arXiv
2505.22617): to first order the entropy falls by the covariance of log π and A, most of which few tokens carry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from coterie.config.objective import ObjectiveConfig

COVARIANCE_LOSSES = ("clip_cov", "kl_cov")
"""Values of `objective.loss` that choose tokens by their covariance."""


def top_entropy_threshold(entropies: Tensor, share: float) -> float:
    """Entropy threshold of the top share of tokens (Wang et al. 2506.01939; TRL).

    Tokens at or above the threshold are kept, so tokens tied with it are all kept and the share may be exceeded. It
    falls between two tokens by linear interpolation, as `torch.quantile` does, whose limit of 2²⁴ values does not
    apply here.

    Args:
        entropies: [N] of *all* trained tokens of the optimizer step, in every part of it; detached.
        share: ρ in (0, 1], e.g. 0.2.

    Returns:
        nats; +inf when there is no token.

    >>> top_entropy_threshold(torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]), 0.5)
    2.0
    """
    if not 0 < share <= 1:
        raise ValueError(f"share = {share} must lie in (0, 1]")
    values = entropies.detach().flatten()
    if not values.numel():
        return math.inf
    position = (1 - share) * (values.numel() - 1)
    below = math.floor(position)
    first = values.kthvalue(below + 1).values
    if below + 1 == values.numel():
        return float(first)
    second = values.kthvalue(below + 2).values
    return float(torch.lerp(first, second, position - below))


def top_entropy_mask(entropies: Tensor, threshold: float) -> Tensor:
    """[N] bool: tokens at or above the threshold, whose policy term counts."""
    return entropies.detach() >= threshold


def entropy_term(entropies: Tensor, shares: Tensor, counted: Tensor) -> Tensor:
    """Weighted mean entropy as a scalar sum with gradient; parts of a step add up.

    Args:
        entropies: [N] with gradient.
        shares: [N] each token's share of the mean.
        counted: [N] bool.
    """
    return (torch.where(counted, entropies, 0.0) * shares).sum()


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyState:
    """State of the adaptive controller between optimizer steps."""

    coefficient: float = 0.0
    entropy: float = math.inf
    """Mean entropy of the last step; +inf before the first, so that the first step gets no bonus."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveEntropy:
    """Skywork-OR1's controller (2505.22312): a bonus only while the entropy is at or below its target.

    The coefficient moves by `delta` after each optimizer step whether or not the bonus applied, as in TRL.
    """

    target: float
    """nats per token."""
    delta: float = 0.005
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not (self.target >= 0 and self.delta > 0 and 0 <= self.low <= self.high):
            raise ValueError(f"{self} must have target >= 0, delta > 0 and 0 <= low <= high")

    def bonus(self, state: EntropyState) -> float:
        """`Objective.entropy_bonus` of the next optimizer step."""
        return state.coefficient if state.entropy <= self.target else 0.0

    def update(self, state: EntropyState, entropy: float) -> EntropyState:
        """State after an optimizer step with this mean entropy over all its tokens.

        >>> AdaptiveEntropy(target=0.2).update(EntropyState(), 0.1)
        EntropyState(coefficient=0.005, entropy=0.1)
        """
        moved = state.coefficient + (self.delta if entropy <= self.target else -self.delta)
        return EntropyState(coefficient=min(max(moved, self.low), self.high), entropy=entropy)


def token_covariances(logprobs: np.ndarray, advantages: np.ndarray) -> np.ndarray:
    """[N] (log π - mean log π)·(A - mean A) of each token, eq. 9 there; their mean is the covariance.

    Args:
        logprobs: [N] of *all* trained tokens of the optimizer step, in every part of it.
        advantages: [N].

    >>> token_covariances(np.array([-1.0, -3.0]), np.array([1.0, -1.0])).tolist()
    [1.0, 1.0]
    """
    if not len(logprobs):
        return np.zeros(0)
    return (logprobs - logprobs.mean()) * (advantages - advantages.mean())


def covariant_tokens(covariances: np.ndarray, settings: ObjectiveConfig, rng: np.random.Generator) -> np.ndarray:
    """[N] bool: the tokens that `settings.loss` treats in its own way.

    clip_cov draws `clip_cov_ratio` of all tokens, at least one, among those whose covariance is between `clip_cov_lb`
    and `clip_cov_ub`; kl_cov takes the `kl_cov_ratio` of all tokens, at least one, whose covariance is highest (as in
    verl).

    Args:
        covariances: [N] of all trained tokens of the optimizer step.
        rng: draws the tokens of clip_cov.
    """
    chosen = np.zeros(len(covariances), dtype=bool)
    if settings.loss == "clip_cov":
        inside = np.flatnonzero((covariances > settings.clip_cov_lb) & (covariances < settings.clip_cov_ub))
        count = max(1, int(settings.clip_cov_ratio * len(covariances)))
        chosen[rng.permutation(inside)[:count]] = True
    elif settings.loss == "kl_cov":
        count = max(1, int(settings.kl_cov_ratio * len(covariances)))
        chosen[np.argsort(-covariances, kind="stable")[:count]] = True
    return chosen
