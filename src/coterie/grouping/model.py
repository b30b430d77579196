"""Group-aware baseline: the experts, their mixture and their state behind predict and observe."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from coterie.algo.turns import Prior
from coterie.grouping.arrays import Groups, Rollouts, State, group_rollouts, join, pick
from coterie.grouping.custom import CustomBaseline, call_baseline, view_of
from coterie.grouping.experts import Mixture, PromptTracker, batch_mean, buckets, group_mean, james_stein, sibling_mean
from coterie.grouping.features import Column
from coterie.grouping.hierarchy import Hierarchy, Prediction, RunningSums, TreeChange, reward_variance
from coterie.grouping.memory import PromptTable, RecentSteps, Step
from coterie.grouping.presets import Settings, experts_of
from coterie.stats import Floats


@dataclass(frozen=True, slots=True, eq=False)
class BaselineParts:
    """Baselines of a step with the parts they are made of. B rollouts; NaN where a rollout failed."""

    baselines: Floats
    """[B] in reward units."""
    experts: dict[str, Floats]
    """[B] each."""
    weights: Floats
    """[buckets, K] of the experts, see `Mixture`."""
    scales: dict[str, Floats]
    """[B] each: contribution of each scale to the first hierarchical expert, in reward units; root holds the origin.
    Empty where the preset has none."""


@dataclass(frozen=True, slots=True, eq=False)
class UpdateStats:
    """Statistics of an update of the baseline, for the metrics."""

    errors: dict[str, float]
    """Mean squared prequential error of each expert, and of "combined", in squared reward ranges."""
    power: float
    """Mean of W (r - b)², the gradient-variance proxy, W having mean near 1."""
    bias: float
    """Mean of r - b; far from 0 for many steps means stale memory."""
    rollouts: int
    scales: dict[str, float]
    """Mean |contribution| of each scale, in reward ranges."""
    redrawn: TreeChange | None
    """Changed splits, if the tree was refitted after this step."""


STATE_VERSION = 3
LEAST_SCALE = 0.05
"""Least advantage scale c, in reward ranges."""
LEAST_SPREAD = 0.25
"""Least standard deviation that is expected of a prompt, in reward ranges: that of a success in 15."""
LEAST_WEIGHT = 0.01
"""Weights are floored at this share of their mean in history: peaked policies underflow to 0 / 0."""
_STATELESS = {"group": group_mean, "rloo": sibling_mean, "global": batch_mean, "js2": james_stein}


class GroupAwareBaseline:
    """Baseline estimator of one reward, or one part of it: predict, use, observe.

    `predict` reads history and the other rollouts, never the rollout it is for (presets that are `exact`); `observe`
    learns from the same rollouts afterwards. Advantages are (reward - baseline) / scale with a scale from history.

    Args:
        columns: the features' columns (`FeatureMap.columns`).
        preset: a row of PRESETS, or `module:function` for `custom`.
        settings: every number; `settings.without(name)` is an ablation.
        seed: of the honest halves of tree fits.
        reward, reference: names of what the statistics belong to, see `rebind`.
        custom: the user's baseline; needed to predict where the preset is one.
    """

    def __init__(
        self,
        columns: tuple[Column, ...] = (),
        *,
        preset: str = "mixture",
        settings: Settings | None = None,
        seed: int = 0,
        reward: str = "",
        reference: str = "",
        custom: CustomBaseline | None = None,
    ) -> None:
        self.custom = custom
        self.requested = Settings() if settings is None else settings
        self.settings = self.requested.in_effect()
        start = experts_of(preset, self.settings.scales)
        self.preset, self.experts, self.columns, self.seed = preset, tuple(start), columns, seed
        self.versions = {"reward": reward, "reference": reference}
        self.prompt_table, self.window = PromptTable(), RecentSteps(self.settings.window)
        self.hierarchies = {
            name: self._hierarchy(name, seed) for name in self.experts if name.startswith("empirical_bayes")
        }
        forgets = "temporal" in self.settings.signals
        self.trackers = {
            name: PromptTracker(self.settings.tracker_half_life if forgets else None, 0.875 if forgets else 1.0)
            for name in self.experts
            if name == "tracker"
        }
        self.mixture = Mixture(np.array(list(start.values())), keep=self.settings.keep_gram)
        self.range: tuple[float, float] | None = self.settings.bounds
        self.sums = RunningSums(self.settings.keep_scale)
        self.steps = 0
        self.plain: GroupAwareBaseline | None = None
        """Unweighted twin for expected rewards, from the first weighted step on. Weighted means reduce gradient noise
        but are no success rates where rollouts of little weight are right more often."""
        self._last: tuple[Rollouts, Groups, Floats, dict[str, Prediction]] | None = None

    def _without_weights(self) -> GroupAwareBaseline:
        settings = self.requested.changed(weights="none")
        preset = "empirical_bayes" if self.hierarchies else "tracker"
        return GroupAwareBaseline(self.columns, preset=preset, settings=settings, seed=self.seed)

    def _learners(self) -> dict[str, Hierarchy | PromptTracker | GroupAwareBaseline]:
        """Parts with a state of their own, beside the prompt table, the window and the mixture."""
        return {**self.hierarchies, **self.trackers, **({} if self.plain is None else {"plain": self.plain})}

    def _hierarchy(self, name: str, seed: int) -> Hierarchy:
        settings = self.settings
        for scale in {
            "empirical_bayes": (),
            "empirical_bayes_no_tree": ("tree",),
            "empirical_bayes_no_features": ("tree", "linear", "key"),
        }[name]:
            settings = settings.without(scale)
        return Hierarchy(self.columns, settings, self.prompt_table, self.window, seed)

    # predict

    @property
    def scale(self) -> float:
        """Advantage scale c: root mean squared error of past baselines, in reward units; at first half the range."""
        if self.settings.config.scale == "none":
            return 1.0
        low, high = self.range or (0.0, 1.0)
        return (high - low) * max(float(np.sqrt(self.sums.spread)), LEAST_SCALE)

    def predict(self, rollouts: Rollouts) -> Floats:
        """[B] baseline of each rollout, in reward units; NaN where the rollout failed. No state changes."""
        return self.explain(rollouts).baselines

    def advantages(self, rollouts: Rollouts) -> Floats:
        """[B] (reward - baseline) / divisor; 0 where the rollout failed."""
        return np.nan_to_num((rollouts.rewards - self.predict(rollouts)) / self.divisors(rollouts))

    def divisors(self, rollouts: Rollouts) -> Floats:
        """[B] divisor of each advantage, from history alone: no reward of the step moves it.

        With `scale = "expected"` the objective is Σ_x J_x / σ_x, which counts a step up from 1 in 10 like one from 1 in
        2, as the group's own standard deviation does in GRPO, but no rollout's reward enters its own σ.
        """
        if self.settings.config.scale != "expected":
            return np.full(rollouts.rewards.size, self.scale)
        low, high = self.range or (0.0, 1.0)
        mean, _ = self.expect(rollouts.prompts, rollouts.features, rollouts.time)
        return np.sqrt(np.maximum((mean - low) * (high - mean), (LEAST_SPREAD * (high - low)) ** 2))

    def explain(self, rollouts: Rollouts) -> BaselineParts:
        """Baselines with the contributions of experts and scales; no state changes."""
        groups, experts, predictions = self._predictions(rollouts)
        combined = self.mixture.combine(experts, buckets(groups))
        low, high = self.range or (0.0, 1.0)

        def to_reward_units(values: Floats, origin: float) -> Floats:
            return groups.scatter(origin + (high - low) * values)

        parts = predictions["empirical_bayes"].parts if "empirical_bayes" in predictions else {}
        return BaselineParts(
            to_reward_units(combined, low),
            {name: to_reward_units(values, low) for name, values in zip(self.experts, experts, strict=True)},
            self.mixture.weights.copy(),
            {name: to_reward_units(part, low if name == "root" else 0.0) for name, part in parts.items()},
        )

    def expect(self, prompts: tuple[str, ...], features: Floats, time: float) -> tuple[Floats, Floats]:
        """[P] expected reward and [P] its variance from history alone, before sampling: for allocation and dispatch.

        A plain mean over attempts, whatever a rollout counts for in the baseline. Presets without a hierarchy expect
        what their tracker says, or the running mean, with a variance of .03 ranges².
        """
        if self.plain is not None:
            return self.plain.expect(prompts, features, time)
        low, high = self.range or (0.0, 1.0)
        rows = np.array([self.prompt_table.index.get(name, -1) for name in prompts], dtype=np.int64)
        for hierarchy in self.hierarchies.values():
            mean, var = hierarchy.expect(rows, features, time)
            break
        else:
            mean, var = np.full(len(prompts), self.sums.history_mean), np.full(len(prompts), 0.03)
            for tracker in self.trackers.values():
                once = Rollouts(prompts=prompts, rewards=np.full(len(prompts), low), features=features, time=time)
                mean = tracker.predict(self._groups(once))
        mean = np.clip(mean, 0.0, 1.0) if self.settings.bounds is not None else mean
        return low + (high - low) * mean, (high - low) ** 2 * var

    def prior(self, rollouts: Rollouts) -> Prior:
        """Prior of each rollout's prompt from history and, with a hierarchy, from the step's other groups."""
        groups, _, predictions = self._predictions(rollouts)
        low, high = self.range or (0.0, 1.0)
        if "empirical_bayes" in predictions:
            prediction, hierarchy = predictions["empirical_bayes"], self.hierarchies["empirical_bayes"]
            mean, variance, noise = (
                prediction.mean,
                hierarchy.calibration(groups.rows) * prediction.variance,
                prediction.noise,
            )
        else:
            expected, spread = self.expect(groups.prompts, groups.features, groups.time)
            mean, variance = (expected - low) / (high - low), spread / (high - low) ** 2
            noise = reward_variance(mean, bounded=self.settings.bounds is not None)
        return Prior(
            mean=groups.scatter(low + (high - low) * mean[groups.of]),
            variance=groups.scatter((high - low) ** 2 * variance[groups.of]),
            noise=groups.scatter((high - low) ** 2 * noise[groups.of]),
        )

    @property
    def regions(self) -> Hierarchy | None:
        """The hierarchy that has a tree; None where the preset has none."""
        return self.hierarchies.get("empirical_bayes")

    def _groups(self, rollouts: Rollouts) -> Groups:
        low, high = self.range or (0.0, 1.0)
        if self.settings.bounds is not None:
            outside = rollouts.rewards[(rollouts.rewards < low - 1e-9) | (rollouts.rewards > high + 1e-9)]
            if outside.size:
                raise ValueError(f"reward {outside[0]} lies outside bounds {(low, high)}; widen bounds or pass None")
        weights = np.ones(rollouts.rewards.size)
        usual = self.sums.weight
        if self.settings.weighted and rollouts.weights is not None and usual is not None:
            # The mean comes from history: this step's mean would let a rollout's own tokens into its baseline.
            weights = np.maximum(rollouts.weights / usual, LEAST_WEIGHT)
        return group_rollouts(
            rollouts, (rollouts.rewards - low) / (high - low), weights, self.prompt_table.index, self.sums.history_mean
        )

    def _predictions(self, rollouts: Rollouts) -> tuple[Groups, Floats, dict[str, Prediction]]:
        """Groups, [K, N] baselines of the experts, and the hierarchies' predictions; cached for `observe`."""
        if self._last is not None and self._last[0] is rollouts:
            return self._last[1:]
        if rollouts.features.shape[1] != len(self.columns):
            raise ValueError(
                f"rollouts have {rollouts.features.shape[1]} features; expected {len(self.columns)} columns"
            )
        groups = self._groups(rollouts)
        if not groups.of.size:
            return groups, np.zeros((len(self.experts), 0)), {}
        predictions = {name: hierarchy.predict(groups) for name, hierarchy in self.hierarchies.items()}
        baselines = np.stack([self._expert_baselines(name, groups, predictions) for name in self.experts])
        self._last = rollouts, groups, baselines, predictions
        return self._last[1:]

    def _expert_baselines(self, expert: str, groups: Groups, predictions: dict[str, Prediction]) -> Floats:
        """[N] baselines of an expert, in a range of 1."""
        if expert in predictions:
            return predictions[expert].baseline
        if expert in self.trackers:
            return self.trackers[expert].predict(groups)
        return self._custom_baseline(groups) if expert == "own" else _STATELESS[expert](groups)

    def _custom_baseline(self, groups: Groups) -> Floats:
        """[N] baselines of the user's function, mapped to a range of 1."""
        if self.custom is None:
            raise ValueError(f"preset {self.preset!r} is a function, which was not given")
        low, high = self.range or (0.0, 1.0)
        view = view_of(groups, self.columns, self.prompt_table, self.window, (low, high))
        return (call_baseline(self.custom, view, self.preset) - low) / (high - low)

    # learn

    def observe(self, rollouts: Rollouts) -> UpdateStats:
        """Update the model by rollouts whose advantages have been used; nothing happens without a usable rollout."""
        groups, experts, predictions = self._predictions(rollouts)
        self._last = None
        if not groups.of.size:
            return UpdateStats({}, 0.0, 0.0, 0, {}, None)
        if self.settings.weighted and rollouts.weights is not None and (self.hierarchies or self.trackers):
            self.plain = self.plain or self._without_weights()
            self.plain.observe(replace(rollouts, weights=None))
        bucket = buckets(groups)
        combined = self.mixture.combine(experts, bucket)
        update_stat = self._update_stats(groups, experts, combined, predictions)
        self.mixture.observe(experts, groups.rewards, groups.weights, bucket)
        rows = self.prompt_table.enter(groups)
        for name, hierarchy in self.hierarchies.items():
            hierarchy.observe(groups, predictions[name], rows)
        for tracker in self.trackers.values():
            tracker.observe(groups, rows)
        self.window.steps.append(Step(rows, groups.mean, groups.evidence, groups.time))
        self._update_sums(rollouts, groups, combined)
        self.steps += 1
        redrawn = [hierarchy.refit() for hierarchy in self.hierarchies.values() if hierarchy.refit_due]
        return replace(update_stat, redrawn=redrawn[0] if redrawn else None)

    def _update_stats(
        self, groups: Groups, experts: Floats, combined: Floats, predictions: dict[str, Prediction]
    ) -> UpdateStats:
        error = groups.rewards - combined
        errors = {
            name: float(((baselines - groups.rewards) ** 2).mean())
            for name, baselines in zip(self.experts, experts, strict=True)
        }
        parts = predictions["empirical_bayes"].parts if "empirical_bayes" in predictions else {}
        return UpdateStats(
            errors | {"combined": float((error**2).mean())},
            float((groups.weights * error**2).mean()),
            float(error.mean()),
            int(error.size),
            {name: float(np.abs(part).mean()) for name, part in parts.items()},
            None,
        )

    def _update_sums(self, rollouts: Rollouts, groups: Groups, combined: Floats) -> None:
        kept = None if rollouts.weights is None else rollouts.weights[groups.keep]
        self.sums.add(groups, groups.rewards - combined, kept)
        if self.range is None:
            # Unbounded rewards: four standard deviations of the first step are one range, for ever after.
            centre, spread = float(groups.rewards.mean()), max(float(groups.rewards.std()), 1e-6)
            self.range = centre - 2 * spread, centre + 2 * spread
            self._restart()

    def _restart(self) -> None:
        """Drop what was learned in other units; the prompt table stays."""
        self.window.steps.clear()
        self.hierarchies = {name: self._hierarchy(name, self.seed) for name in self.hierarchies}
        self.trackers = {name: PromptTracker(tracker.half_life, tracker.rho) for name, tracker in self.trackers.items()}
        self.mixture = Mixture(self.mixture.start, keep=self.settings.keep_gram)
        self.sums.restart()

    # state

    def inflate_variance(self, factor: float = 10.0) -> None:
        """Keep all estimates with `factor` times their variance, after a change of the reward or the reference."""
        self._last = None
        for part in (*self._learners().values(), self.mixture):
            part.inflate_variance(factor)
        self.sums.inflate_variance(factor)

    def rebind(self, *, reward: str, reference: str) -> bool:
        """Continue under these versions; True, with inflated variances, if either has changed."""
        versions = {"reward": reward, "reference": reference}
        changed = versions != self.versions
        if changed:
            self.inflate_variance()
        self.versions = versions
        return changed

    def state(self) -> State:
        """Arrays and JSON from which `load` restores the model bit by bit."""
        json: dict[str, Any] = {
            "version": STATE_VERSION,
            "preset": self.preset,
            "settings": self.requested.fingerprint(),
            "versions": self.versions,
            "range": None if self.range is None else list(self.range),
            "steps": self.steps,
            "plain": self.plain is not None,
        }
        return join(
            own=({"sums": self.sums.table.copy()}, json),
            book=self.prompt_table.state(),
            window=self.window.state(),
            stack=self.mixture.state(),
            **{name: part.state() for name, part in self._learners().items()},
        )

    def load(self, state: State) -> None:
        """Restore a state."""
        arrays, json = pick(state, "own")
        mine = {"version": STATE_VERSION, "preset": self.preset, "settings": self.requested.fingerprint()}
        different = [key for key, value in mine.items() if json.get(key) != value]
        if different:
            raise ValueError(f"the state was saved with another {' and '.join(different)}; start anew or restore them")
        self._last = None
        self.sums.table, self.steps, self.versions = arrays["sums"].copy(), json["steps"], dict(json["versions"])
        self.range = None if json["range"] is None else (json["range"][0], json["range"][1])
        self.prompt_table.load(pick(state, "book"))
        self.window.load(pick(state, "window"))
        self.mixture.load(pick(state, "stack"))
        self.plain = self._without_weights() if json["plain"] else None
        for name, part in self._learners().items():
            part.load(pick(state, name))
