"""What a step's baselines were made of, and what the step showed: for the metrics."""

from __future__ import annotations

from dataclasses import dataclass

from coterie.algo.grouping.hierarchy import Redrawn
from coterie.algo.grouping.state import Floats


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """Baselines of one step and where they come from. B rollouts; NaN where a rollout failed."""

    baselines: Floats
    """[B] in reward units."""
    experts: dict[str, Floats]
    """[B] each."""
    weights: Floats
    """[buckets, K] of the experts, see stack.py."""
    scales: dict[str, Floats]
    """[B] each: contribution of each scale to the first hierarchical expert, in reward units; root holds the origin.
    Empty where the preset has none."""


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """What a step showed, for the metrics."""

    errors: dict[str, float]
    """Mean squared prequential error of each expert, and of "combined", in squared reward ranges."""
    power: float
    """Mean of W (r - b)², the gradient-variance proxy, W having mean near 1."""
    bias: float
    """Mean of r - b; far from 0 for many steps means stale memory."""
    rollouts: int
    scales: dict[str, float]
    """Mean |contribution| of each scale, in reward ranges."""
    redrawn: Redrawn | None
    """How the regions moved, if they were redrawn after this step."""
