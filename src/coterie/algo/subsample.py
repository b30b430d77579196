"""Russian roulette (Kahn 1955; Arvo and Kirk 1990): the expected gradient from a part of the rollouts.

A baseline that knows more than the group leaves most rollouts a small advantage instead of none. Each costs a forward
and a backward pass and hardly moves the policy. Kept with probability q_i = min(1, |A_i| / τ), τ = subsample · RMS(A),
and weighed by 1 / q_i, a rollout counts on average for what it counted, whatever q_i is made of:

    E[1{u < q_i} A_i / q_i] = A_i        E[(1{u < q_i} A_i / q_i)²] = A_i² / q_i = max(A_i², |A_i| τ)

so the second moment of the advantages grows by |A_i| (τ - |A_i|) ≤ τ² / 4 for each of them, by subsample² / 4 of itself
at most in total.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from coterie.types import Credit


@dataclass(frozen=True, slots=True, kw_only=True)
class Subsampled:
    """Credits after the game, and what it changed.

    Attributes:
        credits: in the order given; those that lost have the advantage 0, so denominators still count them.
        metrics: `subsample/kept`, share of the rollouts with an advantage that still have one, and `subsample/power`,
            expected second moment of the advantages relative to the one before; nothing where nothing was played.
    """

    credits: tuple[Credit, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)


def chances(sizes: np.ndarray, subsample: float) -> np.ndarray:
    """[N] probabilities to keep rollouts whose advantages are as large as `sizes` [N]; 1 where `subsample` is 0."""
    threshold = subsample * float(np.sqrt(np.mean(np.square(sizes)))) if len(sizes) else 0.0
    return np.minimum(1.0, sizes / threshold) if threshold > 0 else np.ones(len(sizes))


def play(credits: Sequence[Credit], draws: Mapping[str, float], subsample: float) -> Subsampled:
    """Leave out rollouts at random, small advantages first.

    Args:
        draws: uniform number in [0, 1) by rollout id. Rollouts that share one stay or go together as far as their
            advantages allow, which is cheapest where they share a prompt.
        subsample: threshold, in root mean squares of the advantages.
    """
    sizes = np.array([_size(credit) for credit in credits])
    keep = chances(sizes, subsample)
    found = [
        credit.weighed(1 / chance) if draws[credit.rollout_id] < chance else replace(credit, advantage=0.0)
        for credit, chance in zip(credits, keep.tolist(), strict=True)
    ]
    had = sum(not credit.silent for credit in credits)
    if not had:
        return Subsampled(credits=tuple(found))
    sizes = sizes / sizes.max()  # so that no square is lost to underflow
    left = sum(not credit.silent for credit in found)
    heard = sizes > 0
    power = float(np.sum(sizes[heard] ** 2 / keep[heard]) / np.sum(sizes**2))
    return Subsampled(credits=tuple(found), metrics={"subsample/kept": left / had, "subsample/power": power})


def _size(credit: Credit) -> float:
    """Root mean square of its tokens' advantages."""
    return float(np.sqrt(np.mean(np.square(credit.advantage))))
