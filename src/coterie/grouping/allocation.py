"""Allocation: which prompts to draw and how many rollouts each gets, decided before any of them is sampled.

The signal of a right-or-wrong prompt is proportional to p(1 - p). Its inclusion probability and its number of rollouts
go with the square root, so that the effort spent on a prompt goes with p(1 - p) itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coterie.config.advantage import GroupingConfig
from coterie.grouping.model import GroupAwareBaseline
from coterie.rng import generator
from coterie.stats import Floats, Ints


def capped_shares(wishes: Floats, total: float, cap: float) -> Floats:
    """[N] shares proportional to the wishes, none above `cap`, that add up to `total`.

    >>> capped_shares(np.array([8.0, 1.0, 1.0]), 2.0, 1.0).tolist()
    [1.0, 0.5, 0.5]
    """
    if wishes.size == 0 or not (np.isfinite(wishes).all() and (wishes > 0).all()):
        raise ValueError("wishes must be finite and above 0; add a floor, so that nothing is left out for ever")
    if not 0 <= total <= cap * wishes.size * (1 + 1e-12):
        raise ValueError(f"a total of {total} does not fit into {wishes.size} shares of at most {cap}")
    # Scaled first: the ratio of two subnormal numbers is no number.
    wishes = np.maximum(wishes / wishes.max(), 1e-12)
    full = np.zeros(wishes.size, dtype=bool)
    shares = wishes * (total / wishes.sum())
    while (over := ~full & (shares > cap)).any():
        full |= over
        rest = wishes[~full].sum()
        shares = np.where(full, cap, wishes * ((total - cap * full.sum()) / rest if rest > 0 else 0.0))
    return np.clip(shares, 0.0, cap)


def systematic_sample(inclusion: Floats, count: int, rng: np.random.Generator) -> Ints:
    """[count] item numbers, ascending; item i is included with chance inclusion[i], which add up to `count`.

    Systematic sampling in random order (Madow 1949): one uniform number walks the cumulative chances in steps of 1.
    """
    order = rng.permutation(inclusion.size)
    edges = np.cumsum(inclusion[order])
    # The sum is `count` up to rounding; scaled, so that exactly `count` marks fall inside.
    edges *= count / edges[-1]
    marks = rng.random() + np.arange(count)
    places = np.minimum(np.searchsorted(edges, marks, side="right"), inclusion.size - 1)
    chosen = np.unique(order[places])
    if chosen.size < count:
        # An item whose chance is 1 can catch two marks through rounding; the likeliest one left out steps in.
        left = np.setdiff1d(np.arange(inclusion.size), chosen)
        chosen = np.append(chosen, left[np.argsort(-inclusion[left], kind="stable")[: count - chosen.size]])
    return np.sort(chosen)


def apportion(wishes: Floats, total: int, cap: int) -> Ints:
    """[K] whole numbers of at most `cap`, proportional to the wishes, that add up to `total`; by largest remainders.

    >>> apportion(np.array([3.0, 2.0, 1.0]), 7, 3).tolist()
    [3, 3, 1]
    """
    shares = capped_shares(wishes, float(total), float(cap))
    whole = np.floor(shares + 1e-9).astype(np.int64)
    for item in np.argsort(-(shares - whole), kind="stable")[: max(total - int(whole.sum()), 0)]:
        whole[item] += 1
    return whole


FLOOR = 0.05
"""Added to sqrt(p(1 - p)), as in SPO's sampler, so that every prompt keeps being drawn."""
SOLVED = 0.9
"""Expected success from which a region counts as solved and is drawn by the review share."""


