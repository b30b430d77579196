"""One step's rollouts as columns, and the same rollouts gathered by prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coterie.stats import Floats, Ints

State = tuple[dict[str, NDArray], dict[str, Any]]
"""State of a part: arrays for what is large, JSON for the rest. Floats survive JSON exactly, so a resumed run continues
bit by bit."""


def join(**parts: State) -> State:
    """States of named parts as one: arrays become `name/key`, JSON becomes one entry a part.

    >>> join(root=({"mean": np.zeros(2)}, {"n": 1}))
    ({'root/mean': array([0., 0.])}, {'root': {'n': 1}})
    """
    arrays = {f"{name}/{key}": array for name, (part, _) in parts.items() for key, array in part.items()}
    return arrays, {name: json for name, (_, json) in parts.items()}


def pick(state: State, name: str) -> State:
    """The named part of a joined state."""
    arrays, json = state
    if name not in json:
        raise ValueError(f"the state holds {sorted(json)}, not {name!r}; it was saved by another preset or version")
    start = f"{name}/"
    return {key.removeprefix(start): array for key, array in arrays.items() if key.startswith(start)}, json[name]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rollouts:
    """All rollouts of one step, in any order; B of them."""

    prompts: tuple[str, ...]
    """[B] prompt ids. Equal ids make a group, however they lie."""
    rewards: Floats
    """[B] in the units of the reward; NaN where the rollout failed or could not be scored."""
    features: Floats
    """[B, F] standardised features of the prompt (`FeatureMap.apply`), equal within a prompt."""
    time: float
    """Number of the step."""
    weights: Floats | None = None
    """[B] positive score norms Σ_t m(1 - 2π + Σπ²), or a proxy (`probability_weight`, length); None: all alike."""

    def __post_init__(self) -> None:
        count = len(self.prompts)
        shapes = (self.rewards.shape, self.features.shape[:1], (count,) if self.weights is None else self.weights.shape)
        if set(shapes) != {(count,)} or self.features.ndim != 2:
            raise ValueError(
                f"{count} prompts came with rewards {self.rewards.shape}, features {self.features.shape} and weights "
                f"{shapes[2]}; expected one row a rollout"
            )
        if not np.isfinite(self.features).all() or not np.isfinite(self.time):
            raise ValueError("features and time must be finite; replace what could not be measured by 0")
        if np.isinf(self.rewards).any():
            raise ValueError("a reward is infinite; pass NaN for a rollout that could not be scored")
        if self.weights is not None and not (np.isfinite(self.weights) & (self.weights >= 0)).all():
            raise ValueError("weights must be finite and not negative: score norms or token counts")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Groups:
    """The N usable rollouts by prompt, P groups; rewards are mapped to a range of 1, weights to a mean near 1."""

    keep: NDArray[np.bool_]
    """[B] which rollouts are usable."""
    of: Ints
    """[N] group of each usable rollout."""
    rewards: Floats
    """[N]"""
    weights: Floats
    """[N]"""
    prompts: tuple[str, ...]
    """[P] in order of first appearance."""
    rows: Ints
    """[P] row of the prompt in the table, -1 if it was never seen."""
    size: Floats
    """[P] usable rollouts."""
    evidence: Floats
    """[P] sum of their weights. Equal to `size` where weights are equal."""
    mean: Floats
    """[P] weighted mean reward."""
    siblings: Floats
    """[N] weighted mean reward of the *other* rollouts of the group, NaN for a lone rollout."""
    others: Floats
    """[N] sum of the others' weights, 0 for a lone rollout."""
    features: Floats
    """[P, F]"""
    time: float
    history_mean: float
    """Mean reward in history: the fallback baseline without other rollouts."""

    def scatter(self, values: Floats) -> Floats:
        """[N] of the usable rollouts → [B] of all, NaN where one is not usable."""
        out = np.full(self.keep.size, np.nan)
        out[self.keep] = values
        return out

    @property
    def single_rollout(self) -> NDArray[np.bool_]:
        """[N] rollouts without siblings."""
        return self.size[self.of] < 2


def group_rollouts(
    rollouts: Rollouts, rewards: Floats, weights: Floats, rows: dict[str, int], history_mean: float
) -> Groups:
    """Groups of the rollouts whose mapped reward is a number.

    Sibling means are sums over the others, never total minus own: subtracting would let the own reward back in as
    rounding error.

    Args:
        rollouts: one step.
        rewards: [B] mapped rewards, NaN where failed.
        weights: [B] mapped weights, positive.
        rows: row of each prompt seen before.
        history_mean: mean mapped reward in history.
    """
    keep = np.isfinite(rewards)
    numbers: dict[str, int] = {}
    used = np.flatnonzero(keep)
    of = np.array([numbers.setdefault(rollouts.prompts[i], len(numbers)) for i in used], dtype=np.int64)
    first = np.full(len(numbers), -1, dtype=np.int64)
    first[of[::-1]] = used[::-1]
    size = np.bincount(of, minlength=len(numbers)).astype(np.float64)
    r, w = rewards[keep], weights[keep]
    totals = np.bincount(of, w, minlength=len(numbers)).astype(np.float64)
    siblings, others = _others(of, r, w, size)
    return Groups(
        keep=keep,
        of=of,
        rewards=r,
        weights=w,
        prompts=tuple(numbers),
        rows=np.array([rows.get(name, -1) for name in numbers], dtype=np.int64),
        size=size,
        evidence=totals,
        mean=np.bincount(of, w * r, minlength=len(numbers)) / np.maximum(totals, 1e-300),
        siblings=siblings,
        others=others,
        features=rollouts.features[first],
        time=rollouts.time,
        history_mean=history_mean,
    )


def _others(of: Ints, r: Floats, w: Floats, size: Floats) -> tuple[Floats, Floats]:
    """[N] weighted mean of the other members and [N] their weight, by a [P, G] table; N·G additions."""
    if not of.size:
        return np.zeros(0), np.zeros(0)
    order = np.argsort(of, kind="stable")
    widest = int(size.max())
    place = np.empty(of.size, dtype=np.int64)
    place[order] = np.arange(of.size) - np.repeat(
        np.cumsum(size).astype(np.int64) - size.astype(np.int64), size.astype(np.int64)
    )
    table = np.zeros((2, size.size, widest))
    table[0, of, place], table[1, of, place] = w * r, w
    sums = np.stack([np.delete(table, k, axis=2).sum(axis=2) for k in range(widest)], axis=2)
    value, weight = sums[0, of, place], sums[1, of, place]
    return np.where(size[of] > 1, value / np.maximum(weight, 1e-300), np.nan), weight
