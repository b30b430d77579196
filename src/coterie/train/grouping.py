"""Group-aware credit: each rollout against its siblings, the step, its prompt's past, its region and all prompts.

The estimator is pure (`coterie.algo.grouping`); here it meets prompts, the policy's embeddings and checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from coterie.algo.grouping.allocation import SOLVED, Allocation, allocate, solved_regions, teaching_signal
from coterie.algo.grouping.features import FeatureMap
from coterie.algo.grouping.heb import Explanation, GroupAwareBaseline, Lesson
from coterie.algo.grouping.presets import Settings
from coterie.algo.grouping.rollouts import Rollouts
from coterie.algo.grouping.state import State, join, pick
from coterie.algo.returns import returns_to_go
from coterie.config.grouping import GroupingConfig
from coterie.errors import CheckpointError, ConfigError
from coterie.runs.durable import json_dumps, write_file
from coterie.train.credit import Judge, Scores, Terms
from coterie.train.foresight import Expectation, Foresight
from coterie.types import Credit, Group, Prompt, Rollout

Embed = Callable[[Sequence[Sequence[int]]], np.ndarray]
"""Token ids of prompts → [P, D]."""

ARRAYS, FACTS = "grouping.safetensors", "grouping.json"
SAMPLE = 128
"""Training prompts on which the features are fitted."""


def settings_of(config: GroupingConfig) -> Settings:
    """The estimator's numbers.

    Raises:
        ValueError: they do not fit each other.
    """
    settings = Settings(
        bounds=None if config.rewards is None else (config.rewards[0], config.rewards[1]),
        memory=config.memory,
        prompt_memory=config.prompt_memory,
        max_leaves=config.max_leaves,
        min_weight=config.min_weight,
        refit_every=config.refit_every,
        unit_scale=config.unit_scale,
        weighted=config.weights != "none",
    )
    for name in config.without:
        settings = settings.without(name)
    return settings


def check(config: GroupingConfig) -> None:
    """Whether the preset can be had without what is left out.

    Raises:
        ConfigError: it cannot.
    """
    try:
        GroupAwareBaseline((), preset=config.preset, settings=settings_of(config))
    except ValueError as error:
        raise ConfigError(f"[grouping]: {error}") from None


class PromptFeatures:
    """Features of prompts, computed once each and kept: what a prompt meant when it was first seen.

    Args:
        prompts: the training prompts.
        token_ids: prompt id → what the policy is asked.
        embed: None leaves the embedding out.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        token_ids: Mapping[str, Sequence[int]],
        embed: Embed | None,
        *,
        dimensions: int,
        seed: int,
    ) -> None:
        self.prompts = {prompt.id: prompt for prompt in prompts}
        self.token_ids, self.embed = token_ids, embed
        self.dimensions, self.seed = dimensions, seed
        self.rows: dict[str, np.ndarray] = {}
        self.fresh: list[tuple[Prompt, np.ndarray]] = []
        """Embeddings that nobody has stored yet."""
        self._map: FeatureMap | None = None

    @property
    def map(self) -> FeatureMap:
        """Fitted on the first use, with the policy as it is then: before the first step."""
        if self._map is None:
            names = list(self.prompts)[:: max(1, len(self.prompts) // SAMPLE)][:SAMPLE]
            self._map = FeatureMap.fit(**self._facts(names), dims=self.dimensions, seed=self.seed)
        return self._map

    def of(self, names: Sequence[str]) -> np.ndarray:
        """[n, F] one row per prompt id."""
        fresh = [name for name in dict.fromkeys(names) if name not in self.rows]
        if fresh:
            fitted, facts = self.map, self._facts(fresh)
            self.rows |= dict(zip(fresh, fitted.apply(**facts), strict=True))
            self.fresh += zip([self.prompts[name] for name in fresh], facts.get("embeddings", ()), strict=False)
        return np.stack([self.rows[name] for name in names])

    def _facts(self, names: Sequence[str]) -> dict[str, Any]:
        prompts = [self.prompts[name] for name in names]
        facts: dict[str, Any] = {
            "texts": [prompt.messages[-1]["content"] for prompt in prompts],
            "tasks": [prompt.task for prompt in prompts],
        }
        if self.embed is not None:
            facts["embeddings"] = self.embed([self.token_ids[name] for name in names])
        return facts

    def state(self) -> State:
        arrays, facts = self.map.state()
        rows = np.stack(list(self.rows.values())) if self.rows else np.zeros((0, len(self.map.columns)))
        return {**arrays, "rows": rows}, {**facts, "names": list(self.rows)}

    def load(self, state: State) -> None:
        arrays, facts = state
        rows = arrays["rows"]
        self.rows = dict(zip(facts["names"], rows, strict=True))
        self._map = FeatureMap.load(({key: value for key, value in arrays.items() if key != "rows"}, facts))


class GroupAwareJudge(Judge):
    """Advantages from a baseline that knows more than the group.

    Args:
        part_weights: weight of each reward part by its label; with `per_part` each has a model of its own.
        reward, reference: names of what the statistics belong to.
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
    ) -> None:
        self.config, self.terms, self.features, self.seed = config, terms, features, seed
        self.weights = dict(part_weights) if config.per_part else {"": 1.0}
        self.versions = {"reward": reward, "reference": reference}
        self.step = 0
        self.lessons: dict[str, Lesson] = {}
        self.importance: dict[str, float] = {}
        self._models: dict[str, GroupAwareBaseline] | None = None
        check(config)

    @property
    def models(self) -> dict[str, GroupAwareBaseline]:
        """One estimator per part of the reward, or one for the whole, named by an empty text."""
        if self._models is None:
            self._models = {
                label: GroupAwareBaseline(
                    self.features.map.columns,
                    preset=self.config.preset,
                    settings=settings_of(self.config),
                    seed=self.seed,
                    **self.versions,
                )
                for label in self.weights
            }
        return self._models

    @property
    def needs_scores(self) -> bool:
        return self.config.weights == "score_norm" or self.terms.kl_beta > 0

    def __call__(self, groups: Sequence[Group], rollouts: Mapping[str, Rollout], scores: Scores) -> list[Credit]:
        names = [name for group in groups for name in group.members]
        if not names:
            self.lessons = {}
            return []
        totals = dict(zip(names, (reward for group in groups for reward in group.rewards), strict=True))
        members = [rollouts[name] for name in names]
        advantages, contributions = np.zeros(len(names)), [dict[str, float]() for _ in names]
        for label, weight in self.weights.items():
            rewards = [totals[one.id] if not label else one.reward_parts.get(label) for one in members]
            seen = self._rows(members, [np.nan if value is None else value for value in rewards], scores)
            model = self.models[label]
            try:
                explained = model.explain(seen)
            except ValueError as error:
                raise ConfigError(f"grouping.rewards = {self.config.rewards}: {error}") from None
            advantages += weight * np.nan_to_num((seen.rewards - explained.baselines) / model.scale)
            _add_shares(contributions, explained, model.scale, label)
            self.lessons[label] = model.observe(seen)
        self.step += 1
        penalties = self.terms.token_rewards(groups, scores)
        return [
            self._credit(one, float(value), shares, None if penalties is None else penalties.get(one.id))
            for one, value, shares in zip(members, advantages, contributions, strict=True)
        ]

    def _rows(self, members: Sequence[Rollout], rewards: Sequence[float], scores: Scores) -> Rollouts:
        prompts = [one.context.prompt_id for one in members]
        weights = None
        if self.config.weights == "length":
            weights = np.array([max(one.trained_tokens, 1) for one in members], dtype=np.float64)
        elif self.config.weights == "score_norm":
            norms = [scores[one.id].score_norms if one.id in scores else None for one in members]
            weights = np.array([0.0 if one is None else float(one.sum()) for one in norms])
        return Rollouts(
            prompts=tuple(prompts),
            rewards=np.array(rewards, dtype=np.float64),
            features=self.features.of(prompts),
            time=float(self.step),
            weights=weights,
        )

    def _credit(
        self, rollout: Rollout, advantage: float, shares: Mapping[str, float], penalty: np.ndarray | None
    ) -> Credit:
        value: float | tuple[float, ...] = advantage * self.importance.get(rollout.context.prompt_id, 1.0)
        if penalty is not None:
            value = tuple((value + returns_to_go(penalty)).tolist())
        return Credit(
            rollout_id=rollout.id,
            advantage=value,
            clip_low=self.terms.clip_low,
            clip_high=self.terms.clip_high,
            contributions=dict(shares),
        )

    def choose(self, candidates: Sequence[Prompt], *, prompts: int, rollouts: int) -> tuple[list[Prompt], list[int]]:
        """Which of the candidates to sample in this step, and how many rollouts each deserves: decided before any of
        them is sampled, from what is expected of them."""
        model = next(iter(self.models.values()))
        names = tuple(prompt.id for prompt in candidates)
        features = self.features.of(names)
        expected, _ = model.expect(names, features, float(self.step))
        bounds = model.range or (0.0, 1.0)
        level = bounds[0] + SOLVED * (bounds[1] - bounds[0])
        found: Allocation = allocate(
            teaching_signal(expected, bounds),
            prompts=prompts,
            rollouts=rollouts,
            least=self.config.least,
            most=self.config.most,
            review=self.config.review,
            solved=solved_regions(expected, _regions(model, features), level),
            counters=("rollouts", self.seed, self.step),
        )
        chosen = [candidates[index] for index in found.chosen]
        self.importance = {}
        if self.config.uniform:
            self.importance = {one.id: float(w) for one, w in zip(chosen, found.weights, strict=True)}
        return chosen, [int(count) for count in found.rollouts]

    def foresee(self, groups: Sequence[Group], rollouts: Mapping[str, Rollout]) -> Foresight:
        """Expected rewards and regions of all prompts of a step, those of groups first, as credit will see them."""
        grouped = dict.fromkeys(rollouts[name].context.prompt_id for group in groups for name in group.members)
        names = tuple(dict.fromkeys((*grouped, *(one.context.prompt_id for one in rollouts.values()))))
        if not names:
            return Foresight(time=float(self.step))
        if grouped:
            self.features.of(tuple(grouped))
        features = self.features.of(names)
        fresh, self.features.fresh = self.features.fresh, []
        means, variances = np.zeros(len(names)), np.zeros(len(names))
        for label, weight in self.weights.items():
            mean, variance = self.models[label].expect(names, features, float(self.step))
            means, variances = means + weight * mean, variances + weight**2 * variance
        model = next(iter(self.models.values()))
        ranged = all(one.range is not None for one in self.models.values())
        said = zip(names, means, np.sqrt(variances), _rules(model, features), strict=True)
        expected = {name: Expectation(reward=float(m), std=float(s), region=rule) for name, m, s, rule in said}
        return Foresight(time=float(self.step), expected=expected if ranged else {}, embedded=fresh)

    def metrics(self) -> dict[str, float]:
        """How well the last step was foreseen, by whom, and from which scale."""
        found: dict[str, float] = {}
        for label, lesson in self.lessons.items():
            start = f"grouping/{label}/" if label else "grouping/"
            if not lesson.rollouts:
                continue
            model = self.models[label]
            found |= {f"{start}error/{name}": value for name, value in lesson.errors.items()}
            found |= {f"{start}scale/{name}": value for name, value in lesson.scales.items()}
            weights = model.stack.overall()
            found |= {f"{start}weight/{name}": float(w) for name, w in zip(model.experts, weights, strict=True)}
            found |= {f"{start}power": lesson.power, f"{start}bias": lesson.bias, f"{start}unit": model.scale}
        return found

    def news(self) -> list[str]:
        moved = [lesson.redrawn for lesson in self.lessons.values() if lesson.redrawn is not None]
        return [
            f"{verb}: {'; '.join(rules)}"
            for one in moved
            for verb, rules in (("split", one.split), ("merged", one.merged))
            if rules
        ]

    def save(self, folder: Path) -> None:
        parts = {f"model.{label}": model.state() for label, model in self.models.items()}
        arrays, facts = join(features=self.features.state(), **parts)
        save_file({name: array.copy(order="C") for name, array in arrays.items()}, folder / ARRAYS)
        held = {"facts": facts, "step": self.step, "importance": self.importance}
        write_file(folder / FACTS, json_dumps(held).encode())

    def load(self, folder: Path, *, adopt: bool = True) -> None:
        """Continue from a checkpoint.

        Args:
            adopt: widen what is known if the reward or the reference is another than before; False only reads.
        """
        try:
            arrays = load_file(folder / ARRAYS)
            held = json.loads((folder / FACTS).read_text(encoding="utf-8"))
            state = arrays, held["facts"]
            self.features.load(pick(state, "features"))
            for label, model in self.models.items():
                model.load(pick(state, f"model.{label}"))
                if adopt:
                    model.adopt(**self.versions)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"cannot read the groups in {folder}: {error}") from error
        self.step, self.importance = int(held["step"]), dict(held["importance"])


def _regions(model: GroupAwareBaseline, features: np.ndarray) -> np.ndarray:
    """[n] the leaf of the tree that each prompt lies in; all the same where the preset has no tree."""
    hierarchy = model.hierarchies.get("heb")
    return np.zeros(len(features), dtype=np.int64) if hierarchy is None else hierarchy.tree.locate(features)


def _rules(model: GroupAwareBaseline, features: np.ndarray) -> list[str | None]:
    """[n] the region of each prompt in words; None where the preset has no tree."""
    hierarchy = model.hierarchies.get("heb")
    if hierarchy is None:
        return [None] * len(features)
    leaves = hierarchy.tree.locate(features)
    words = {int(leaf): hierarchy.tree.rule(int(leaf), model.columns) for leaf in np.unique(leaves)}
    return [words[int(leaf)] for leaf in leaves]


def _add_shares(into: list[dict[str, float]], explained: Explanation, scale: float, label: str) -> None:
    """What each scale says of a rollout, in units of the advantage."""
    for name, values in explained.scales.items():
        key = f"{label}/{name}" if label else name
        for shares, value in zip(into, values, strict=True):
            if np.isfinite(value):
                shares[key] = float(value / scale)
