"""Honest fitting of the tree of regions on recent rewards, with boundaries that stay unless they must move.

Structure is chosen on one half of the prompts; whether a split is kept, and how much its level may explain, is judged
on the other half (Athey and Imbens 2016, honest trees). Splits use histograms of at most 32 bins a feature, so a refit
costs O(visits · features) a level.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from coterie.grouping.tree import Tree
from coterie.stats import Floats, Ints

BINS = 32
KEEP_BOUNDARY = 0.9
"""An old boundary stays while it explains at least this share of what the best new one would: regions that jump about
lose their statistics."""
_NOISE_GAINS = 4.0
"""A split must explain this many times what one split on pure noise would."""
TAU_LOW, TAU_HIGH = 3e-4, 0.1
MAX_DEPTH = 10


@dataclass(frozen=True, slots=True, eq=False)
class Observations:
    """Observations of the window: one row a prompt and step."""

    features: Floats
    """[V, F]"""
    mean: Floats
    """[V] mean reward of the group."""
    weight: Floats
    """[V] evidence, aged: Σ W exp(-age / memory)."""
    prompt: Ints
    """[V] row of the prompt."""


def fit_tree(
    visits: Observations,
    columns: Ints,
    rng: np.random.Generator,
    *,
    max_leaves: int = 48,
    min_weight: float = 40.0,
    boundaries: Literal["reward", "spread"] = "reward",
    previous: Tree | None = None,
) -> tuple[Tree, Floats]:
    """Fit a tree of regions, and the variance that each level explains.

    Args:
        visits: the window.
        columns: which features may be split on.
        rng: draws the honest halves, by prompt.
        min_weight: aged rollouts a leaf must hold, over both halves.
        boundaries: "reward" cuts where rewards differ; "spread" cuts the widest feature at its median and never
            looks at a reward, which is the ablation of the reward-distribution signal.
        previous: the tree so far, whose boundaries are preferred (KEEP_BOUNDARY).

    Returns:
        The tree, and [depth + 1] level variances tau; entry 0 (the root) is unused.
    """
    if not columns.size or not visits.mean.size:
        return Tree.stump(), np.zeros(1)
    half = rng.random(int(visits.prompt.max()) + 1)[visits.prompt] < 0.5
    tree = _grow(visits, half, columns, max_leaves, 0.5 * min_weight, boundaries, previous)
    tree = _merge_useless(tree, visits, ~half, keep_all=boundaries == "spread")
    return tree, _level_variances(tree, visits, ~half)


def _grow(
    visits: Observations,
    half: NDArray[np.bool_],
    columns: Ints,
    max_leaves: int,
    min_weight: float,
    boundaries: str,
    previous: Tree | None,
) -> Tree:
    """Best-first growth by explained variance."""
    finder = _Splits(visits.features[half][:, columns], visits.mean[half], visits.weight[half], min_weight, boundaries)
    tree, rows = Tree.stump(), {0: np.arange(int(half.sum()))}
    # Where a node of the new tree stands in the old one, as long as the splits above agree.
    old: dict[int, int] = {0: 0} if previous is not None else {}
    position = {int(column): i for i, column in enumerate(columns)}
    heap: list[tuple[float, int, int, float]] = []

    def offer(node: int) -> None:
        if tree.depth[node] >= MAX_DEPTH:
            return
        gain, column, threshold = finder.best(rows[node])
        then = old.get(node, -1)
        if previous is not None and then >= 0 and int(previous.feature[then]) in position and gain > 0:
            kept, at = position[int(previous.feature[then])], float(previous.threshold[then])
            if finder.gain(rows[node], kept, at) >= KEEP_BOUNDARY * gain:
                column, threshold = kept, at
        if gain > 0:
            heapq.heappush(heap, (-gain, node, column, threshold))

    offer(0)
    while heap and tree.leaves.size < max_leaves:
        _, node, column, threshold = heapq.heappop(heap)
        feature = int(columns[column])
        tree = tree.split(node, feature, threshold)
        goes_left = finder.features[rows[node], column] <= threshold
        left, right = tree.feature.size - 2, tree.feature.size - 1
        then = old.get(node, -1)
        if previous is not None and then >= 0 and previous.feature[then] == feature:
            old[left], old[right] = int(previous.left[then]), int(previous.right[then])
        node_rows = rows.pop(node)
        rows[left], rows[right] = node_rows[goes_left], node_rows[~goes_left]
        offer(left)
        offer(right)
    return tree


class _Splits:
    """Gains of splits by histogram over the structure half."""

    def __init__(self, features: Floats, mean: Floats, weight: Floats, min_weight: float, boundaries: str) -> None:
        self.features, self.mean, self.weight, self.min_weight = features, mean, weight, min_weight
        self.by_reward = boundaries == "reward"
        self.edges = np.full((features.shape[1], BINS - 1), np.inf)
        codes = np.zeros(features.shape, dtype=np.int64)
        for f in range(features.shape[1]):
            values = np.unique(np.quantile(features[:, f], np.arange(1, BINS) / BINS)) if len(features) else np.zeros(0)
            # Between the values, so that a category's threshold lies between categories.
            distinct = np.unique(features[:, f])
            if distinct.size < BINS:
                values = 0.5 * (distinct[1:] + distinct[:-1])
            self.edges[f, : values.size] = values
            codes[:, f] = np.searchsorted(values, features[:, f], side="left")
        self.codes = codes + BINS * np.arange(features.shape[1])

    def best(self, rows: Ints) -> tuple[float, int, float]:
        """(gain over what noise would gain, column, threshold) of the best split of these rows; gain 0 for none."""
        weight, mean = self.weight[rows], self.mean[rows]
        total = weight.sum()
        if total < 2 * self.min_weight:
            return 0.0, 0, 0.0
        shape = self.edges.shape[0], BINS
        codes = self.codes[rows]
        flat = codes.ravel()
        size = np.prod(shape)
        w = np.bincount(flat, np.repeat(weight, shape[0]), minlength=size).reshape(shape).cumsum(axis=1)[:, :-1]
        allowed = (w >= self.min_weight) & (total - w >= self.min_weight) & np.isfinite(self.edges)
        if not self.by_reward:
            return self._median(rows, w / total, allowed)
        centre = (weight @ mean) / total
        shift = weight * (mean - centre)
        s = np.bincount(flat, np.repeat(shift, shape[0]), minlength=size).reshape(shape).cumsum(axis=1)[:, :-1]
        with np.errstate(divide="ignore", invalid="ignore"):
            gains = np.where(allowed, s**2 / w + s**2 / (total - w), 0.0)
        column, edge = np.unravel_index(int(gains.argmax()), gains.shape)
        # Expected gain of one split on noise, Σ w² (y - mean)² / Σ w.
        noise = float((shift**2).sum() / total)
        gain = float(gains[column, edge]) - _NOISE_GAINS * noise
        return max(gain, 0.0), int(column), float(self.edges[column, edge])

    def gain(self, rows: Ints, column: int, threshold: float) -> float:
        """Gain of one given split, 0 if a side would be too small."""
        weight, mean = self.weight[rows], self.mean[rows]
        total = weight.sum()
        side = self.features[rows, column] <= threshold
        w = weight[side].sum()
        if w < self.min_weight or total - w < self.min_weight or not self.by_reward:
            return 0.0
        centre = (weight @ mean) / total
        shift = weight * (mean - centre)
        s = shift[side].sum()
        return float(s**2 / w + s**2 / (total - w) - _NOISE_GAINS * (shift**2).sum() / total)

    def _median(self, rows: Ints, share: Floats, allowed: NDArray[np.bool_]) -> tuple[float, int, float]:
        weight = self.weight[rows][:, None]
        features = self.features[rows]
        centre = (weight * features).sum(axis=0) / weight.sum()
        spread = (weight * (features - centre) ** 2).sum(axis=0)
        spread = np.where(allowed.any(axis=1), spread, 0.0)
        column = int(spread.argmax())
        edge = int(np.where(allowed[column], np.abs(share[column] - 0.5), np.inf).argmin())
        return float(spread[column]), column, float(self.edges[column, edge])


def _node_statistics(tree: Tree, visits: Observations, half: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
    """[M] weight, mean and squared standard error of each node on a half, with the prompt as the unit that is drawn."""
    prompts, index = np.unique(visits.prompt[half], return_inverse=True)
    if not prompts.size:
        nothing = np.zeros(tree.feature.size)
        return nothing, nothing, nothing
    weight = np.bincount(index, visits.weight[half])
    mean = np.bincount(index, visits.weight[half] * visits.mean[half]) / weight
    first = np.unique(index, return_index=True)[1]
    inside = tree.membership[tree.locate(visits.features[half][first])]
    total = weight @ inside
    safe = np.maximum(total, 1e-12)
    node_mean = (weight * mean) @ inside / safe
    count = inside.sum(axis=0)
    scatter = np.einsum("pv,pv->v", inside, (weight[:, None] * (mean[:, None] - node_mean)) ** 2)
    error = scatter / safe**2 * count / np.maximum(count - 1, 1)
    return total, node_mean, np.where(count > 1, error, 0.25)


def _signal(tree: Tree, stats: tuple[Floats, Floats, Floats]) -> Floats:
    """[M] squared offset of a node from its parent less the noise in it; the root's is 0."""
    total, mean, error = stats
    signal = np.zeros(tree.feature.size)
    for node in range(1, tree.feature.size):
        parent = int(tree.parent[node])
        other = int(tree.left[parent] + tree.right[parent] - node)
        share = total[other] / max(total[parent], 1e-12)
        signal[node] = (mean[node] - mean[parent]) ** 2 - share**2 * (error[node] + error[other])
    return signal


