"""Which prompts to draw and how many rollouts each deserves, decided before any of them is sampled.

A right-or-wrong prompt teaches in proportion to p(1 - p). Chances to be drawn and rollouts each go with its square
root, so that the effort spent on a prompt goes with p(1 - p) itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coterie.algo.grouping.draw import apportion, capped_shares, systematic
from coterie.algo.grouping.state import Floats, Ints
from coterie.algo.streams import generator

FLOOR = 0.05
"""Added to sqrt(p(1 - p)), as in SPO's sampler: no prompt is ever hopeless or solved for good."""
SOLVED = 0.9
"""Expected success from which a region counts as solved and lives on the review share."""


@dataclass(frozen=True, slots=True, eq=False)
class Allocation:
    """K prompts of N candidates."""

    chosen: Ints
    """[K] candidate numbers, ascending."""
    rollouts: Ints
    """[K] rollouts of each; they add up to the total asked for."""
    inclusion: Floats
    """[K] chance with which each was drawn."""
    weights: Floats
    """[K] factor for each *rollout's* advantage that restores the uniform mean over all N candidates, in a loss that
    averages over rollouts: total / (N · inclusion · rollouts), clipped."""


def teaching_signal(expected: Floats, bounds: tuple[float, float] = (0.0, 1.0)) -> Floats:
    """[N] sqrt(p(1 - p)) + FLOOR of expected rewards, p their place within the bounds."""
    p = np.clip((expected - bounds[0]) / (bounds[1] - bounds[0]), 0.0, 1.0)
    return np.sqrt(p * (1.0 - p)) + FLOOR


def solved_regions(expected: Floats, regions: Ints, level: float = SOLVED) -> NDArray[np.bool_]:
    """[N] bool: the mean expected success of the candidate's region is at least `level`."""
    numbers, index = np.unique(regions, return_inverse=True)
    mean = np.bincount(index, expected, minlength=numbers.size) / np.bincount(index, minlength=numbers.size)
    return mean[index] >= level


def allocate(
    signal: Floats,
    *,
    prompts: int,
    rollouts: int,
    least: int = 1,
    most: int = 8,
    review: float = 0.0,
    solved: NDArray[np.bool_] | None = None,
    clip: float = 10.0,
    counters: tuple[str | int, ...],
) -> Allocation:
    """Draw prompts and give out rollouts.

    Args:
        signal: [N] `teaching_signal` of each candidate, above 0.
        prompts: K, how many to draw; no more than N.
        rollouts: how many in all.
        least, most: bounds of the rollouts of one prompt; at least 1, since a drawn prompt that is not tried would
                bias the importance weights.
        review: share of the K draws kept for solved candidates, so that solved skills do not fade.
        solved: [N] which candidates those are (`solved_regions`); without any, the share goes back to the others.
        clip: largest importance weight; clipping trades a little bias for bounded steps.
        counters: name the draw, for example (seed, step): equal counters, equal draw.

    Raises:
        ValueError: the numbers do not fit together.
    """
    count = signal.size
    if not 1 <= prompts <= count:
        raise ValueError(f"{prompts} prompts were asked of {count} candidates; expected 1 to {count}")
    if not 1 <= least <= most or not least * prompts <= rollouts <= most * prompts:
        raise ValueError(f"{rollouts} rollouts do not fit {prompts} prompts of {least} to {most} each")
    if not 0 <= review < 1:
        raise ValueError(f"review is {review}; expected a share of at least 0 and below 1")
    if not (np.isfinite(signal) & (signal > 0)).all():
        raise ValueError("a signal is 0 or not finite; add a floor, as teaching_signal does, so that none is left out")
    inclusion = _inclusion(signal, prompts, review, solved)
    rng = generator("allocate", *counters)
    chosen = systematic(inclusion, prompts, rng)
    spare = rollouts - least * prompts
    given = least + apportion(signal[chosen], spare, most - least) if spare else np.full(prompts, least, dtype=np.int64)
    weights = np.minimum(rollouts / (count * inclusion[chosen] * given), clip)
    return Allocation(chosen, given, inclusion[chosen], weights)


def _inclusion(signal: Floats, prompts: int, review: float, solved: NDArray[np.bool_] | None) -> Floats:
    """[N] chances that add up to K: signal for most, a uniform share for what is solved."""
    wishes = signal / signal.sum()
    if review > 0 and solved is not None and solved.any() and not solved.all():
        wishes = (1.0 - review) * wishes + review * solved / solved.sum()
    return capped_shares(wishes, float(prompts), 1.0)
