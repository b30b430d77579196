"""Group-aware credit: each rollout against its siblings, the step, its prompt's past, its region and all prompts.

The estimator is pure (`coterie.grouping`); here it meets rollouts and checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from coterie.algo.estimators import Estimator, Predictions, PromptPrediction, Scores, Terms
from coterie.algo.returns import returns_to_go
from coterie.algo.turns import Episode, broadcast_to_tokens, episode_of, given_by_environment, has_states
from coterie.config.advantage import GroupingConfig
from coterie.config.user_functions import user_function
from coterie.errors import ConfigError
from coterie.grouping.allocation import allocation
from coterie.grouping.arrays import Rollouts, join, pick
from coterie.grouping.custom import CustomBaseline
from coterie.grouping.features import PromptFeatures
from coterie.grouping.model import GroupAwareBaseline, UpdateStats
from coterie.grouping.presets import Settings
from coterie.grouping.regions import rules
from coterie.grouping.reward_models import WHOLE, PartwiseBaseline, PolicyClock, Verdict, trust_factors
from coterie.runs.state_files import StateFiles
from coterie.types import Credit, Group, Prompt, Rollout


def custom_baseline(config: GroupingConfig) -> Callable[..., Any] | None:
    """The user's function, where the preset is one.

    Raises:
        ConfigError: it cannot be had.
    """
    return user_function(config.preset) if ":" in config.preset else None


def custom_key(config: GroupingConfig) -> Callable[[Prompt], Any] | None:
    """The user's scale.

    Raises:
        ConfigError: it cannot be had.
    """
    return user_function(config.key) if config.key else None


def check(config: GroupingConfig) -> None:
    """Whether the preset can be had without what is left out, and the user's own functions at all.

    Raises:
        ConfigError: they cannot.
    """
    custom_baseline(config)
    custom_key(config)
    try:
        GroupAwareBaseline((), preset=config.preset, settings=Settings(config=config))
    except ValueError as error:
        raise ConfigError(f"[grouping]: {error}") from None


# What a rollout counts for: a stand-in for the squared length of its score, from what the sampler said already.


def probability_weight(logprobs: Sequence[float]) -> float:
    """Σ_t (1 - p_t)² over the sampled tokens; `logprobs` [C] are log p_t, at most 0.

    A token's score with respect to the logits is onehot - π, and ‖onehot - π‖² = (1 - p)² + Σ_others π² lies between
    (1 - p)² and 2 (1 - p)². So this is the squared score norm up to a factor of two, for free: a token that could not
    have been another one counts nothing, however long the answer.

    >>> probability_weight([0.0, float(np.log(0.5))])
    0.25
    """
    return float(np.square(np.expm1(np.asarray(logprobs, dtype=np.float64))).sum())


FILES = StateFiles("grouping", "the groups")
ROUNDING = 1e-9
"""A baseline that moves by less, in reward ranges, has not moved."""
FORMAT = 2
"""Of the two files in a checkpoint; another one is refused."""


class GroupAwareEstimator(Estimator):
    """Advantages from a baseline that knows more than the group.

    Args:
        part_weights: weight of each reward part by its label; with `per_reward` each has an estimator of its own.
        reward, reference: names of what the statistics belong to.
        own: the user's baseline, where the preset is one.
    """

    def __init__(
        self,
        config: GroupingConfig,
        *,
        terms: Terms,
        features: PromptFeatures,
        part_weights: Mapping[str, float],
        seed: int,
        reward: str = "",
        reference: str = "",
        own: CustomBaseline | None = None,
    ) -> None:
        self.config, self.terms, self.features, self.seed = config, terms, features, seed
        self.weights = dict(part_weights) if config.per_reward else dict(WHOLE)
        self.own, self.doubts = own, list[str]()
        self.versions = {"reward": reward, "reference": reference}
        self.step, self.clock = 0, PolicyClock()
        self.update_stats: dict[str, UpdateStats] = {}
        self.importance: dict[str, float] = {}
        self.trust: dict[str, float] = {}
        self.judged = 0.0
        self.of_states: dict[str, float] = {}
        self._model: PartwiseBaseline | None = None

    @property
    def model(self) -> PartwiseBaseline:
        """Made on the first use, when the features are known."""
        if self._model is None:
            self._model = PartwiseBaseline(
                self.features.map.columns,
                self.weights,
                preset=self.config.preset,
                settings=Settings(config=self.config),
                seed=self.seed,
                custom=self.own,
                **self.versions,
            )
        return self._model

    @property
    def time(self) -> float:
        """Of the next step: what fades, fades by it."""
        return self.clock.now if self.config.clock == "policy" else float(self.step)

    def updated(self, metrics: Mapping[str, float]) -> None:
        self.clock.advance(metrics.get("moved", 0.0))

    @property
    def needs_scores(self) -> bool:
        return self.config.weights == "score_norm" or self.terms.kl_beta > 0

    def __call__(self, groups: Sequence[Group], rollouts: Mapping[str, Rollout], scores: Scores) -> list[Credit]:
        members = [rollouts[name] for group in groups for name in group.members]
        self.update_stats, self.trust, self.judged, self.of_states = {}, {}, self.time, {}
        self.doubts = []
        if not members:
            return []
        self.trust = self._trust(members)
        seen = self._parts(members, [reward for group in groups for reward in group.rewards], scores)
        try:
            verdict = self.model.explain(seen, self._episodes(members, seen))
            self.doubts = self._doubts(seen) if self.own is not None and self.step == 0 else []
        except ValueError as error:
            raise ConfigError(f"[grouping]: {error}") from error
        self.of_states = verdict.metrics
        self.update_stats = self.model.observe(seen)
        self.step += 1
        return self._credits(members, verdict, self.terms.token_rewards(groups, scores) or {})

    def _doubts(self, seen: Mapping[str, Rollouts]) -> list[str]:
        """Whether the user's baseline reads what it must not: asked on the first step."""
        moved = max(self_influence(self.model.estimators[label], one) for label, one in seen.items())
        if moved <= ROUNDING:
            return []
        return [
            f"grouping.preset = {self.config.preset!r}: changing a rollout's reward from one end of the range to the "
            f"other moves its own baseline by up to {moved:.3g} of the range, so the gradient is biased; leave a "
            "rollout's own reward out of its baseline, and give the same numbers for the same view"
        ]

    def _trust(self, members: Sequence[Rollout]) -> dict[str, float]:
        """Factor of the clip bounds by prompt id, from history alone; empty where every bound is the configured one."""
        if not self.config.trust:
            return {}
        names = list(dict.fromkeys(one.context.prompt_id for one in members))
        variance, prior = self.model.evidence(self.features.of(names), self.time)
        return dict(zip(names, trust_factors(variance, prior, self.config.trust).tolist(), strict=True))

    def _parts(self, members: Sequence[Rollout], totals: Sequence[float], scores: Scores) -> dict[str, Rollouts]:
        """The step as columns, once for each part of the reward."""
        prompts = tuple(one.context.prompt_id for one in members)
        features, weights = self.features.of(prompts), self._weights(members, scores)

        def of(label: str) -> Rollouts:
            rewards = [one.reward_parts.get(label) for one in members] if label else totals
            return Rollouts(
                prompts=prompts,
                rewards=np.array([np.nan if value is None else value for value in rewards], dtype=np.float64),
                features=features,
                time=self.time,
                weights=weights,
            )

        return {label: of(label) for label in self.weights}

    def _episodes(self, members: Sequence[Rollout], seen: Mapping[str, Rollouts]) -> dict[str, list[Episode]] | None:
        """The step turn by turn, once for each part of the reward; None in an environment of one turn."""
        if not any(map(has_states, members)):
            return None

        def of(label: str, totals: np.ndarray) -> list[Episode]:
            given = given_by_environment(self.terms.environment, label)
            return [episode_of(one, float(total), given) for one, total in zip(members, totals, strict=True)]

        return {label: of(label, one.rewards) for label, one in seen.items()}

    def _weights(self, members: Sequence[Rollout], scores: Scores) -> np.ndarray | None:
        """[B] what each rollout counts for."""
        if self.config.weights == "score_norm":
            norms = [scores[one.id].score_norms if one.id in scores else None for one in members]
            return np.array([0.0 if one is None else float(one.sum()) for one in norms])
        return sampled_weights(members, self.config.weights)

    def _credits(
        self, members: Sequence[Rollout], verdict: Verdict, penalties: Mapping[str, np.ndarray]
    ) -> list[Credit]:
        def one(k: int, rollout: Rollout) -> Credit:
            weight = self.importance.get(rollout.context.prompt_id, 1.0)
            value: float | tuple[float, ...] = float(verdict.advantages[k])
            shares = {name: float(values[k]) for name, values in verdict.shares.items() if np.isfinite(values[k])}
            states = {name: broadcast_to_tokens(moved[k], rollout) for name, moved in verdict.states.items()}
            shares |= {name: float(moved.mean()) for name, moved in states.items()}
            if any(moved.any() for moved in states.values()):
                value = tuple((weight * (value - np.sum(list(states.values()), axis=0))).tolist())
            else:
                value *= weight
            if rollout.id in penalties:
                value = tuple((np.asarray(value) + returns_to_go(penalties[rollout.id])).tolist())
            low, high = self.terms.clip_low, self.terms.clip_high
            factor = self.trust.get(rollout.context.prompt_id, 1.0)
            return Credit(
                rollout_id=rollout.id,
                advantage=value,
                clip_low=low if low >= 1 else min(low * factor, 1.0),  # from 1 on there is no lower bound
                clip_high=high * factor,
                contributions=shares,
            )

        return [one(k, rollout) for k, rollout in enumerate(members)]

    def choose(self, candidates: Sequence[Prompt], *, prompts: int, rollouts: int) -> tuple[list[Prompt], list[int]]:
        """Which of the candidates to sample in this step, and how many rollouts each deserves: decided before any of
        them is sampled, from what is expected of them."""
        names = tuple(prompt.id for prompt in candidates)
        found = allocation(
            self.model.first,
            names,
            self.features.of(names),
            config=self.config,
            time=self.time,
            prompts=prompts,
            rollouts=rollouts,
            counters=("rollouts", self.seed, self.step),
        )
        chosen = [candidates[index] for index in found.chosen]
        self.importance = {}
        if self.config.unbiased:
            self.importance = {one.id: float(w) for one, w in zip(chosen, found.weights, strict=True)}
        return chosen, [int(count) for count in found.rollouts]

    def foresee(self, groups: Sequence[Group], rollouts: Mapping[str, Rollout]) -> Predictions:
        """Expected rewards and regions of all prompts of a step, those of groups first, as credit will see them."""
        grouped = dict.fromkeys(rollouts[name].context.prompt_id for group in groups for name in group.members)
        names = tuple(dict.fromkeys((*grouped, *(one.context.prompt_id for one in rollouts.values()))))
        if not names:
            return Predictions(time=self.time)
        if grouped:
            self.features.of(tuple(grouped))
        features = self.features.of(names)
        fresh, self.features.fresh = self.features.fresh, []
        said = self.model.expect(names, features, self.time)
        if said is None:
            return Predictions(time=self.time, embedded=fresh)
        means, variances = said
        found = zip(names, means, np.sqrt(variances), rules(self.model.first, features), strict=True)
        expected = {name: PromptPrediction(reward=float(m), std=float(s), region=rule) for name, m, s, rule in found}
        return Predictions(time=self.time, expected=expected, embedded=fresh)

    def metrics(self) -> dict[str, float]:
        """How well the last step was foreseen, by whom, and from which scale."""
        found = self.model.metrics(self.update_stats) | {"time": self.judged} | self.of_states
        if self.trust:
            factors = list(self.trust.values())
            found |= {"trust/mean": float(np.mean(factors)), "trust/min": min(factors), "trust/max": max(factors)}
        return {f"grouping/{name}": value for name, value in found.items()}

    def warnings(self) -> list[str]:
        return self.doubts

    def news(self) -> list[str]:
        moved = [update_stat.redrawn for update_stat in self.update_stats.values() if update_stat.redrawn is not None]
        return [
            f"{verb}: {'; '.join(rules)}"
            for one in moved
            for verb, rules in (("split", one.split), ("merged", one.merged))
            if rules
        ]

    def save(self, folder: Path) -> None:
        arrays, facts = join(features=self.features.state(), model=self.model.state())
        held = {"format": FORMAT, "facts": facts, "step": self.step, "importance": self.importance}
        FILES.write(folder, arrays, {**held, "clock": self.clock.state()})

    def load(self, folder: Path, *, adopt: bool = True) -> None:
        """Continue from a checkpoint.

        Args:
            adopt: widen what is known if the reward or the reference is another than before; False only reads.
        """
        with FILES.reading(folder) as (arrays, held):
            if held.get("format") != FORMAT:
                raise ValueError(
                    f"their format is {held.get('format', 1)}, expected {FORMAT}: another version of coterie wrote "
                    "them; start a new run, or continue with that version"
                )
            state = arrays, held["facts"]
            self.features.load(pick(state, "features"))
            self.model.load(pick(state, "model"))
            self.step, self.importance = int(held["step"]), dict(held["importance"])
            self.clock.load(held["clock"])
        if adopt:
            self.model.rebind(**self.versions)


