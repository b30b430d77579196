"""The hierarchical empirical-Bayes leave-one-out baseline, one model of all scales.

    mu_p(t) = root(t) + Σ nodes on the path of p (t) + z_p·w(t) + d_p(t)

Every scale is an additive Gaussian kernel; siblings then correct the prediction. To stay cheap, prompts' own offsets
d_p live outside the n-dimensional filter, and their correlation with it is dropped after each step.

A rollout's weight W is the precision of its observation (variance sigma² / W), at every scale: then the model
minimises Σ W (r - b)², the gradient's power, and not squared error. It matters most for one rollout a prompt, where a
weighted group mean alone would ignore the weights. The own W cancels from a leave-one-group-out mean as exactly as the
own reward does.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np

from coterie.grouping.arrays import Groups, State, join, pick
from coterie.grouping.experts import RatioEstimate
from coterie.grouping.features import Column
from coterie.grouping.gaussian import Gaussian, solve, variance
from coterie.grouping.memory import PromptMemory, PromptTable, RecentSteps
from coterie.grouping.presets import Settings
from coterie.grouping.tree import Tree
from coterie.grouping.tree_fit import fit_tree
from coterie.rng import generator
from coterie.stats import Floats, Ints

LEAST_VARIANCE = 1e-4
ROOT_MEAN = 0.5
BLOCK = 65_536
"""Prompts that are shifted to a new tree at once: what they take in memory meanwhile."""
_OFF = 1e-9
"""Variance of a scale that is left out: not 0, so that covariances stay positive definite."""


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Prediction of each group's rewards before they are used."""

    mean: Floats
    """[P] mean reward given history and, if used, all other groups."""
    variance: Floats
    """[P] of that expectation, not yet calibrated."""
    noise: Floats
    """[P] variance of one rollout's reward."""
    trust: Floats
    """[N] weight of the siblings."""
    baseline: Floats
    """[N]"""
    parts: dict[str, Floats]
    """[N] each: contribution of each scale; they add up to the baseline."""


@dataclass(frozen=True, slots=True)
class TreeChange:
    """Splits that a refit of the tree added and removed, in words."""

    split: tuple[str, ...]
    merged: tuple[str, ...]


