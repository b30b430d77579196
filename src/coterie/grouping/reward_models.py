"""Rewards of several parts: one estimator a part, so that a rare success in one is not drowned by noise in another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite

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
class Verdict:
    """What a step's rollouts earned, and by whose word. B rollouts."""

    advantages: Floats
    """[B]; 0 from a part that could not be scored."""
    shares: dict[str, Floats]
    """[B] by `scale`, or `part/scale` where parts have names: what each scale says, in units of the advantage; NaN
    where the rollout failed."""
    states: dict[str, tuple[Floats, ...]] = field(default_factory=dict)
    """[K] of each rollout by `state`, or `part/state`: what its states add to the baseline of each turn, in units of
    the advantage, from which it is to be subtracted; empty where no episode was given."""
    metrics: dict[str, float] = field(default_factory=dict)
    """How much the states said."""


class PartwiseBaseline:
    """A = Σ_n w_n (r_n - b_n) / c_n: the unbiased analogue of GDPO (2601.05242), which divides by own statistics.

    Args:
        weights: weight of each part of the reward; `WHOLE` for an undivided one.
        preset, settings, seed: of every part's estimator.
        reward, reference: names of what the statistics belong to, see `GroupAwareBaseline.adopt`.
        own: see `GroupAwareBaseline`.
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
        own: CustomBaseline | None = None,
    ) -> None:
        if not weights:
            raise ValueError("a reward of no parts has no baseline; name at least one part and its weight")
        self.weights = dict(weights)
        self.estimators = {
            name: GroupAwareBaseline(
                columns, preset=preset, settings=settings, seed=seed, reward=reward, reference=reference, own=own
            )
            for name in self.weights
        }

    @property
    def first(self) -> GroupAwareBaseline:
        """The estimator of the first part: of the whole reward where it is not divided."""
        return next(iter(self.estimators.values()))

    def explain(
        self, rollouts: Mapping[str, Rollouts], episodes: Mapping[str, Sequence[Episode]] | None = None
    ) -> Verdict:
        """From one `Rollouts` a part, same rollouts in the same order. Changes nothing.

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
            estimator, seen = self.estimators[name], rollouts[name]
            said, divisors = estimator.explain(seen), estimator.divisors(seen)
            advantages += weight * np.nan_to_num((seen.rewards - said.baselines) / divisors)
            shares |= {_named(name, scale): values / divisors for scale, values in said.scales.items()}
            if episodes is not None and estimator.settings.states:
                moved = _moved(estimator, seen, episodes[name], said.baselines)
                scaled = zip(moved, divisors, strict=True)
                states[_named(name, STATE)] = tuple(weight * one / divisor for one, divisor in scaled)
                found = _measured(moved, episodes[name], estimator.range or (0.0, 1.0))
                metrics |= {_named(name, key): value for key, value in found.items()}
        return Verdict(advantages, shares, states, metrics)

    def expect(self, prompts: tuple[str, ...], features: Floats, time: float) -> tuple[Floats, Floats] | None:
        """[P] expected reward and [P] its variance, before sampling; None while the range of a part is not known."""
        if any(estimator.range is None for estimator in self.estimators.values()):
            return None
        said = {name: estimator.expect(prompts, features, time) for name, estimator in self.estimators.items()}
        means = [self.weights[name] * mean for name, (mean, _) in said.items()]
        return np.sum(means, axis=0), np.sum([self.weights[name] ** 2 * var for name, (_, var) in said.items()], axis=0)

    def evidence(self, features: Floats, time: float) -> tuple[Floats, Floats]:
        """As `GroupAwareBaseline.evidence`, added up over the parts: the ratio of the two is the parts' mean, each
        weighted by its prior."""
        both = [estimator.evidence(features, time) for estimator in self.estimators.values()]
        return np.sum([now for now, _ in both], axis=0), np.sum([before for _, before in both], axis=0)

    def observe(self, rollouts: Mapping[str, Rollouts]) -> dict[str, UpdateStats]:
        """Learn from rollouts whose advantages have been used."""
        return {name: estimator.observe(rollouts[name]) for name, estimator in self.estimators.items()}

    def metrics(self, update_stats: Mapping[str, UpdateStats]) -> dict[str, float]:
        """How well a step was foreseen, by whom, and from which scale; nothing of a part that nobody could score."""
        found: dict[str, float] = {}
        for name, update_stat in update_stats.items():
            if not update_stat.rollouts:
                continue
            estimator = self.estimators[name]
            weights = dict(zip(estimator.experts, map(float, estimator.stack.overall()), strict=True))
            tables = {"error": update_stat.errors, "scale": update_stat.scales, "weight": weights}
            one = {f"{kind}/{key}": value for kind, table in tables.items() for key, value in table.items()}
            one |= {"gradient_variance": update_stat.power, "bias": update_stat.bias, "unit": estimator.scale}
            found |= {_named(name, key): value for key, value in one.items()}
        return found

    def adopt(self, *, reward: str, reference: str) -> None:
        """Continue under these versions; widens what is known where either is another than before."""
        for estimator in self.estimators.values():
            estimator.adopt(reward=reward, reference=reference)

    def state(self) -> State:
        return join(**{name: estimator.state() for name, estimator in self.estimators.items()})

    def load(self, state: State) -> None:
        """Continue from a state.

        Raises:
            ValueError: as `GroupAwareBaseline.load`.
        """
        for name, estimator in self.estimators.items():
            estimator.load(pick(state, name))


