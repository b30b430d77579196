"""Group-aware baselines of rewards with several parts: one a part, so that a rare success is not drowned by noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from coterie.algo.turns import Episode, anchor_corrections, state_peers
from coterie.grouping.arrays import Rollouts, State, join, pick
from coterie.grouping.custom import CustomBaseline
from coterie.grouping.features import Column
from coterie.grouping.model import GroupAwareBaseline, UpdateStats
from coterie.grouping.presets import STATE, Settings
from coterie.stats import Floats

WHOLE: Mapping[str, float] = {"": 1.0}
"""Weights of a reward that is not divided: one part without a name."""


@dataclass(frozen=True, slots=True, eq=False)
class PartwiseAdvantages:
    """Advantages of a step's rollouts with their contributions. B rollouts."""

    advantages: Floats
    """[B]; 0 from a part that could not be scored."""
    shares: dict[str, Floats]
    """[B] contributions by `scale`, or `part/scale` where parts have names, in units of the advantage; NaN where the
    rollout failed."""
    states: dict[str, tuple[Floats, ...]] = field(default_factory=dict)
    """[K] of each rollout by `state`, or `part/state`: state corrections of the baseline of each turn, in units of the
    advantage, to be subtracted from it; empty without episodes."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Size and share of state corrections."""


class PartwiseBaseline:
    """One baseline a reward part, A = Σ_n w_n (r_n - b_n) / c_n: the unbiased analogue of GDPO (2601.05242).

    Args:
        weights: weight of each part of the reward; `WHOLE` for an undivided one.
        preset, settings, seed: of every part's estimator.
        reward, reference: names of what the statistics belong to, see `GroupAwareBaseline.rebind`.
        custom: see `GroupAwareBaseline`.
    """

    def __init__(
        self,
        columns: tuple[Column, ...],
        weights: Mapping[str, float] = WHOLE,
        *,
        preset: str = "mixture",
        settings: Settings | None = None,
        seed: int = 0,
        reward: str = "",
        reference: str = "",
        custom: CustomBaseline | None = None,
    ) -> None:
        if not weights:
            raise ValueError("a reward of no parts has no baseline; name at least one part and its weight")
        self.weights = dict(weights)
        self.estimators = {
            name: GroupAwareBaseline(
                columns, preset=preset, settings=settings, seed=seed, reward=reward, reference=reference, custom=custom
            )
            for name in self.weights
        }

    @property
    def first(self) -> GroupAwareBaseline:
        """The estimator of the first part: of the whole reward where it is not divided."""
        return next(iter(self.estimators.values()))

    def explain(
        self, rollouts: Mapping[str, Rollouts], episodes: Mapping[str, Sequence[Episode]] | None = None
    ) -> PartwiseAdvantages:
        """Advantages from one `Rollouts` a part, same rollouts in the same order; no state changes.

        Args:
            episodes: the same rollouts turn by turn, where there are several turns.
        """
        if set(rollouts) != set(self.weights):
            raise ValueError(f"parts are {sorted(rollouts)}; expected {sorted(self.weights)}")
        advantages: Floats = np.zeros(len(next(iter(rollouts.values())).prompts))
        shares: dict[str, Floats] = {}
        states: dict[str, tuple[Floats, ...]] = {}
        metrics: dict[str, float] = {}
        for name, weight in self.weights.items():
            estimator, part = self.estimators[name], rollouts[name]
            explanation, divisors = estimator.explain(part), estimator.divisors(part)
            advantages += weight * np.nan_to_num((part.rewards - explanation.baselines) / divisors)
            shares |= {_metric_name(name, scale): values / divisors for scale, values in explanation.scales.items()}
            if episodes is not None and estimator.settings.states:
                corrections = _state_corrections(estimator, part, episodes[name], explanation.baselines)
                scaled = zip(corrections, divisors, strict=True)
                states[_metric_name(name, STATE)] = tuple(
                    weight * correction / divisor for correction, divisor in scaled
                )
                sizes = _state_metrics(corrections, episodes[name], estimator.range or (0.0, 1.0))
                metrics |= {_metric_name(name, key): value for key, value in sizes.items()}
        return PartwiseAdvantages(advantages, shares, states, metrics)

    def expect(self, prompts: tuple[str, ...], features: Floats, time: float) -> tuple[Floats, Floats] | None:
        """[P] expected reward and [P] its variance, before sampling; None while the range of a part is unknown."""
        if any(estimator.range is None for estimator in self.estimators.values()):
            return None
        expectations = {name: estimator.expect(prompts, features, time) for name, estimator in self.estimators.items()}
        means = [self.weights[name] * mean for name, (mean, _) in expectations.items()]
        return np.sum(means, axis=0), np.sum(
            [self.weights[name] ** 2 * var for name, (_, var) in expectations.items()], axis=0
        )

    def observe(self, rollouts: Mapping[str, Rollouts]) -> dict[str, UpdateStats]:
        """Update each part's model by rollouts whose advantages have been used."""
        return {name: estimator.observe(rollouts[name]) for name, estimator in self.estimators.items()}

    def metrics(self, update_stats: Mapping[str, UpdateStats]) -> dict[str, float]:
        """Metrics of an update by expert and scale; none of a part without scored rollouts."""
        metrics: dict[str, float] = {}
        for name, update_stat in update_stats.items():
            if not update_stat.rollouts:
                continue
            estimator = self.estimators[name]
            weights = dict(zip(estimator.experts, map(float, estimator.mixture.overall()), strict=True))
            tables = {"error": update_stat.errors, "scale": update_stat.scales, "weight": weights}
            part_metrics = {f"{kind}/{key}": value for kind, table in tables.items() for key, value in table.items()}
            part_metrics |= {"gradient_variance": update_stat.power, "bias": update_stat.bias, "unit": estimator.scale}
            metrics |= {_metric_name(name, key): value for key, value in part_metrics.items()}
        return metrics

    def rebind(self, *, reward: str, reference: str) -> None:
        """Continue under these versions; inflates variances where either has changed."""
        for estimator in self.estimators.values():
            estimator.rebind(reward=reward, reference=reference)

    def state(self) -> State:
        return join(**{name: estimator.state() for name, estimator in self.estimators.items()})

    def load(self, state: State) -> None:
        """Restore a state."""
        for name, estimator in self.estimators.items():
            estimator.load(pick(state, name))


def _state_corrections(
    estimator: GroupAwareBaseline, part: Rollouts, episodes: Sequence[Episode], baselines: Floats
) -> list[Floats]:
    """[K] of each episode: state corrections of the baseline of each turn, in reward units."""
    return anchor_corrections(episodes, baselines, estimator.prior(part), estimator.settings.state_spread)


def _state_metrics(
    corrections: Sequence[Floats], episodes: Sequence[Episode], bounds: tuple[float, float]
) -> dict[str, float]:
    """Mean size of state corrections, in reward ranges, and the share of later turns whose state another attempt came
    to."""
    later = np.concatenate([peers.episodes[1:] for peers in state_peers(episodes)])
    size = float(np.mean([np.abs(correction).mean() for correction in corrections])) / (bounds[1] - bounds[0])
    return {f"scale/{STATE}": size} | ({f"{STATE}/shared": float(np.mean(later > 0))} if later.size else {})


def _metric_name(part: str, what: str) -> str:
    return f"{part}/{what}" if part else what