class Hierarchy:
    """Hierarchical empirical-Bayes expert; prompt table and window are shared with the other experts."""

    def __init__(
        self, columns: tuple[Column, ...], settings: Settings, prompt_table: PromptTable, window: RecentSteps, seed: int
    ) -> None:
        self.settings, self.prompt_table, self.window, self.seed = settings, prompt_table, window, seed
        used = [i for i, column in enumerate(columns) if column.signal in settings.signals]
        self.columns = np.array(used, dtype=np.int64)
        self.names = columns
        level = np.array([columns[i].level for i in used], dtype=np.bool_)
        self.linear = self.columns[~level] if "linear" in settings.scales else self.columns[:0]
        self.keys = self.columns[level] if "key" in settings.scales else self.columns[:0]
        self.tree, self.levels = Tree.stump(), np.zeros(1)
        self.memory = PromptMemory(settings.config.prompt_decay_steps, settings.keep_tau)
        self.kappa = [RatioEstimate(1.0, 1.0, settings.keep_kappa, 0.2, 5.0) for _ in range(2)]
        # Reward variance over m(1 - m): 1 for right or wrong, less for graded rewards. One formula for both.
        self.noise = RatioEstimate(1.0, 5.0, settings.keep_tau, 0.02, 4.0)
        self.time, self.steps, self.refits = 0.0, 0, 0
        self.belief = self._prior_belief()

    # the model

    def _prior(self) -> tuple[Floats, Floats, Floats]:
        """[n] stationary variance, memory and walk of the offsets: root, nodes, linear weights, keys."""
        settings = self.settings
        nodes = self.levels[self.tree.depth[1:]]
        linear = np.full(self.linear.size, settings.linear_variance / max(self.linear.size, 1))
        root = "root" in settings.scales
        keys = np.full(self.keys.size, settings.key_variance)
        prior = np.concatenate([[settings.root_variance if root else _OFF], nodes, linear, keys])
        memory = np.full(prior.size, settings.config.decay_steps)
        memory[0] = inf
        walk = np.zeros(prior.size)
        walk[0] = settings.root_walk if root else 0.0
        return prior, memory, walk

    def _prior_belief(self) -> Gaussian:
        prior = self._prior()[0]
        return Gaussian(np.zeros(prior.size), np.diag(prior))

    def _design(self, features: Floats) -> Floats:
        """[P, n] rows h."""
        path = self.tree.membership[self.tree.locate(features)]
        return np.hstack([path, self._flat(features)])

    def _flat(self, features: Floats) -> Floats:
        """[P, d] tree-independent part of the rows: features of the linear scale, marks of keys."""
        return np.hstack([features[:, self.linear], (features[:, self.keys] > 0.0).astype(np.float64)])

    def _belief_at(self, time: float) -> Gaussian:
        return self.belief.advance(max(time - self.time, 0.0) if self.steps else 0.0, *self._prior())

    def _reward_noise(self, mean: Floats) -> Floats:
        """[P] variance of one reward; bounded away from 0."""
        return np.maximum(self.noise.value * reward_variance(mean, bounded=self.settings.bounds is not None), 1e-4)

    def calibration(self, rows: Ints) -> Floats:
        """[P] calibrated factor of the prediction's variance, for prompts seen before and for others."""
        return np.where(self.memory.visited(rows), self.kappa[1].value, self.kappa[0].value)

    def _memory_prior(self, rows: Ints, time: float) -> tuple[Floats, Floats]:
        if "prompt" in self.settings.scales:
            return self.memory.prior(rows, time)
        return np.zeros(rows.size), np.full(rows.size, self.memory.tau.value)

    # predict

    def expect(self, rows: Ints, features: Floats, time: float) -> tuple[Floats, Floats]:
        """[P] mean and [P] calibrated variance of the expected reward, from history alone, before any rollout."""
        belief, design = self._belief_at(time), self._design(features)
        memory_mean, memory_var = self._memory_prior(rows, time)
        mean = ROOT_MEAN + design @ belief.mean + memory_mean
        return mean, self.calibration(rows) * np.maximum(variance(belief, design) + memory_var, LEAST_VARIANCE)

    def predict(self, groups: Groups) -> Prediction:
        """Baselines from history, the other groups and the siblings; no state changes."""
        scales = self.settings.scales
        belief, design = self._belief_at(groups.time), self._design(groups.features)
        memory_mean, memory_var = self._memory_prior(groups.rows, groups.time)
        prior = ROOT_MEAN + design @ belief.mean + memory_mean
        noise = self._reward_noise(prior)
        if "batch" in scales and groups.size.size > 1:
            own_noise = memory_var + noise / groups.evidence
            residual = groups.mean - prior
            correction, spread = solve(belief, design, residual, own_noise).without_own(residual)
            var = np.maximum(spread - noise / groups.evidence, LEAST_VARIANCE)
        else:
            correction = np.zeros(prior.size)
            var = np.maximum(variance(belief, design) + memory_var, LEAST_VARIANCE)
        believed = (self.calibration(groups.rows) * var)[groups.of]
        trust = believed * groups.others / (believed * groups.others + noise[groups.of])
        trust = trust if "siblings" in scales else np.zeros(trust.size)
        nodes = self.tree.feature.size
        ends = nodes + self.linear.size
        parts = {
            "root": np.full(prior.size, ROOT_MEAN + belief.mean[0]),
            "tree": design[:, 1:nodes] @ belief.mean[1:nodes],
            "linear": design[:, nodes:ends] @ belief.mean[nodes:ends],
            "prompt": memory_mean,
            "batch": correction,
        }
        if self.keys.size:
            parts["key"] = design[:, ends:] @ belief.mean[ends:]
        contributions = {name: (1.0 - trust) * part[groups.of] for name, part in parts.items()}
        contributions["siblings"] = trust * np.nan_to_num(groups.siblings)
        baseline = np.sum(list(contributions.values()), axis=0)
        if self.settings.bounds is not None:
            baseline = np.clip(baseline, 0.0, 1.0)
        return Prediction(prior + correction, var, noise, trust, baseline, contributions)

    # learn

    def observe(self, groups: Groups, prediction: Prediction, rows: Ints) -> None:
        """Learn from a step, after its baselines were used. `rows` [P]: in the prompt table, now that all have one."""
        self._calibrate(groups, prediction)
        self.memory.reserve(int(rows.max(initial=-1)) + 1)
        self.belief = self._absorb(self._belief_at(groups.time), self.memory, rows, groups, learn=True)
        self.time, self.steps = max(groups.time, self.time) if self.steps else groups.time, self.steps + 1

    def _absorb(self, belief: Gaussian, memory: PromptMemory, rows: Ints, groups: Groups, *, learn: bool) -> Gaussian:
        """Kalman update of the offsets, and the exact marginal posterior of each prompt's own offset.

        d_p given everything is Gaussian with mean d + v alpha_p and variance v - v² K_pp, v its variance before.
        """
        design = self._design(groups.features)
        before = memory.prior(rows, groups.time) if "prompt" in self.settings.scales else self._memory_prior(rows, 0.0)
        offset = ROOT_MEAN + design @ belief.mean
        noise = self._reward_noise(offset + before[0]) / groups.evidence
        residual = groups.mean - offset - before[0]
        solution = solve(belief, design, residual, before[1] + noise)
        if learn:
            memory.learn_tau(rows, groups.mean - offset, groups.evidence / groups.size, groups.time)
        mean, var = before[0] + before[1] * solution.alpha, before[1] - before[1] ** 2 * solution.precision
        memory.store(
            rows, mean, np.maximum(var, 1e-6), groups.mean - offset, groups.evidence / groups.size, groups.time
        )
        return belief.condition(design, residual, before[1] + noise)

    def _calibrate(self, groups: Groups, prediction: Prediction) -> None:
        """Products of different rollouts share no noise, so their mean is the realised variance of the prediction."""
        count = groups.size.size
        deviation = groups.rewards - prediction.mean[groups.of]
        weighted = groups.weights * deviation
        sums = [
            np.bincount(groups.of, x, minlength=count)
            for x in (weighted, weighted**2, groups.weights, groups.weights**2)
        ]
        pairs = sums[2] ** 2 - sums[3]
        many = (groups.size > 1) & (pairs > 1e-12 * sums[2] ** 2)
        product = np.where(many, (sums[0] ** 2 - sums[1]) / np.where(many, pairs, 1.0), 0.0)
        visited = self.memory.visited(groups.rows)
        for z, kappa in enumerate(self.kappa):
            chosen = many & (visited == bool(z))
            kappa.add(float(product[chosen].sum()), float(prediction.variance[chosen].sum()))
        # Within groups where there are siblings; elsewhere the squared error less the part that is ours.
        plain = np.bincount(groups.of, groups.rewards, minlength=count) / groups.size
        within = np.bincount(groups.of, (groups.rewards - plain[groups.of]) ** 2, minlength=count)
        single = (
            np.bincount(groups.of, groups.weights * deviation**2, minlength=count)
            - groups.evidence * prediction.variance
        )
        shape = prediction.noise / self.noise.value
        lone = groups.size < 2
        top = np.where(lone, single, within).sum()
        self.noise.add(float(top), float((np.where(lone, groups.evidence, groups.size - 1) * shape).sum()))

    # regions

    @property
    def refit_due(self) -> bool:
        """True when the tree has to be refitted."""
        settings = self.settings
        if "tree" not in settings.scales or not self.columns.size:
            return False
        return self.steps in settings.refit_first or (self.steps > 0 and self.steps % settings.config.refit_every == 0)

    def refit(self) -> TreeChange:
        """Refit the tree on the window, replay it through a fresh filter, and keep prompts' absolute values."""
        settings = self.settings
        visits = self.window.visits(self.prompt_table.features, self.time, settings.config.decay_steps)
        old_tree, old_belief = self.tree, self.belief
        self.tree, self.levels = fit_tree(
            visits,
            self.columns,
            generator("honest", self.seed, self.refits),
            max_leaves=settings.config.max_leaves,
            min_weight=settings.config.min_weight,
            boundaries="reward" if "reward" in settings.signals else "spread",
            previous=old_tree,
        )
        self.refits += 1
        old, new = old_tree.splits(self.names), self.tree.splits(self.names)
        self.belief = self._replay()
        lasting = self.memory.lasting(self.time)
        for start in range(0, lasting.size, BLOCK):
            rows = lasting[start : start + BLOCK]
            features = self.prompt_table.features[rows]
            before = self._value(old_tree, old_belief, features)
            self.memory.rebase(rows, before - self._value(self.tree, self.belief, features))
        return TreeChange(tuple(sorted(new - old)), tuple(sorted(old - new)))

    def _replay(self) -> Gaussian:
        """The window through a fresh filter with a memory of its own, so that visits of one prompt count once."""
        local = PromptMemory(self.settings.config.prompt_decay_steps, self.settings.keep_tau)
        local.tau.load(self.memory.tau.state())
        prompts = np.unique(np.concatenate([step.rows for step in self.window.steps] or [np.zeros(0, dtype=np.int64)]))
        local.reserve(prompts.size)
        belief, time = self._prior_belief(), None
        for step in self.window.steps:
            rows = np.searchsorted(prompts, step.rows)
            belief = belief.advance(0.0 if time is None else max(step.time - time, 0.0), *self._prior())
            past = _past_groups(rows, step.mean, step.evidence, self.prompt_table.features[step.rows], step.time)
            belief, time = self._absorb(belief, local, rows, past, learn=False), step.time
        return belief

    def _value(self, tree: Tree, belief: Gaussian, features: Floats) -> Floats:
        """[P] h.a by leaf, without making h: O(depth) a prompt."""
        nodes = tree.feature.size
        by_node = tree.membership @ belief.mean[:nodes]
        return by_node[tree.locate(features)] + self._flat(features) @ belief.mean[nodes:]

    # state

    def inflate_variance(self, factor: float) -> None:
        """Keep the means, multiply the variances by `factor`, and reset the calibration."""
        self.belief = Gaussian(self.belief.mean, factor * self.belief.cov)
        self.memory.inflate_variance(factor)
        for ratio in (*self.kappa, self.noise):
            ratio.reset()

    def state(self) -> State:
        arrays = {"mean": self.belief.mean.copy(), "cov": self.belief.cov.copy(), "levels": self.levels.copy()}
        return join(
            own=(arrays, {"time": self.time, "steps": self.steps, "refits": self.refits}),
            tree=self.tree.state(),
            memory=self.memory.state(),
            first=self.kappa[0].state(),
            again=self.kappa[1].state(),
            noise=self.noise.state(),
        )

    def load(self, state: State) -> None:
        arrays, json = pick(state, "own")
        self.tree, self.levels = Tree.load(pick(state, "tree")), arrays["levels"].copy()
        self.belief = Gaussian(arrays["mean"].copy(), arrays["cov"].copy())
        self.time, self.steps, self.refits = json["time"], json["steps"], json["refits"]
        self.memory.load(pick(state, "memory"))
        for name, ratio in (("first", self.kappa[0]), ("again", self.kappa[1]), ("noise", self.noise)):
            ratio.load(pick(state, name))


