"""Small worlds for the tests of coterie.grouping: prompts with features, rollouts with rewards and weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from coterie.config.advantage import GroupingConfig
from coterie.grouping.arrays import Rollouts
from coterie.grouping.features import Column
from coterie.grouping.model import GroupAwareBaseline
from coterie.grouping.presets import Settings

COLUMNS = (
    Column("meaning 1", "semantic"),
    Column("meaning 2", "semantic"),
    Column("log digits", "complexity", mean=1.5, std=0.5),
    Column("task=sums", "task", mean=0.5, std=0.5),
)


def settings_of(**changed: Any) -> Settings:
    """The estimator's numbers, those of `[grouping]` among them."""
    section = {name: changed.pop(name) for name in GroupingConfig.model_fields if name in changed}
    return Settings(config=GroupingConfig(**section), **changed)


def features(prompts: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.hstack([rng.normal(size=(prompts, 3)), rng.choice([-1.0, 1.0], size=(prompts, 1))])


def rollouts(
    rng: np.random.Generator, table: np.ndarray, chosen: Sequence[int], sizes: Sequence[int], time: float
) -> Rollouts:
    """Right-or-wrong rollouts whose success depends on the first feature and the task; failures are sprinkled in."""
    rows = np.repeat(chosen, sizes)
    chance = 1 / (1 + np.exp(-(1.5 * table[rows, 0] + 0.7 * table[rows, 3])))
    order = rng.permutation(rows.size)
    return Rollouts(
        prompts=tuple(f"p{row}" for row in rows[order]),
        rewards=(rng.random(rows.size) < chance[order]).astype(np.float64),
        features=table[rows[order]],
        time=time,
        weights=rng.gamma(2.0, 10.0, rows.size),
    )


def step(rng: np.random.Generator, table: np.ndarray, *, prompts: int, size: int, time: float) -> Rollouts:
    chosen = rng.choice(len(table), size=prompts, replace=False).tolist()
    return rollouts(rng, table, chosen, [size] * prompts, time)


def trained(
    preset: str, settings: Settings | None = None, *, steps: int = 12, size: int = 2, prompts: int = 12, seed: int = 1
) -> tuple[GroupAwareBaseline, np.random.Generator, np.ndarray]:
    """An estimator with some history, and what is needed to go on."""
    rng, table = np.random.default_rng(seed), features(60)
    baseline = GroupAwareBaseline(COLUMNS, preset=preset, settings=settings)
    for time in range(steps):
        baseline.observe(step(rng, table, prompts=prompts, size=size, time=float(time)))
    return baseline, rng, table