@dataclass(frozen=True, slots=True, eq=False)
class Allocation:
    """Drawn prompts, K of N candidates, with their rollouts and importance weights."""

    chosen: Ints
    """[K] candidate numbers, ascending."""
    rollouts: Ints
    """[K] rollouts of each; they add up to the requested total."""
    inclusion: Floats
    """[K] inclusion probability of each."""
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
    min_rollouts: int = 1,
    max_rollouts: int = 8,
    review: float = 0.0,
    solved: NDArray[np.bool_] | None = None,
    clip: float = 10.0,
    counters: tuple[str | int, ...],
) -> Allocation:
    """Draw prompts and distribute rollouts over them.

    Args:
        signal: [N] `teaching_signal` of each candidate, above 0.
        prompts: K, how many to draw; no more than N.
        rollouts: how many in all.
        min_rollouts, max_rollouts: bounds of the rollouts of one prompt; at least 1, since a drawn prompt without
            rollouts would bias the importance weights.
        review: share of the K draws kept for solved candidates, so that solved skills do not fade.
        solved: [N] which candidates those are (`solved_regions`); without any, the share goes back to the others.
        clip: largest importance weight; clipping trades a little bias for bounded steps.
        counters: name the draw, for example (seed, step): equal counters, equal draw.
    """
    count = signal.size
    if not 1 <= prompts <= count:
        raise ValueError(f"{prompts} prompts were asked of {count} candidates; expected 1 to {count}")
    if not 1 <= min_rollouts <= max_rollouts or not min_rollouts * prompts <= rollouts <= max_rollouts * prompts:
        raise ValueError(f"{rollouts} rollouts do not fit {prompts} prompts of {min_rollouts} to {max_rollouts} each")
    if not 0 <= review < 1:
        raise ValueError(f"review is {review}; expected a share of at least 0 and below 1")
    if not (np.isfinite(signal) & (signal > 0)).all():
        raise ValueError("a signal is 0 or not finite; add a floor, as teaching_signal does, so that none is left out")
    inclusion = _inclusion(signal, prompts, review, solved)
    rng = generator("allocate", *counters)
    chosen = systematic_sample(inclusion, prompts, rng)
    counts = np.full(prompts, min_rollouts, dtype=np.int64)
    spare = rollouts - min_rollouts * prompts
    if spare:
        counts = counts + apportion(signal[chosen], spare, max_rollouts - min_rollouts)
    weights = np.minimum(rollouts / (count * inclusion[chosen] * counts), clip)
    return Allocation(chosen, counts, inclusion[chosen], weights)


def _inclusion(signal: Floats, prompts: int, review: float, solved: NDArray[np.bool_] | None) -> Floats:
    """[N] inclusion probabilities that add up to K: by signal, with a uniform share for solved candidates."""
    wishes = signal / signal.sum()
    if review > 0 and solved is not None and solved.any() and not solved.all():
        wishes = (1.0 - review) * wishes + review * solved / solved.sum()
    return capped_shares(wishes, float(prompts), 1.0)


def allocation(
    model: GroupAwareBaseline,
    names: tuple[str, ...],
    features: np.ndarray,
    *,
    config: GroupingConfig,
    time: float,
    prompts: int,
    rollouts: int,
    counters: tuple[str | int, ...],
) -> Allocation:
    """Allocation by the rewards that the model expects, before any candidate is sampled; the weights are 1 unless
    `config.uniform` asks for them.

    Args:
        names: [N] prompt ids of the candidates.
        features: [N, F]
        time: of this step.
        prompts, rollouts: how many to draw, and to give out in all.
        counters: name the draw.
    """
    expected, _ = model.expect(names, features, time)
    bounds = model.range or (0.0, 1.0)
    drawn = allocate(
        teaching_signal(expected, bounds),
        prompts=prompts,
        rollouts=rollouts,
        min_rollouts=config.least,
        max_rollouts=config.most,
        review=config.review,
        solved=solved_regions(expected, _regions(model, features), bounds[0] + SOLVED * (bounds[1] - bounds[0])),
        counters=counters,
    )
    return drawn if config.unbiased else replace(drawn, weights=np.ones(prompts))


def _regions(model: GroupAwareBaseline, features: np.ndarray) -> np.ndarray:
    """[N] the leaf of the tree that each prompt lies in; all the same where the preset has no tree."""
    hierarchy = model.regions
    return np.zeros(len(features), dtype=np.int64) if hierarchy is None else hierarchy.tree.locate(features)