def reward_variance(mean: Floats, *, bounded: bool) -> Floats:
    """[P] variance of a right-or-wrong reward of that mean, in a range of 1; the most there can be without bounds."""
    return np.clip(mean * (1.0 - mean), 0.02, 0.25) if bounded else np.full(mean.size, 0.25)


def _past_groups(rows: Ints, mean: Floats, evidence: Floats, features: Floats, time: float) -> Groups:
    """Groups of a past step, of which only the means are kept."""
    nothing = np.zeros(0)
    return Groups(
        keep=np.zeros(0, dtype=np.bool_),
        of=np.zeros(0, dtype=np.int64),
        rewards=nothing,
        weights=nothing,
        prompts=(),
        rows=rows,
        size=evidence,
        evidence=evidence,
        mean=mean,
        siblings=nothing,
        others=nothing,
        features=features,
        time=time,
        history_mean=ROOT_MEAN,
    )


class RunningSums:
    """Decayed sums over past rollouts: squared errors, weights and rewards, in a range of 1.

    Args:
        keep: share of the past that a step leaves.
    """

    def __init__(self, keep: float) -> None:
        self.keep = keep
        self.table = np.zeros((3, 2))
        """[squared error, rollouts], [weight, rollouts], [weighted reward, weight]."""

    @property
    def spread(self) -> float:
        """Mean squared error of the baseline, regularised to a quarter by one pseudo-rollout."""
        squares, count = self.table[0]
        return float((squares + 0.25) / (count + 1.0))

    @property
    def weight(self) -> float | None:
        """Mean weight of a rollout; None before the first."""
        total, count = self.table[1]
        return float(total / count) if count > 0 else None

    @property
    def history_mean(self) -> float:
        """Mean reward, weighted; a half before the first."""
        total, weight = self.table[2]
        return float(total / weight) if weight > 0 else 0.5

    def add(self, groups: Groups, errors: Floats, weights: Floats | None) -> None:
        """Add the N usable rollouts of a step: errors [N] of the baseline, and raw weights [N]; None: all alike."""
        count = float(groups.of.size)
        step = [
            ((errors**2).sum(), count),
            (count if weights is None else weights.sum(), count),
            (groups.weights @ groups.rewards, groups.weights.sum()),
        ]
        self.table = self.keep * self.table + np.array(step)

    def restart(self) -> None:
        """Reset the sums in units of the reward; weights stay."""
        self.table[0], self.table[2] = 0.0, 0.0

    def inflate_variance(self, factor: float) -> None:
        """Divide the weight of past errors by `factor`."""
        self.table[0] /= factor
