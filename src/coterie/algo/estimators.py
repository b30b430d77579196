"""Phase 3 for a run: groups → credit. GRPO and PPO differ here, and in one term of the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from coterie.algo.advantages import credit
from coterie.algo.baselines import Baseline
from coterie.algo.gae import credit_with_critic
from coterie.algo.returns import kl_in_reward
from coterie.config.objective import AdvantageConfig, CriticConfig
from coterie.errors import ConfigError
from coterie.types import Credit, Group, Prompt, Rollout, RolloutScores

# What a judge expects of a step's prompts before it knows any of the step's rewards.


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptPrediction:
    """Of one prompt."""

    reward: float
    std: float
    """How unsure the judge is of that mean, reward units."""
    region: str | None
    """Leaf of the tree in which the prompt lies, in words; None without a tree."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Predictions:
    """Of one step; empty from a judge that remembers nothing."""

    time: float | None = None
    """Policy time; None without a clock."""
    expected: Mapping[str, PromptPrediction] = field(default_factory=dict)
    """By prompt id."""
    embedded: Sequence[tuple[Prompt, np.ndarray]] = ()
    """Prompts seen for the first time, [E] each: what they mean to the policy, once, as it was then."""


Rollouts = Mapping[str, Rollout]
Scores = Mapping[str, RolloutScores]


NEWS = "groups"
"""Kind of the events that say how groups changed."""
BIASED = "biased_baseline"
"""Kind of the events that warn of a baseline that its own rollout moves."""


class Estimator:
    """Gives credit to the members of groups."""

    @property
    def needs_scores(self) -> bool:
        """Whether the learner has to score the rollouts first."""
        return False

    def __call__(self, groups: Sequence[Group], rollouts: Rollouts, scores: Scores) -> list[Credit]:
        """One credit per member; `scores` is empty where none are needed."""
        raise NotImplementedError

    def foresee(self, groups: Sequence[Group], rollouts: Rollouts) -> Predictions:
        """What is expected of the prompts of `rollouts`, before credit is given: of earlier steps alone."""
        return Predictions()

    def updated(self, metrics: Mapping[str, float]) -> None:
        """Told after each update what the learner measured of it; nothing where every step stands alone."""

    def metrics(self) -> dict[str, float]:
        """What is to be recorded of the last step."""
        return {}

    def news(self) -> list[str]:
        """What a reader should know of how the groups changed in the last step."""
        return []

    def warnings(self) -> list[str]:
        """Reasons to doubt the last step's credit."""
        return []

    def save(self, folder: Path) -> None:
        """Write what a later step depends on into a checkpoint's folder; nothing where every step stands alone."""

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote.

        Raises:
            CheckpointError: it cannot be read.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What is the same for every way of giving credit."""

    clip_low: float
    clip_high: float
    kl_beta: float = 0.0
    """Weight of the k1 KL in each token's reward; 0 = none there."""
    environment: Mapping[str, float] = field(default_factory=dict)
    """Weight of the reward part that is the environment's own, by label: it is earned turn by turn, the rest at the
    last one."""

    def token_rewards(self, groups: Sequence[Group], scores: Scores) -> dict[str, np.ndarray] | None:
        """[C] per rollout id, -β (log π - log π_ref) of each token; None without a KL in the reward."""
        if not self.kl_beta:
            return None
        found: dict[str, np.ndarray] = {}
        for name in (name for group in groups for name in group.members if name in scores):
            one = scores[name]
            if one.reference is None:
                raise ValueError(f"the KL in the reward of rollout {name} needs reference log-probs; there are none")
            found[name] = kl_in_reward(one.logprobs, one.reference, self.kl_beta)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupEstimator(Estimator):
    """Advantages relative to groups; see `coterie.algo.advantages`."""

    config: AdvantageConfig
    terms: Terms
    part_weights: Mapping[str, float]
    step_weights: Mapping[str, float]
    baseline: Baseline | None = None
    """The user's own."""

    @property
    def needs_scores(self) -> bool:
        return self.terms.kl_beta > 0

    def __call__(self, groups: Sequence[Group], rollouts: Rollouts, scores: Scores) -> list[Credit]:
        try:
            return credit(
                groups,
                rollouts,
                self.config,
                baseline=self.baseline,
                clip_low=self.terms.clip_low,
                clip_high=self.terms.clip_high,
                part_weights=self.part_weights,
                step_weights=self.step_weights,
                token_rewards=self.terms.token_rewards(groups, scores),
                environment=self.terms.environment,
            )
        except ValueError as error:
            raise ConfigError(f"[advantage] does not fit these rewards: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class GaeEstimator(Estimator):
    """Advantages by generalised advantage estimation over a critic's values: PPO."""

    config: CriticConfig
    whiten: bool
    terms: Terms

    @property
    def needs_scores(self) -> bool:
        return True

    def __call__(self, groups: Sequence[Group], rollouts: Rollouts, scores: Scores) -> list[Credit]:
        members = [rollouts[name] for group in groups for name in group.members if name in scores]
        values = {rollout.id: scores[rollout.id].values for rollout in members}
        return credit_with_critic(
            members,
            {name: one for name, one in values.items() if one is not None},
            self.config,
            whiten=self.whiten,
            clip_low=self.terms.clip_low,
            clip_high=self.terms.clip_high,
            token_rewards=self.terms.token_rewards(groups, scores),
        )
