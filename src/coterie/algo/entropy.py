"""Entropy in the objective: the top-entropy mask, the entropy bonus and its adaptive coefficient."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


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
