"""Importance-weighted subsampling of rollouts: Russian roulette (Kahn 1955; Arvo and Kirk 1990).

A baseline that knows more than the group leaves most rollouts a small advantage instead of none. Each costs a forward
and a backward pass and hardly moves the policy. Kept with probability q_i = min(1, |A_i| / τ), τ = subsample · RMS(A),
and scaled by 1 / q_i, a rollout counts on average for what it counted, whatever q_i is made of:

    E[1{u < q_i} A_i / q_i] = A_i        E[(1{u < q_i} A_i / q_i)²] = A_i² / q_i = max(A_i², |A_i| τ)

so the second moment of the advantages grows by |A_i| (τ - |A_i|) ≤ τ² / 4 for each of them, by subsample² / 4 of itself
at most in total.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from coterie.rng import generator
from coterie.types import Credit, Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class Subsampled:
    """Credits that remain after subsampling.

    Attributes:
        credits: in the order given; those left out have the advantage 0, so denominators still count them.
        metrics: `subsample/kept`, share of the rollouts with an advantage that still have one, and `subsample/power`,
            expected second moment of the advantages relative to the one before; empty without advantages.
    """

    credits: tuple[Credit, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)


def keep_probabilities(sizes: np.ndarray, subsample: float) -> np.ndarray:
    """[N] probabilities of keeping rollouts by the size of their advantages [N]; 1 where `subsample` is 0."""
    threshold = subsample * float(np.sqrt(np.mean(np.square(sizes)))) if len(sizes) else 0.0
    return np.minimum(1.0, sizes / threshold) if threshold > 0 else np.ones(len(sizes))


def subsample(credits: Sequence[Credit], uniforms: Mapping[str, float], threshold: float) -> Subsampled:
    """Drop rollouts at random, those with small advantages most often, and scale up the rest.

    Args:
        uniforms: number in [0, 1) by rollout id. Rollouts that share one stay or go together as far as their
            advantages allow, which is cheapest where they share a prompt.
        threshold: in root mean squares of the advantages; 0 keeps every rollout.
    """
    sizes = np.array([_rms(credit) for credit in credits])
    keep = keep_probabilities(sizes, threshold)
    kept = [
        credit.scaled(1 / chance) if uniforms[credit.rollout_id] < chance else replace(credit, advantage=0.0)
        for credit, chance in zip(credits, keep.tolist(), strict=True)
    ]
    nonzero_before = sum(not credit.zero_advantage for credit in credits)
    if not nonzero_before:
        return Subsampled(credits=tuple(kept))
    sizes = sizes / sizes.max()  # so that no square is lost to underflow
    nonzero_after = sum(not credit.zero_advantage for credit in kept)
    nonzero = sizes > 0
    power = float(np.sum(sizes[nonzero] ** 2 / keep[nonzero]) / np.sum(sizes**2))
    return Subsampled(
        credits=tuple(kept), metrics={"subsample/kept": nonzero_after / nonzero_before, "subsample/power": power}
    )


def subsample_prompts(
    credits: Sequence[Credit], rollouts: Mapping[str, Rollout], threshold: float, *, seed: int, step: int
) -> Subsampled:
    """`subsample` with one uniform number per prompt and policy version, a function of the seed and the step; with a
    threshold of 0 all credits stay as they are."""
    if not threshold:
        return Subsampled(credits=tuple(credits))
    contexts = {credit.rollout_id: rollouts[credit.rollout_id].context for credit in credits}
    uniforms = {
        name: float(generator("roulette", seed, step, context.prompt_id, context.version).random())
        for name, context in contexts.items()
    }
    return subsample(credits, uniforms, threshold)


def _rms(credit: Credit) -> float:
    """Root mean square of the tokens' advantages."""
    return float(np.sqrt(np.mean(np.square(credit.advantage))))
