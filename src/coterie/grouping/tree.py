"""Regions of similar prompts: a binary tree of rules on features, and its rules in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from coterie.grouping.arrays import State
from coterie.grouping.features import Column
from coterie.stats import Floats, Ints


@dataclass(frozen=True, eq=False)
class Tree:
    """Binary tree of M nodes. Node 0 is the root; a row goes left where its feature is at most the threshold."""

    feature: Ints
    """[M] column to compare, -1 at a leaf."""
    threshold: Floats
    """[M] in standardised units."""
    left: Ints
    """[M] child, -1 at a leaf."""
    right: Ints
    parent: Ints
    """[M] -1 at the root."""
    depth: Ints
    """[M] 0 at the root."""

    @classmethod
    def stump(cls) -> Tree:
        """A tree of one region."""
        none = np.full(1, -1, dtype=np.int64)
        return cls(none, np.zeros(1), none, none, none, np.zeros(1, dtype=np.int64))

    @property
    def leaves(self) -> Ints:
        """Node numbers of the leaves."""
        return np.flatnonzero(self.feature < 0)

    @cached_property
    def membership(self) -> Floats:
        """[M, M] row v marks v and its ancestors."""
        marks = np.zeros((self.feature.size, self.feature.size))
        for node in range(self.feature.size):
            step = node
            while step >= 0:
                marks[node, step] = 1.0
                step = int(self.parent[step])
        return marks

    def locate(self, rows: Floats) -> Ints:
        """[P] leaf of each row [P, F]; as many comparisons a row as the tree is deep."""
        node = np.zeros(len(rows), dtype=np.int64)
        moving = np.arange(len(rows))
        while True:
            moving = moving[self.feature[node[moving]] >= 0]
            if not moving.size:
                return node
            at = node[moving]
            goes_left = rows[moving, self.feature[at]] <= self.threshold[at]
            node[moving] = np.where(goes_left, self.left[at], self.right[at])

    def rule(self, node: int, columns: Sequence[Column]) -> str:
        """The path to a node in words and plain units, each feature once.

        >>> columns = (Column("log digits", "complexity", 2.0, 1.0), Column("task=gsm", "task", 0.5, 0.5))
        >>> tree = Tree.stump().split(0, 0, 0.5).split(2, 1, 0.0)
        >>> tree.rule(4, columns)
        'log digits > 2.5 and task is gsm'
        """
        low: dict[int, float] = {}
        high: dict[int, float] = {}
        order: list[int] = []
        while self.parent[node] >= 0:
            above = int(self.parent[node])
            feature, threshold = int(self.feature[above]), float(self.threshold[above])
            order.insert(0, feature)
            if node == self.left[above]:
                high[feature] = min(high.get(feature, np.inf), threshold)
            else:
                low[feature] = max(low.get(feature, -np.inf), threshold)
            node = above
        words = [_words(columns[f], low.get(f), high.get(f)) for f in dict.fromkeys(order)]
        return " and ".join(words) or "all prompts"

    def last_rule(self, node: int, columns: Sequence[Column]) -> str:
        """The last rule on the path to a node, in words; of the root as `rule`.

        >>> columns = (Column("log digits", "complexity", 2.0, 1.0), Column("task=gsm", "task", 0.5, 0.5))
        >>> Tree.stump().split(0, 0, 0.5).split(2, 1, 0.0).last_rule(4, columns)
        'task is gsm'
        """
        above = int(self.parent[node])
        if above < 0:
            return self.rule(node, columns)
        threshold = float(self.threshold[above])
        low, high = (None, threshold) if node == self.left[above] else (threshold, None)
        return _words(columns[int(self.feature[above])], low, high)

    def order(self) -> list[int]:
        """Nodes in depth-first order: parents before children, left before right."""
        nodes, open_ = [], [0]
        while open_:
            node = open_.pop()
            nodes.append(node)
            if self.feature[node] >= 0:
                open_ += [int(self.right[node]), int(self.left[node])]
        return nodes

    def split(self, node: int, feature: int, threshold: float) -> Tree:
        """The tree with a leaf cut in two; the new leaves are its last two nodes, left first."""
        count = self.feature.size
        change = {"feature": feature, "threshold": threshold, "left": count, "right": count + 1}
        tail = {"feature": -1, "threshold": 0.0, "left": -1, "right": -1, "parent": node, "depth": self.depth[node] + 1}
        grown = {}
        for field in fields(self):
            array = getattr(self, field.name)
            array = np.append(array, np.array([tail[field.name]] * 2, dtype=array.dtype))
            if field.name in change:
                array[node] = change[field.name]
            grown[field.name] = array
        return Tree(**grown)

    def merge(self, drop: set[int]) -> Tree:
        """The tree with everything below the nodes in `drop` merged into them; nodes are renumbered in order."""
        above = self.membership - np.eye(self.feature.size)
        gone = above[:, sorted(drop)].any(axis=1)
        kept = np.flatnonzero(~gone)
        number = np.full(self.feature.size + 1, -1, dtype=np.int64)
        number[kept] = np.arange(kept.size)
        feature = self.feature.copy()
        feature[sorted(drop)] = -1
        leaf = feature[kept] < 0
        return Tree(
            feature[kept],
            np.where(leaf, 0.0, self.threshold[kept]),
            np.where(leaf, -1, number[self.left[kept]]),
            np.where(leaf, -1, number[self.right[kept]]),
            number[self.parent[kept]],
            self.depth[kept],
        )

    def splits(self, columns: Sequence[Column]) -> set[str]:
        """Each split in words, to compare two trees."""
        inner = np.flatnonzero(self.feature >= 0)
        return {f"{self.rule(int(v), columns)} by {columns[int(self.feature[v])].name}" for v in inner}

    def state(self) -> State:
        return {field.name: getattr(self, field.name).copy() for field in fields(self)}, {}

    @classmethod
    def load(cls, state: State) -> Tree:
        return cls(**{field.name: state[0][field.name].copy() for field in fields(cls)})


def _words(column: Column, low: float | None, high: float | None) -> str:
    kind, is_one_of, value = column.name.partition("=")
    if is_one_of and column.signal in ("task", "key"):
        return f"{kind} is {value}" if low is not None else f"{kind} is not {value}"
    lower, upper = (None if end is None else f"{column.mean + column.std * end:.3g}" for end in (low, high))
    if lower is not None and upper is not None:
        return f"{lower} < {column.name} ≤ {upper}"
    return f"{column.name} > {lower}" if lower is not None else f"{column.name} ≤ {upper}"
