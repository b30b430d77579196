"""Draws without replacement whose chance of including each item is known exactly."""

from __future__ import annotations

import numpy as np

from coterie.algo.grouping.state import Floats, Ints


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


def systematic(inclusion: Floats, count: int, rng: np.random.Generator) -> Ints:
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


def apportion(wishes: Floats, total: int, most: int) -> Ints:
    """[K] whole numbers of at most `most`, proportional to the wishes, that add up to `total`; by largest remainders.

    >>> apportion(np.array([3.0, 2.0, 1.0]), 7, 3).tolist()
    [3, 3, 1]
    """
    shares = capped_shares(wishes, float(total), float(most))
    whole = np.floor(shares + 1e-9).astype(np.int64)
    for item in np.argsort(-(shares - whole), kind="stable")[: max(total - int(whole.sum()), 0)]:
        whole[item] += 1
    return whole
