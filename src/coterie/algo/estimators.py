"""Phase 3: groups → advantages. GRPO and PPO differ here, and in one term of the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from coterie.algo.advantages import credit
from coterie.algo.baselines import Baseline
from coterie.algo.gae import credit_with_critic
from coterie.algo.returns import kl_in_reward
from coterie.config.objective import AdvantageConfig, CriticConfig
from coterie.errors import ConfigError
from coterie.types import Credit, Group, Prompt, Rollout, RolloutScores

Rollouts = Mapping[str, Rollout]
"""A step's rollouts by id, those without a group among them."""
Scores = Mapping[str, RolloutScores]
Score = Callable[[Sequence[Rollout]], Scores]
"""Token scores of rollouts under the weights before the update: log-probs, the reference's, the critic's values."""

GROUPS_CHANGED = "groups"
"""Kind of the events that say how groups changed."""
BIASED_BASELINE = "biased_baseline"
"""Kind of the events that warn of a baseline that its own rollout moves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptPrediction:
    """Expected reward of one prompt, before any of the step's rewards is known."""

    reward: float
    std: float
    """Uncertainty of that mean, reward units."""
    region: str | None
    """Leaf of the tree in which the prompt lies, in words; None without a tree."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Advantages:
    """Credits of one step's rollouts, and all that the estimator measured on the way."""

    credits: tuple[Credit, ...] = ()
    """One per member of each group, in their order."""
    scores: Scores | None = None
    """Token scores that the estimator asked for, which the update then need not compute again; None where it needs
    none."""
    time: float | None = None
    """Steps that the estimator has learned from; None from one that remembers nothing."""
    predictions: Mapping[str, PromptPrediction] = field(default_factory=dict)
    """By prompt id, made before any reward of the step was read; empty from an estimator that remembers nothing."""
    embedded: Sequence[tuple[Prompt, np.ndarray]] = ()
    """Prompts that were embedded for the first time, each with its embedding [E], for storage."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    events: tuple[str, ...] = ()
    """Changes of the groups, a line each."""
    warnings: tuple[str, ...] = ()
    """Reasons to doubt the credits, a line each."""


class Estimator(Protocol):
    """Advantages of the members of groups."""

    def __call__(self, groups: Sequence[Group], rollouts: Rollouts, score: Score) -> Advantages:
        """The step's advantages; an estimator that needs token scores calls `score`."""
        ...

    def save(self, folder: Path) -> None:
        """Write what a later step depends on into a checkpoint's folder."""
        ...

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote."""
        ...


class _Stateless:
    """An estimator for which every step stands alone."""

    __slots__ = ()

    def save(self, folder: Path) -> None:
        """Write nothing."""

    def load(self, folder: Path) -> None:
        """Read nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Shared arguments of all estimators."""

    clip_low: float
    clip_high: float
    kl_beta: float = 0.0
    """Weight of the k1 KL in each token's reward; 0 = none there."""
    environment: Mapping[str, float] = field(default_factory=dict)
    """Weight of the reward part that is the environment's own, by label: it is earned turn by turn, the rest at the
    last one."""

    def scores(self, members: Sequence[Rollout], score: Score) -> Scores | None:
        """Token scores for the KL in the reward; None without one."""
        return score(members) if self.kl_beta > 0 else None

    def token_rewards(self, members: Sequence[Rollout], scores: Scores | None) -> dict[str, np.ndarray] | None:
        """[C] per rollout id, -β (log π - log π_ref) of each token; None without a KL in the reward."""
        if not self.kl_beta or scores is None:
            return None
        rewards: dict[str, np.ndarray] = {}
        for rollout in members:
            scored = scores.get(rollout.id)
            if scored is None:
                continue
            if scored.reference is None:
                raise ValueError(
                    f"the KL in the reward of rollout {rollout.id} needs reference log-probs; there are none"
                )
            rewards[rollout.id] = kl_in_reward(scored.logprobs, scored.reference, self.kl_beta)
        return rewards


def members_of(groups: Sequence[Group], rollouts: Rollouts) -> list[Rollout]:
    """The rollouts of all groups, group by group."""
    return [rollouts[name] for group in groups for name in group.members]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupEstimator(_Stateless):
    """Advantages relative to the attempts at the same prompt (GRPO); see `coterie.algo.advantages`."""

    config: AdvantageConfig
    terms: Terms
    part_weights: Mapping[str, float]
    step_weights: Mapping[str, float]
    baseline: Baseline | None = None
    """The user's own."""

    def __call__(self, groups: Sequence[Group], rollouts: Rollouts, score: Score) -> Advantages:
        members = members_of(groups, rollouts)
        scores = self.terms.scores(members, score)
        try:
            credits = credit(
                groups,
                rollouts,
                self.config,
                baseline=self.baseline,
                clip_low=self.terms.clip_low,
                clip_high=self.terms.clip_high,
                part_weights=self.part_weights,
                step_weights=self.step_weights,
                token_rewards=self.terms.token_rewards(members, scores),
                environment=self.terms.environment,
            )
        except ValueError as error:
            raise ConfigError(f"[advantage] does not fit these rewards: {error}") from error
        return Advantages(credits=tuple(credits), scores=scores)


@dataclass(frozen=True, slots=True, kw_only=True)
class GaeEstimator(_Stateless):
    """Generalised advantage estimation over a critic's values (PPO)."""

    config: CriticConfig
    whiten: bool
    terms: Terms

    def __call__(self, groups: Sequence[Group], rollouts: Rollouts, score: Score) -> Advantages:
        members = members_of(groups, rollouts)
        scores = score(members)
        members = [rollout for rollout in members if rollout.id in scores]
        values = {rollout.id: scores[rollout.id].values for rollout in members}
        credits = credit_with_critic(
            members,
            {name: tokens for name, tokens in values.items() if tokens is not None},
            self.config,
            whiten=self.whiten,
            clip_low=self.terms.clip_low,
            clip_high=self.terms.clip_high,
            token_rewards=self.terms.token_rewards(members, scores),
        )
        return Advantages(credits=tuple(credits), scores=scores)
