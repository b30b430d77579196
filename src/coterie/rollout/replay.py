"""Replay of past groups: the buffer that keeps them, and the selection of those that join a step.

A group is kept whole, with the credit that it was given: its statistics are its own (as in RePO, arXiv 2506.09340). It
joins no fresh group's mean, and what learns from rewards (`coterie.grouping.estimator`) saw it once, when it was fresh.
New is only the importance ratio π_θ / π_sampler, to the log-probs recorded when it was sampled; see `Learner.update`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from coterie.config.schema import ReplayConfig
from coterie.grouping.allocation import capped_shares, systematic_sample
from coterie.rng import generator
from coterie.rollout.replay_groups import ReplayGroup, read, write
from coterie.stats import Floats, Ints
from coterie.types import Credit, Group, Rollout, RolloutScores

# The selection of past groups: whole groups, with their own statistics, while the policy is near.


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PastGroup:
    """A recorded group as the selection reads it. Its rewards stay with it: they never join a fresh group's mean."""

    key: str
    version: int
    """Policy version that sampled it."""
    reward: str
    """Name of the reward function that scored it."""
    log_ratios: Floats
    """[G] mean per-token log(pi_now / pi_sampler) of each rollout; its exponential is the geometric ratio."""
    advantages: Floats
    """[G] as they were credited."""


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Chosen groups, with the chance each had."""

    chosen: Ints
    """[K] places in the sequence given, ascending."""
    inclusion: Floats
    """[K]"""


def replayable(
    group: PastGroup, *, version: int, reward: str, max_age: int = 4, min_ratio: float = 0.5, max_ratio: float = 2.0
) -> bool:
    """True for a past group that is not stale, was scored by the reward in force, and has the geometric ratio of every
    rollout within [min_ratio, max_ratio].

    Every rollout, because a group without one of its members is another group with other statistics.
    """
    ratios = np.exp(np.clip(group.log_ratios, -20.0, 20.0))
    return bool(
        0 < version - group.version <= max_age
        and group.reward == reward
        and np.isfinite(group.log_ratios).all()
        and ((ratios >= min_ratio) & (ratios <= max_ratio)).all()
    )


def select_replay(
    groups: Sequence[PastGroup],
    count: int,
    *,
    version: int,
    reward: str,
    max_age: int = 4,
    min_ratio: float = 0.5,
    max_ratio: float = 2.0,
    half_life: float = 2.0,
    counters: tuple[str | int, ...],
) -> Selection:
    """At most `count` replayable groups, likelier the more surprising and the fresher they are.

    Priority is mean |advantage| · 2^(-age / half_life); a group that credits nothing is never replayed.

    Args:
        version, reward: those in force now.
        max_age: greatest age, in policy versions.
        min_ratio, max_ratio: limits of the geometric ratio.
        counters: name the draw; equal counters, equal draw.
    """
    ages = np.array([version - group.version for group in groups], dtype=np.float64)
    surprise = np.array(
        [np.abs(np.nan_to_num(group.advantages)).mean() if group.advantages.size else 0 for group in groups]
    )
    able = partial(
        replayable, version=version, reward=reward, max_age=max_age, min_ratio=min_ratio, max_ratio=max_ratio
    )
    fit = np.array([able(group) for group in groups], dtype=bool)
    open_to = np.flatnonzero(fit & (surprise > 1e-12)) if len(groups) else np.zeros(0, dtype=np.int64)
    count = min(count, open_to.size)
    if count <= 0:
        return Selection(np.zeros(0, dtype=np.int64), np.zeros(0))
    inclusion = capped_shares(surprise[open_to] * np.exp2(-ages[open_to] / half_life), float(count), 1.0)
    drawn = systematic_sample(inclusion, count, generator("replay", *counters))
    return Selection(open_to[drawn], inclusion[drawn])


REPLAYED = "replay"
"""Kind of the events that name the groups that were replayed."""
LEAST = 1e-12
"""A mean |advantage| below this is none: the group's gradient is zero, whatever the ratio."""

