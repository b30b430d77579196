"""Group-aware advantages: baselines from siblings, the step, the prompt's history and similar prompts.

The model is pure (`coterie.grouping.model`); here it meets rollouts and checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from coterie.algo.estimators import Advantages, PromptPrediction, Score, Terms, members_of
from coterie.algo.returns import returns_to_go
from coterie.algo.token_baseline import score_norms
from coterie.algo.turns import Episode, broadcast_to_tokens, episode_of, given_by_environment, has_states
from coterie.config.advantage import GroupingConfig
from coterie.config.user_functions import user_function
from coterie.errors import ConfigError
from coterie.grouping.allocation import Allocation, Prospects, allocate
from coterie.grouping.answer_lengths import AnswerLengths
from coterie.grouping.arrays import Rollouts, join, pick
from coterie.grouping.custom import CustomBaseline
from coterie.grouping.features import PromptFeatures
from coterie.grouping.model import GroupAwareBaseline, UpdateStats
from coterie.grouping.presets import Settings
from coterie.grouping.regions import rules
from coterie.grouping.reward_models import WHOLE, PartwiseAdvantages, PartwiseBaseline
from coterie.runs.state_files import StateFiles
from coterie.types import Credit, Group, Prompt, Rollout


def custom_baseline(config: GroupingConfig) -> Callable[..., Any] | None:
    """The user's function, where the preset is one."""
    return user_function(config.preset) if ":" in config.preset else None


def custom_key(config: GroupingConfig) -> Callable[[Prompt], Any] | None:
    """The user's scale."""
    return user_function(config.key) if config.key else None


def check(config: GroupingConfig) -> None:
    """Refuse a preset that cannot do without what is left out."""
    try:
        GroupAwareBaseline((), preset=config.preset, settings=Settings(config=config))
    except ValueError as error:
        raise ConfigError(f"[grouping]: {error}") from None


# Weights of rollouts: a proxy of the squared norm of their score, from the sampler's log-probs.


def probability_weight(logprobs: Sequence[float]) -> float:
    """Σ_t (1 - p_t)² over the sampled tokens; `logprobs` [C] are log p_t, at most 0.

    The squared score norm up to a factor of two, for free; see `score_norms`. A token that could not have been another
    one counts nothing, however long the answer.

    >>> probability_weight([0.0, float(np.log(0.5))])
    0.25
    """
    return float(score_norms(logprobs).sum())


FILES = StateFiles("grouping", "the groups")
ROUNDING = 1e-9
"""A baseline that moves by less, in reward ranges, has not moved."""
FORMAT = 4
"""Of the two files in a checkpoint; another one is refused."""


