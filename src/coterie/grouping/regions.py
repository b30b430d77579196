"""Regions of the tree as plain rows, for reports."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, count, product
from string import ascii_uppercase

import numpy as np

from coterie.grouping.model import GroupAwareBaseline
from coterie.grouping.tree import Tree
from coterie.grouping.tree_fit import Observations
from coterie.stats import Floats, Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A node of the tree, with statistics over the window of recent steps."""

    node: int
    parent: int
    """-1 for the root."""
    depth: int
    leaf: bool
    label: str
    """Of a leaf a letter to find it by, in the order of the page; of another node empty."""
    rule: str
    """From the root on, in words and plain units."""
    step: str
    """Its last part: the rule that separates the node from its sibling."""
    prompts: int
    """Distinct prompts visited in the window."""
    rollouts: float
    """Evidence in the window, faded by age."""
    success: float
    """Mean reward, reward units; NaN where nothing was seen."""
    spread: float
    """Standard deviation between prompts' mean rewards, sampling noise included."""
    drift: float
    """Mean reward in the newer half of the window less that in the older; 0 where a half is empty."""
    offset: float
    """The model's offset of this node, reward units."""
    examples: tuple[str, ...]
    """Ids of its most recently visited prompts."""


def regions(baseline: GroupAwareBaseline, *, examples: int = 3) -> list[Region]:
    """Rows of all nodes of the tree in the order of `Tree.order`. Empty for a preset without a tree."""
    hierarchy = baseline.regions
    if hierarchy is None or not baseline.window.steps:
        return []
    tree, table, steps = hierarchy.tree, baseline.prompt_table, baseline.window.steps
    low, high = baseline.range or (0.0, 1.0)
    visits = baseline.window.visits(table.features, steps[-1].time, hierarchy.settings.config.decay_steps)
    inside = tree.membership[tree.locate(visits.features)] > 0
    when = np.concatenate([np.full(step.rows.size, i) for i, step in enumerate(steps)])
    names = list(table.index)
    labels = leaf_labels(tree)
    return [
        Region(
            node=node,
            parent=int(tree.parent[node]),
            depth=int(tree.depth[node]),
            leaf=bool(tree.feature[node] < 0),
            label=labels.get(node, ""),
            rule=tree.rule(node, baseline.columns),
            step=tree.last_rule(node, baseline.columns),
            rollouts=float(visits.weight[inside[:, node]].sum()),
            offset=(high - low) * float(hierarchy.belief.mean[node]),
            **_visit_stats(visits, inside[:, node], when, len(steps), (low, high)),
            examples=tuple(names[row] for row in _latest(visits.prompt[inside[:, node]], examples)),
        )
        for node in tree.order()
    ]


def leaf_labels(tree: Tree) -> dict[int, str]:
    """Leaf → A … Z, AA, AB, … in the order of `Tree.order`."""
    leaves = (node for node in tree.order() if tree.feature[node] < 0)
    names = map("".join, chain.from_iterable(product(ascii_uppercase, repeat=size) for size in count(1)))
    return dict(zip(leaves, names, strict=False))


def _visit_stats(visits: Observations, here: np.ndarray, when: Ints, steps: int, bounds: tuple[float, float]) -> dict:
    low, high = bounds
    weight, mean = visits.weight[here], visits.mean[here]
    if not weight.size:
        return {"prompts": 0, "success": float("nan"), "spread": 0.0, "drift": 0.0}
    _, index = np.unique(visits.prompt[here], return_inverse=True)
    by_prompt = np.bincount(index, weight * mean) / np.maximum(np.bincount(index, weight), 1e-12)
    newer = when[here] >= steps / 2
    drift = _mean(weight[newer], mean[newer]) - _mean(weight[~newer], mean[~newer])
    return {
        "prompts": int(by_prompt.size),
        "success": low + (high - low) * _mean(weight, mean),
        "spread": (high - low) * float(by_prompt.std()),
        "drift": 0.0 if np.isnan(drift) else (high - low) * drift,
    }


def _mean(weight: Floats, values: Floats) -> float:
    return float(weight @ values / weight.sum()) if weight.size and weight.sum() > 0 else float("nan")


def _latest(rows: Ints, count: int) -> list[int]:
    """The last distinct rows, newest first."""
    return list(dict.fromkeys(int(row) for row in rows[::-1]))[:count]


def rules(model: GroupAwareBaseline, features: np.ndarray) -> list[str | None]:
    """[P] the region of each prompt in words; None where the preset has no tree."""
    hierarchy = model.regions
    if hierarchy is None:
        return [None] * len(features)
    leaves = hierarchy.tree.locate(features)
    words = {int(leaf): hierarchy.tree.rule(int(leaf), model.columns) for leaf in np.unique(leaves)}
    return [words[int(leaf)] for leaf in leaves]