Scores = Mapping[str, RolloutScores]
Score = Callable[[Sequence[Rollout]], Scores]
"""Token scores of rollouts under the present policy, by their ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """Past groups that join one step."""

    rollouts: Mapping[str, Rollout] = field(default_factory=dict)
    credits: tuple[Credit, ...] = ()
    scores: Scores = field(default_factory=dict)
    """Of these rollouts, and of those of candidates that did not join."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    event: str = ""
    """The groups, their age and their distance from the policy, as a line; empty when there are none."""

    def merge(self, scores: Scores | None) -> Scores | None:
        """The fresh rollouts' scores and these. None stays None: the learner then scores whatever it needs."""
        return None if scores is None else {**scores, **self.scores}


class ReplayBuffer:
    """The memory of past groups, at most `capacity` of them.

    Args:
        seed: of the run; a draw is a function of it and of the policy version.
        reward: names what scores; groups that something else scored are forgotten.
        reference: names the policy that a KL is taken to at the start of the run; so are those credited beside another.
        renewed_every: steps after which that policy is renewed; 0 = never.
    """

    def __init__(
        self, config: ReplayConfig, *, seed: int, reward: str = "", reference: str = "", renewed_every: int = 0
    ) -> None:
        self.config, self.seed = config, seed
        self.names = {"reward": reward, "reference": reference}
        self.renewed_every = renewed_every
        self.kept: list[ReplayGroup] = []

    def draw(self, version: int, score: Score) -> Replayed:
        """The groups that join the step of this policy version.

        Drawn twice by the same priority, mean |advantage| · 2^(-age / half_life). First those that may join, before
        anything is known of their present log-probs, so that the pass that computes these has at most
        `groups · candidates` groups; then those that do, of the ones whose every rollout is within `low` and `high`.

        Args:
            version: of the policy that the update starts from.
            score: asked for the candidates only, and not at all where there are none.
        """
        if not self.config.groups:
            return Replayed()
        self.kept = [group for group in self.kept if version - group.version <= self.config.max_age]
        unscored = [self._past_group(group, {}) for group in self.kept]
        first_draw = self._select(unscored, self.config.groups * self.config.candidates, version, "look")
        candidates = [self.kept[k] for k in first_draw.chosen]
        scores = score([rollout for group in candidates for rollout in group.rollouts]) if candidates else {}
        scored = [self._past_group(group, scores) for group in candidates]
        second_draw = self._select(scored, self.config.groups, version, "join")
        weights = self._weights(first_draw.inclusion[second_draw.chosen] * second_draw.inclusion)
        chosen = [candidates[k] for k in second_draw.chosen]
        return Replayed(
            rollouts={rollout.id: rollout for group in chosen for rollout in group.rollouts},
            credits=tuple(
                credit.scaled(weight) for group, weight in zip(chosen, weights, strict=True) for credit in group.credits
            ),
            scores=scores,
            metrics={
                "replay/kept": float(len(self.kept)),
                "replay/rejected": float(sum(not self._able(version)(group) for group in scored)),
                **_measures([scored[k] for k in second_draw.chosen], version),
            },
            event="; ".join(_description(scored[k], version) for k in second_draw.chosen),
        )

    def keep(
        self, step: int, groups: Sequence[Group], rollouts: Mapping[str, Rollout], credits: Sequence[Credit]
    ) -> None:
        """Remember a step's fresh groups, once it is done, and forget those of least priority beyond the capacity.

        Args:
            step: steps done, this one included: the version of the policy from here on.
            credits: of the rollouts that were trained on.
        """
        if not self.config.groups:
            return
        if self.renewed_every and step % self.renewed_every == 0:
            self.kept = []  # the reference is another from here on
            return
        by_id = {credit.rollout_id: credit for credit in credits}
        fresh = [ReplayGroup.of(group, rollouts, by_id) for group in groups]
        self.kept += [group for group in fresh if group.surprise > LEAST]
        ages = np.array([step - group.version for group in self.kept])
        priority = np.array([group.surprise for group in self.kept]) * np.exp2(-ages / self.config.half_life)
        best = np.argsort(-priority, kind="stable")[: self.config.capacity]
        self.kept = [self.kept[k] for k in np.sort(best)]

    def _select(self, groups: Sequence[PastGroup], count: int, version: int, what: str) -> Selection:
        return select_replay(
            groups,
            count,
            half_life=self.config.half_life,
            counters=(self.seed, version, what),
            **self._rule(version),
        )

    def _able(self, version: int) -> partial[bool]:
        return partial(replayable, **self._rule(version))

    def _rule(self, version: int) -> dict[str, Any]:
        config = self.config
        return {
            "version": version,
            "reward": self.names["reward"],
            "max_age": config.max_age,
            "min_ratio": config.min_ratio,
            "max_ratio": config.max_ratio,
        }

    def _past_group(self, group: ReplayGroup, scores: Scores) -> PastGroup:
        """The group as the selection reads it; without scores, as if the policy had not moved."""
        ratios = [
            _log_ratio(rollout, scores[rollout.id]) if rollout.id in scores else 0.0 for rollout in group.rollouts
        ]
        return PastGroup(
            key=group.key,
            version=group.version,
            reward=self.names["reward"],
            log_ratios=np.array(ratios, dtype=np.float64),
            advantages=group.advantages,
        )

    def _weights(self, inclusion: np.ndarray) -> np.ndarray:
        """[K] factor on the advantages of each chosen group.

        1 by default: a group counts as often as it is drawn, so replay tilts the objective towards what surprised, on
        purpose. With `unbiased`, count / (kept · chance) (Horvitz and Thompson 1952): the expected sum is `count` times
        the mean over all kept groups, where those outside the limits give 0.
        """
        if not self.config.unbiased:
            return np.ones(len(inclusion))
        kept = len(self.kept)
        return min(self.config.groups, kept) / (kept * inclusion)

    def save(self, folder: Path) -> None:
        """Write the memory into a checkpoint's folder; nothing where replay is off."""
        if self.config.groups:
            write(folder, self.kept, self.names)

    def load(self, folder: Path) -> str:
        """Restore what `save` wrote, unless it was credited by another reward or beside another reference: such a
        memory is emptied, and the text says so.

        Raises:
            CheckpointError: it cannot be read.
        """
        if not self.config.groups:
            return ""
        self.kept, before = read(folder)
        changed = [name for name, now in self.names.items() if before.get(name) != now]
        if not changed:
            return ""
        dropped, self.kept = len(self.kept), []
        return f"the {' and the '.join(changed)} changed since these were credited: {dropped} past groups are forgotten"


def _log_ratio(rollout: Rollout, scores: RolloutScores) -> float:
    """Mean log(π_now / π_sampler) of its tokens."""
    sampled = np.concatenate([np.asarray(turn.sampler_logprobs, dtype=np.float64) for turn in rollout.turns])
    return float(np.mean(scores.logprobs - sampled))


def _measures(chosen: Sequence[PastGroup], version: int) -> dict[str, float]:
    metrics = {"replay/groups": float(len(chosen))}
    if chosen:
        ratios = np.exp(np.concatenate([group.log_ratios for group in chosen]))
        metrics["replay/age"] = float(np.mean([version - group.version for group in chosen]))
        metrics |= {"replay/ratio_min": float(ratios.min()), "replay/ratio_max": float(ratios.max())}
    return metrics


def _description(group: PastGroup, version: int) -> str:
    low, high = np.exp(group.log_ratios.min()), np.exp(group.log_ratios.max())
    return f"{group.key} of {len(group.log_ratios)}, age {version - group.version}, ratio {low:.3g} to {high:.3g}"
