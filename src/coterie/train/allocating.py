"""Which of the candidates to sample, and how often: the estimator's expectations meet the settings."""

from __future__ import annotations

import numpy as np

from coterie.algo.grouping.allocation import SOLVED, Allocation, allocate, solved_regions, teaching_signal
from coterie.algo.grouping.heb import GroupAwareBaseline
from coterie.config.grouping import GroupingConfig


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
    """Decided before any candidate is sampled, from what is expected of it.

    Args:
        names: [N] prompt ids of the candidates.
        features: [N, F]
        time: of this step.
        prompts, rollouts: how many to draw, and to give out in all.
        counters: name the draw.
    """
    expected, _ = model.expect(names, features, time)
    bounds = model.range or (0.0, 1.0)
    return allocate(
        teaching_signal(expected, bounds),
        prompts=prompts,
        rollouts=rollouts,
        least=config.least,
        most=config.most,
        review=config.review,
        solved=solved_regions(expected, _regions(model, features), bounds[0] + SOLVED * (bounds[1] - bounds[0])),
        counters=counters,
    )


def _regions(model: GroupAwareBaseline, features: np.ndarray) -> np.ndarray:
    """[N] the leaf of the tree that each prompt lies in; all the same where the preset has no tree."""
    hierarchy = model.regions
    return np.zeros(len(features), dtype=np.int64) if hierarchy is None else hierarchy.tree.locate(features)