class GroupAwareEstimator:
    """Advantages from a baseline that knows more than the group.

    Args:
        part_weights: weight of each reward part by its label; with `per_reward` each has a model of its own.
        reward, reference: names of what the statistics belong to.
        baseline: the user's function, where the preset is one.
        lag: versions between the policy that samples a step's rollouts and the one that is updated by them.
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
        baseline: CustomBaseline | None = None,
        lag: int = 0,
    ) -> None:
        self.config, self.terms, self.features, self.seed, self.lag = config, terms, features, seed, lag
        self.weights = dict(part_weights) if config.per_reward else dict(WHOLE)
        self.baseline = baseline
        self.versions = {"reward": reward, "reference": reference}
        self.lengths = AnswerLengths(config.decay_steps)
        self.step = 0
        """Steps learned from."""
        self._model: PartwiseBaseline | None = None

    @property
    def model(self) -> PartwiseBaseline:
        """The models of the reward parts, made on the first use, when the features are known."""
        if self._model is None:
            self._model = PartwiseBaseline(
                self.features.map.columns,
                self.weights,
                preset=self.config.preset,
                settings=Settings(config=self.config),
                seed=self.seed,
                custom=self.baseline,
                **self.versions,
            )
        return self._model

    @property
    def time(self) -> float:
        """Time of the next step, by which evidence fades: it counts from the policy that sampled, which is the same one
        for the first lag + 1 steps."""
        return float(max(0, self.step - self.lag))

    def __call__(self, groups: Sequence[Group], rollouts: Mapping[str, Rollout], score: Score) -> Advantages:
        time, predicted = self.time, self.predict(groups, rollouts)
        members = members_of(groups, rollouts)
        scores = self.terms.scores(members, score)
        if not members:
            return replace(predicted, scores=scores, metrics={"grouping/time": time})
        columns = self._columns(members, [reward for group in groups for reward in group.rewards])
        try:
            parts = self.model.explain(columns, self._episodes(members, columns))
            warnings = self._bias_warnings(columns) if self.baseline is not None and self.step == 0 else ()
        except ValueError as error:
            raise ConfigError(f"[grouping]: {error}") from error
        stats = self.model.observe(columns)
        names, lengths = zip(*((r.context.prompt_id, r.context.completion_length) for r in members), strict=True)
        self.lengths.observe(names, lengths, time)
        self.step += 1
        weights = [group.weight for group in groups for _ in group.members]
        penalties = self.terms.token_rewards(members, scores) or {}
        metrics = self.model.metrics(stats) | {"time": time} | parts.metrics
        return replace(
            predicted,
            credits=tuple(self._credits(members, weights, parts, penalties)),
            scores=scores,
            metrics={f"grouping/{name}": value for name, value in metrics.items()},
            events=tuple(_changes(stats)),
            warnings=tuple(warnings),
        )

    def _bias_warnings(self, columns: Mapping[str, Rollouts]) -> list[str]:
        """A line if a rollout's own reward moves the user's baseline for it; measured on the first step."""
        influence = max(self_influence(self.model.estimators[label], part) for label, part in columns.items())
        if influence <= ROUNDING:
            return []
        return [
            f"grouping.preset = {self.config.preset!r}: changing a rollout's reward from one end of the range to the "
            f"other moves its own baseline by up to {influence:.3g} of the range, so the gradient is biased; leave a "
            "rollout's own reward out of its baseline, and give the same numbers for the same view"
        ]

    def _columns(self, members: Sequence[Rollout], totals: Sequence[float]) -> dict[str, Rollouts]:
        """The step as columns, once for each part of the reward."""
        prompts = tuple(rollout.context.prompt_id for rollout in members)
        features, weights = self.features.of(prompts), sampled_weights(members, self.config.weights)

        def of(label: str) -> Rollouts:
            rewards = [rollout.reward_parts.get(label) for rollout in members] if label else totals
            return Rollouts(
                prompts=prompts,
                rewards=np.array([np.nan if value is None else value for value in rewards], dtype=np.float64),
                features=features,
                time=self.time,
                weights=weights,
            )

        return {label: of(label) for label in self.weights}

    def _episodes(self, members: Sequence[Rollout], columns: Mapping[str, Rollouts]) -> dict[str, list[Episode]] | None:
        """The step turn by turn, once for each part of the reward; None in an environment of one turn."""
        if not any(map(has_states, members)):
            return None

        def of(label: str, totals: np.ndarray) -> list[Episode]:
            given = given_by_environment(self.terms.environment, label)
            return [episode_of(rollout, float(total), given) for rollout, total in zip(members, totals, strict=True)]

        return {label: of(label, part.rewards) for label, part in columns.items()}

    def _credits(
        self,
        members: Sequence[Rollout],
        weights: Sequence[float],
        parts: PartwiseAdvantages,
        penalties: Mapping[str, np.ndarray],
    ) -> Iterator[Credit]:
        """One credit per member.

        Args:
            weights: [B] importance weight of each rollout's group.
            penalties: [C] per rollout id, the KL in the reward of each token.
        """
        for k, (rollout, weight) in enumerate(zip(members, weights, strict=True)):
            value: float | tuple[float, ...] = float(parts.advantages[k])
            shares = {name: float(values[k]) for name, values in parts.shares.items() if np.isfinite(values[k])}
            states = {name: broadcast_to_tokens(offsets[k], rollout) for name, offsets in parts.states.items()}
            shares |= {name: float(offsets.mean()) for name, offsets in states.items()}
            if any(offsets.any() for offsets in states.values()):
                value = tuple((weight * (value - np.sum(list(states.values()), axis=0))).tolist())
            else:
                value *= weight
            if rollout.id in penalties:
                value = tuple((np.asarray(value) + returns_to_go(penalties[rollout.id])).tolist())
            yield Credit(
                rollout_id=rollout.id,
                advantage=value,
                clip_low=self.terms.clip_low,
                clip_high=self.terms.clip_high,
                contributions=shares,
            )

    def allocate(
        self, candidates: Sequence[Prompt], *, rollouts: int, tokens: Mapping[str, int], max_tokens: int
    ) -> Allocation:
        """Allocation of a step's rollouts to candidates by worth over cost, before any of them is sampled; the weights
        are 1 unless `config.unbiased` asks for them.

        Args:
            rollouts: how many in all.
            tokens: of each prompt, those alone that no other prompt shares.
            max_tokens: of an answer, before any was seen.
        """
        names = tuple(prompt.id for prompt in candidates)
        drawn = allocate(
            self.prospects(names, np.array([tokens[name] for name in names], dtype=np.float64), max_tokens),
            rollouts=rollouts,
            least=self.config.least,
            most=self.config.most,
            skip=self.config.skip,
            review=self.config.review,
            counters=("rollouts", self.seed, self.step),
        )
        return drawn if self.config.unbiased else replace(drawn, weights=np.ones(drawn.chosen.size))

    def success(self, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        """[N] expected reward from history as its place between the smallest and the largest, and [N] its variance."""
        model = self.model.first
        expected, variance = model.expect(names, self.features.of(names), self.time)
        low, high = model.range or (0.0, 1.0)
        return np.clip((expected - low) / (high - low), 0.0, 1.0), variance / (high - low) ** 2

    def prospects(self, names: tuple[str, ...], prompt_tokens: np.ndarray, max_tokens: int) -> Prospects:
        """What history says of prompts; [N] tokens of each, see `allocate`."""
        success, variance = self.success(names)
        return Prospects(
            success=success,
            variance=variance,
            prompt_cost=np.maximum(prompt_tokens, 1.0),
            rollout_cost=self.config.answer_cost * self.lengths.expect(names, self.time, max_tokens),
        )

    def predict(self, groups: Sequence[Group], rollouts: Mapping[str, Rollout]) -> Advantages:
        """Expected rewards and regions of all prompts of a step, those of groups first, without credits: no reward of
        the step is read."""
        grouped = dict.fromkeys(rollout.context.prompt_id for rollout in members_of(groups, rollouts))
        names = tuple(dict.fromkeys((*grouped, *(rollout.context.prompt_id for rollout in rollouts.values()))))
        if not names:
            return Advantages(time=self.time)
        if grouped:
            self.features.of(tuple(grouped))
        features = self.features.of(names)
        embedded, self.features.fresh = self.features.fresh, []
        expected = self.model.expect(names, features, self.time)
        if expected is None:
            return Advantages(time=self.time, embedded=embedded)
        means, variances = expected
        rows = zip(names, means, np.sqrt(variances), rules(self.model.first, features), strict=True)
        predictions = {
            name: PromptPrediction(reward=float(mean), std=float(std), region=rule) for name, mean, std, rule in rows
        }
        return Advantages(time=self.time, predictions=predictions, embedded=embedded)

    def save(self, folder: Path) -> None:
        """Write the features and the model into a checkpoint's folder."""
        parts = {"features": self.features, "model": self.model, "lengths": self.lengths}
        arrays, facts = join(**{name: part.state() for name, part in parts.items()})
        FILES.write(folder, arrays, {"format": FORMAT, "facts": facts, "step": self.step})

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint; where the reward or the reference is another than before, what is known is
        widened.
        """
        self.read(folder)
        self.model.rebind(**self.versions)

    def read(self, folder: Path) -> None:
        """Restore what `save` wrote, as it was."""
        with FILES.reading(folder) as (arrays, saved):
            if saved.get("format") != FORMAT:
                raise ValueError(
                    f"their format is {saved.get('format', 1)}, expected {FORMAT}: another version of coterie wrote "
                    "them; start a new run, or continue with that version"
                )
            state = arrays, saved["facts"]
            self.features.load(pick(state, "features"))
            self.model.load(pick(state, "model"))
            self.lengths.load(pick(state, "lengths"))
            self.step = int(saved["step"])


def _changes(stats: Mapping[str, UpdateStats]) -> Iterator[str]:
    """Changes of the regions where they were drawn anew, a line each."""
    for change in (part.redrawn for part in stats.values()):
        if change is not None:
            for verb, rules in (("split", change.split), ("merged", change.merged)):
                if rules:
                    yield f"{verb}: {'; '.join(rules)}"


def sampled_weights(members: Sequence[Rollout], kind: str) -> np.ndarray | None:
    """[B] weight of each rollout; None where all are alike."""
    if kind == "length":
        return np.array([max(rollout.trained_tokens, 1) for rollout in members], dtype=np.float64)
    if kind == "probability":
        return np.array(
            [probability_weight([p for turn in rollout.turns for p in turn.sampler_logprobs]) for rollout in members]
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
    values = rollouts.rewards[scored]
    low, high = baseline.range or (float(values.min()) - 1.0, float(values.max()) + 1.0)
    before, largest = baseline.predict(rollouts), 0.0
    for k in scored[:PROBES]:
        rewards = rollouts.rewards.copy()
        rewards[k] = low if rewards[k] > (low + high) / 2 else high
        change = baseline.predict(replace(rollouts, rewards=rewards))[k] - before[k]
        largest = max(largest, abs(float(change)) / (high - low))
    return largest