def _merge_useless(tree: Tree, visits: Observations, half: NDArray[np.bool_], *, keep_all: bool) -> Tree:
    """Merge, from the bottom up, splits whose two sides do not differ on prompts that had no part in choosing them."""
    if keep_all:
        return tree
    stats = _node_statistics(tree, visits, half)
    signal, total = _signal(tree, stats), stats[0]
    useless: set[int] = set()
    for node in np.flatnonzero(tree.feature >= 0)[::-1]:
        left, right = int(tree.left[node]), int(tree.right[node])
        closed = all(tree.feature[child] < 0 or child in useless for child in (left, right))
        if closed and total[left] * signal[left] + total[right] * signal[right] <= 0:
            useless.add(int(node))
    return tree.merge(useless)


def _level_variances(tree: Tree, visits: Observations, half: NDArray[np.bool_]) -> Floats:
    """[depth + 1] method-of-moments variance of the node offsets at each level, clipped to [3e-4, .1]."""
    stats = _node_statistics(tree, visits, half)
    signal, total = _signal(tree, stats), stats[0]
    levels = np.zeros(int(tree.depth.max()) + 1)
    for depth in range(1, levels.size):
        at = tree.depth == depth
        weight = total[at].sum()
        estimate = (total[at] @ signal[at]) / weight if weight > 0 else 0.0
        levels[depth] = np.clip(estimate, TAU_LOW, TAU_HIGH)
    return levels