def _moved(
    estimator: GroupAwareBaseline, seen: Rollouts, episodes: Sequence[Episode], baselines: Floats
) -> list[Floats]:
    """[K] of each episode: what its states add to the baseline of each turn, in reward units."""
    return anchor_corrections(episodes, baselines, estimator.beliefs(seen), estimator.settings.state_spread)


def _measured(moved: Sequence[Floats], episodes: Sequence[Episode], bounds: tuple[float, float]) -> dict[str, float]:
    """Mean size of what the states add to the baseline, in reward ranges; and the share of later turns whose state
    another attempt came to."""
    later = np.concatenate([there.episodes[1:] for there in state_peers(episodes)])
    size = float(np.mean([np.abs(one).mean() for one in moved])) / (bounds[1] - bounds[0])
    return {f"scale/{STATE}": size} | ({f"{STATE}/shared": float(np.mean(later > 0))} if later.size else {})


def _named(part: str, what: str) -> str:
    return f"{part}/{what}" if part else what


# How far the policy may move on a prompt's word: clip bounds that follow the evidence for its region.


def trust_factors(variance: Floats, prior: Floats, trust: float) -> Floats:
    """[P] factors for the clip bounds of a step's prompts:

    f_p = (1 + trust)^(mean(u) - u_p),   u_p = variance_p / prior_p within 0 and 1

    u is what evidence has left of the uncertainty about the region's expected reward. Their geometric mean is 1, so the
    configured bounds stay the step's typical ones, and no factor leaves [1 / (1 + trust), 1 + trust].

    Args:
        variance: [P] of the region's expectation, from history alone.
        prior: [P] the same before any evidence, above 0.
        trust: 0 leaves every bound as it is.

    >>> trust_factors(np.array([0.1, 0.05, 0.0]), np.full(3, 0.1), 1.0).round(4).tolist()
    [0.7071, 1.0, 1.4142]
    """
    if trust < 0:
        raise ValueError(f"trust is {trust}; expected at least 0")
    left = np.clip(variance / prior, 0.0, 1.0)
    return (1.0 + trust) ** (left.mean() - left) if left.size else left


# The clock by which evidence fades, where it follows the policy and not the count of updates.


class PolicyClock:
    """Policy time: each update lasts as long as it moved the policy, against the mean of all updates so far.

        t ← t + m_k / mean(m_1 … m_k)

    m is the mean |change of log-prob| of a token, in nats: SPO's measure of age (2509.13232). Against its running mean
    the average update lasts about one unit, so that all memories stay given in steps whatever the learning rate is; an
    update that moves nothing lasts nothing. The time of a step depends on the updates before it alone.

    >>> clock = PolicyClock()
    >>> [round(clock.advance(moved), 4) for moved in (0.02, 0.04, 0.0, 0.06)]
    [1.0, 2.3333, 2.3333, 4.3333]
    """

    def __init__(self) -> None:
        self.now, self.moved, self.updates = 0.0, 0.0, 0

    def advance(self, moved: float) -> float:
        """After an update. Returns the time now.

        Raises:
            ValueError: `moved` is negative or not finite.
        """
        if not (isfinite(moved) and moved >= 0):
            raise ValueError(f"moved is {moved}; expected a mean |log-prob change| of at least 0")
        self.moved, self.updates = self.moved + moved, self.updates + 1
        if moved > 0:
            self.now += moved * self.updates / self.moved
        return self.now

    def state(self) -> dict[str, float]:
        return {"now": self.now, "moved": self.moved, "updates": self.updates}

    def load(self, state: dict[str, float]) -> None:
        self.now, self.moved, self.updates = float(state["now"]), float(state["moved"]), int(state["updates"])