def sampled_weights(members: Sequence[Rollout], kind: str) -> np.ndarray | None:
    """[B] what each rollout counts for, as far as it can be told without a pass of the model; None: all alike."""
    if kind == "length":
        return np.array([max(one.trained_tokens, 1) for one in members], dtype=np.float64)
    if kind == "probability":
        return np.array(
            [probability_weight([p for turn in one.turns for p in turn.sampler_logprobs]) for one in members]
        )
    return None


PROBES = 32
"""Rollouts whose reward `self_influence` changes."""


def self_influence(baseline: GroupAwareBaseline, rollouts: Rollouts) -> float:
    """The largest |change| of a rollout's own baseline, in reward ranges, when nothing but its own reward is replaced
    by the other end of the range; over the first `PROBES` scored rollouts. Above rounding, the gradient is biased."""
    scored = np.flatnonzero(np.isfinite(rollouts.rewards))
    if not scored.size:
        return 0.0
    seen = rollouts.rewards[scored]
    low, high = baseline.range or (float(seen.min()) - 1.0, float(seen.max()) + 1.0)
    before, largest = baseline.predict(rollouts), 0.0
    for k in scored[:PROBES]:
        rewards = rollouts.rewards.copy()
        rewards[k] = low if rewards[k] > (low + high) / 2 else high
        moved = baseline.predict(replace(rollouts, rewards=rewards))[k] - before[k]
        largest = max(largest, abs(float(moved)) / (high - low))
    return largest
