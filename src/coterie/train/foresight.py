"""What a judge expects of a step's prompts before it knows any of the step's rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from coterie.algo.grouping.heb import GroupAwareBaseline
from coterie.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """Of one prompt."""

    reward: float
    std: float
    """How unsure the judge is of that mean, reward units."""
    region: str | None
    """Leaf of the tree in which the prompt lies, in words; None without a tree."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Foresight:
    """Of one step; empty from a judge that remembers nothing."""

    time: float | None = None
    """Policy time; None without a clock."""
    expected: Mapping[str, Expectation] = field(default_factory=dict)
    """By prompt id."""
    embedded: Sequence[tuple[Prompt, np.ndarray]] = ()
    """Prompts seen for the first time, [E] each: what they mean to the policy, once, as it was then."""


def rules(model: GroupAwareBaseline, features: np.ndarray) -> list[str | None]:
    """[P] the region of each prompt in words; None where the preset has no tree."""
    hierarchy = model.regions
    if hierarchy is None:
        return [None] * len(features)
    leaves = hierarchy.tree.locate(features)
    words = {int(leaf): hierarchy.tree.rule(int(leaf), model.columns) for leaf in np.unique(leaves)}
    return [words[int(leaf)] for leaf in leaves]
