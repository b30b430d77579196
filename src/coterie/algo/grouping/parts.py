"""Rewards of several parts: one estimator a part, so that a rare success in one is not drowned by noise in another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from coterie.algo.grouping.features import Column
from coterie.algo.grouping.heb import GroupAwareBaseline
from coterie.algo.grouping.lessons import Lesson
from coterie.algo.grouping.presets import Settings
from coterie.algo.grouping.rollouts import Rollouts
from coterie.algo.grouping.state import Floats, State, join, pick


class PartwiseBaseline:
    """A = Σ_n w_n (r_n - b_n) / c_n: the unbiased analogue of GDPO (2601.05242), which divides by own statistics.

    Args:
        weights: weight of each part of the reward.
        bounds: range of each part; a part left out keeps the settings' range.
    """

    def __init__(
        self,
        columns: tuple[Column, ...],
        weights: Mapping[str, float],
        *,
        bounds: Mapping[str, tuple[float, float] | None] | None = None,
        preset: str = "heb-stack",
        settings: Settings | None = None,
        seed: int = 0,
    ) -> None:
        if not weights:
            raise ValueError("a reward of no parts has no baseline; name at least one part and its weight")
        settings, ranges = Settings() if settings is None else settings, bounds or {}
        self.weights = dict(weights)
        self.estimators = {
            name: GroupAwareBaseline(
                columns,
                preset=preset,
                settings=replace(settings, bounds=ranges.get(name, settings.bounds)),
                seed=seed,
                reward=name,
            )
            for name in self.weights
        }

    def advantages(self, rollouts: Mapping[str, Rollouts]) -> Floats:
        """[B] from one `Rollouts` a part, same rollouts in the same order; 0 from a part that could not be scored."""
        self._check(rollouts)
        return np.sum(
            [weight * self.estimators[n].advantages(rollouts[n]) for n, weight in self.weights.items()], axis=0
        )

    def observe(self, rollouts: Mapping[str, Rollouts]) -> dict[str, Lesson]:
        self._check(rollouts)
        return {name: estimator.observe(rollouts[name]) for name, estimator in self.estimators.items()}

    def _check(self, rollouts: Mapping[str, Rollouts]) -> None:
        if set(rollouts) != set(self.weights):
            raise ValueError(f"parts are {sorted(rollouts)}; expected {sorted(self.weights)}")

    def widen(self, factor: float = 10.0) -> None:
        for estimator in self.estimators.values():
            estimator.widen(factor)

    def state(self) -> State:
        return join(**{name: estimator.state() for name, estimator in self.estimators.items()})

    def load(self, state: State) -> None:
        for name, estimator in self.estimators.items():
            estimator.load(pick(state, name))
