"""Allocation: which prompts to draw and how many rollouts each gets, decided before any of them is sampled.

The signal of a right-or-wrong prompt goes with p(1 - p), p its expected success. A prompt is drawn in proportion to
√(p(1 - p) / cost), which is the inclusion probability of least variance for a given cost (Cochran 1977, section 5.5),
and gets the number of rollouts of the two-stage optimum (section 10.6 there). Prompts that are expected to be solved
always or never are skipped, but for a share of the draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
"""Added to √(p(1 - p)), as in SPO's sampler, so that every prompt keeps being drawn."""
LEAST_BETWEEN = 1e-3
"""Least variance of expected rewards between prompts: a standard deviation of .03."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prospects:
    """What is expected of N candidates before any of them is sampled."""

    success: Floats
    """[N] expected reward as its place between the smallest and the largest."""
    variance: Floats
    """[N] of that expectation."""
    prompt_cost: Floats
    """[N] cost of the prompt itself, whatever the number of its rollouts, in tokens."""
    rollout_cost: Floats
    """[N] cost of one rollout, in tokens of a prompt."""

    @property
    def signal(self) -> Floats:
        """[N] √(p(1 - p)), the standard deviation of one reward, in reward ranges."""
        return np.sqrt(self.success * (1.0 - self.success))

    def dead(self, level: float) -> NDArray[np.bool_]:
        """[N] bool: expected to be solved in less than `level` of the attempts, or to fail in less than `level`."""
        return (self.success < level) | (self.success > 1.0 - level)

    def sizes(self, among: NDArray[np.bool_]) -> Floats:
        """[N] number of rollouts per prompt that leaves the least variance at a given cost.

        √(prompt cost / rollout cost · within / between), with `within` p(1 - p), the variance of one reward, and
        `between` that of the expected rewards over the prompts in `among`, their uncertainty included.
        """
        live = among if among.any() else ~among
        between = float(np.var(self.success[live]) + np.mean(self.variance[live]))
        return self.signal * np.sqrt(self.prompt_cost / self.rollout_cost / max(between, LEAST_BETWEEN))


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
    skipped: int
    """Candidates that were left to the review share."""


def allocate(
    prospects: Prospects,
    *,
    rollouts: int,
    least: int = 1,
    most: int = 8,
    skip: float = 0.0,
    review: float = 0.0,
    clip: float = 10.0,
    counters: tuple[str | int, ...],
) -> Allocation:
    """Draw prompts and distribute rollouts over them.

    Args:
        prospects: of the N candidates.
        rollouts: how many in all.
        least, most: bounds of the rollouts of one prompt; at least 1, since a drawn prompt without rollouts would bias
            the importance weights.
        skip: candidates whose expected success is below this, or above 1 less this, are drawn by `review` alone.
        review: share of the draws for those that are skipped, so that none is lost for good and what is solved does
            not fade; without any, the share goes back to the others.
        clip: largest importance weight; clipping trades a little bias for bounded steps.
        counters: name the draw, for example (seed, step): equal counters, equal draw.

    Raises:
        ValueError: the rollouts do not fit the candidates, or a cost or an expectation is no number.
    """
    count = prospects.success.size
    if not 1 <= least <= most or not least <= rollouts <= most * count:
        raise ValueError(
            f"{rollouts} rollouts do not fit {count} candidates of {least} to {most} each; offer more candidates, or "
            "change the bounds"
        )
    if not 0 <= review < 1 or not 0 <= skip < 0.5 or (skip and not review):
        raise ValueError(
            f"review is {review} and skip {skip}; expected shares below 1 and below a half, and a review above 0 where "
            "prompts are skipped, or they are lost for good"
        )
    costs = np.concatenate([prospects.prompt_cost, prospects.rollout_cost])
    if not (np.isfinite(prospects.success).all() and (costs > 0).all()):
        raise ValueError("an expected success is not finite or a cost is not above 0; expected numbers of every prompt")
    dead = prospects.dead(skip)
    sizes = np.clip(prospects.sizes(~dead), least, most)
    wishes = (prospects.signal + FLOOR) / np.sqrt(prospects.prompt_cost + sizes * prospects.rollout_cost)
    chances = _with_review(wishes, dead, review)
    prompts = round(rollouts / float(sizes @ chances))
    prompts = min(max(prompts, -(-rollouts // most)), rollouts // least, count)
    inclusion = capped_shares(chances, float(prompts), 1.0)
    chosen = systematic_sample(inclusion, prompts, generator("allocate", *counters))
    counts = np.full(prompts, least, dtype=np.int64)
    if spare := rollouts - least * prompts:
        counts = counts + apportion(np.maximum(sizes[chosen] - least, FLOOR), spare, most - least)
    weights = np.minimum(rollouts / (count * inclusion[chosen] * counts), clip)
    return Allocation(chosen, counts, inclusion[chosen], weights, skipped=int(dead.sum()))


def _with_review(wishes: Floats, dead: NDArray[np.bool_], review: float) -> Floats:
    """[N] chances that add up to 1: by the wishes, and a share of `review` evenly for those that are skipped."""
    if dead.all() or not dead.any():
        return wishes / wishes.sum()
    live = np.where(dead, 0.0, wishes)
    return (1.0 - review) * live / live.sum() + review * dead / dead.sum()
