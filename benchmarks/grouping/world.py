"""A world of prompts whose difficulty is known exactly, clustered, and moving: see RESULTS.md for the set-up."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coterie.grouping.features import Column
from coterie.rng import generator

Floats = NDArray[np.float64]
ANSWERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    prompts: int = 2048
    clusters: int = 24
    tasks: int = 4
    steps: int = 120
    trend: float = 2.5
    """Each cluster's logit rises by U(0, trend) over the run."""
    walk: float = 0.03
    """Standard deviation of each cluster's random walk a step."""
    jump: float = 1.0
    """A third of the clusters jump by plus or minus this at half time."""
    noise_features: bool = False
    """Features and tags say nothing."""
    graded: bool = False
    """Rewards are Beta with concentration 4 instead of 0 or 1."""


SCENARIOS = {
    "main": Scenario(),
    "stationary": Scenario(trend=0.0, walk=0.0, jump=0.0),
    "fastdrift": Scenario(trend=5.0, walk=0.1, jump=2.0),
    "manyvisits": Scenario(prompts=512),
    "oneepoch": Scenario(prompts=32768),
    "nofeatures": Scenario(noise_features=True),
    "graded": Scenario(graded=True),
}


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """Rollouts of one step: B rows."""

    prompts: NDArray[np.int64]
    answers: NDArray[np.int64]
    rewards: Floats
    success: Floats
    """[B] exact success probability, what a perfect baseline would say."""
    weights: Floats
    """[B] score norm |e_o - pi|²."""


class World:
    """Success logit = task + cluster + trend + walk + complexity + prompt effect (slow AR(1))."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario, self.rng = scenario, generator("world", seed)
        s, rng = scenario, self.rng
        self.cluster = rng.integers(s.clusters, size=s.prompts)
        task = rng.integers(s.tasks, size=s.clusters)
        self.fixed = -1.3 + rng.normal(0, 0.7, s.tasks)[task] + rng.normal(0, 0.9, s.clusters)
        self.slope = rng.uniform(0, s.trend, s.clusters) / s.steps
        self.wandered = np.zeros(s.clusters)
        jumps = rng.permutation(s.clusters) < s.clusters // 3
        self.jumps = jumps * rng.choice([-s.jump, s.jump], size=s.clusters)
        hard = rng.normal(size=s.prompts)
        self.hardness = -0.5 * hard
        self.effect = rng.normal(0, 0.7, s.prompts)
        self.t = 0
        embedding = rng.normal(size=(s.clusters, 8))[self.cluster] + rng.normal(0, 0.5, (s.prompts, 8))
        noisy_hardness = hard + rng.normal(0, 0.5, s.prompts)
        tag = np.eye(s.tasks)[task[self.cluster]]
        features = np.hstack([embedding, noisy_hardness[:, None], noisy_hardness[:, None] ** 2, tag])
        if s.noise_features:
            features = rng.permuted(features, axis=0)
        self.features = np.clip((features - features.mean(axis=0)) / features.std(axis=0), -4, 4)
        names = [f"meaning {i + 1}" for i in range(8)]
        self.columns = (
            *(Column(name, "semantic") for name in names),
            Column("complexity", "complexity"),
            Column("complexity squared", "complexity"),
            *(Column(f"task={i}", "task") for i in range(s.tasks)),
        )
        self.ids = [str(i) for i in range(s.prompts)]
        # Right answers are spread over all 64; wrong ones are chosen with fixed, uneven odds.
        self.right = rng.integers(ANSWERS, size=s.prompts)
        odds = np.exp(rng.normal(0, 1.0, (s.prompts, ANSWERS)))
        odds[np.arange(s.prompts), self.right] = 0.0
        self.wrong = odds / odds.sum(axis=1, keepdims=True)

    def success(self, prompts: NDArray[np.int64]) -> Floats:
        c = self.cluster[prompts]
        logit = self.fixed + self.slope * self.t + self.wandered + self.jumps * (self.t >= self.scenario.steps // 2)
        return 1.0 / (1.0 + np.exp(-(logit[c] + self.hardness[prompts] + self.effect[prompts])))

    def policy(self, prompts: NDArray[np.int64]) -> Floats:
        """[P, 64] answer probabilities."""
        p = self.success(prompts)
        pi = (1.0 - p)[:, None] * self.wrong[prompts]
        pi[np.arange(len(prompts)), self.right[prompts]] = p
        return pi

    def norms(self, prompts: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """[P] E[W; right] and [P] E[W; wrong]: the score norm where the answer is right, and where it is wrong."""
        pi = self.policy(prompts)
        weighted = pi * (1.0 - 2.0 * pi + (pi**2).sum(axis=1, keepdims=True))
        right = weighted[np.arange(len(prompts)), self.right[prompts]]
        return right, weighted.sum(axis=1) - right

    def choose(self, count: int) -> NDArray[np.int64]:
        return self.rng.permutation(self.scenario.prompts)[:count]

    def sample(self, prompts: NDArray[np.int64], size: int, rng: np.random.Generator) -> Draw:
        """`size` rollouts of each prompt."""
        pi, p = self.policy(prompts), self.success(prompts)
        rows = np.repeat(np.arange(len(prompts)), size)
        answers = (rng.random(rows.size)[:, None] > pi.cumsum(axis=1)[rows]).sum(axis=1).clip(max=ANSWERS - 1)
        right = answers == self.right[prompts][rows]
        rewards = right.astype(np.float64)
        if self.scenario.graded:
            rewards = rng.beta(4 * p[rows] + 1e-3, 4 * (1 - p[rows]) + 1e-3)
        weights = 1.0 - 2.0 * pi[rows, answers] + (pi**2).sum(axis=1)[rows]
        return Draw(prompts[rows], answers, rewards, p[rows], weights)

    def advance(self) -> None:
        s = self.scenario
        self.t += 1
        self.wandered += self.rng.normal(0, 1, s.clusters) * s.walk
        if s.walk > 0:
            keep = 0.998
            self.effect = keep * self.effect + np.sqrt(1 - keep**2) * self.rng.normal(0, 0.7, s.prompts)


def smaller(scenario: Scenario) -> Scenario:
    """The quick form: same visits a prompt, a third of the prompts and steps kept long enough to learn."""
    return replace(scenario, prompts=max(scenario.prompts // 2, 256), steps=60)
