"""Does a better baseline learn faster? A contextual bandit with one shared softmax policy, trained by Adam.

python benchmarks/grouping/bandit.py [--seeds 0,1,2] [--sizes 1,2,8] [--lr 0.1] [--prompts 2048] --out FILE.json

Every arm spends 64 rollouts a step; at G rollouts a prompt that is 64 / G prompts. The score is the exact mean success
over all prompts, averaged over the steps (area under the curve).
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import product
from pathlib import Path

import numpy as np

from coterie.config.advantage import GroupingConfig
from coterie.grouping.arrays import Rollouts
from coterie.grouping.features import Column
from coterie.grouping.model import GroupAwareBaseline
from coterie.grouping.presets import Settings
from coterie.rng import generator

ANSWERS, CLUSTERS, WIDTH, BUDGET, STEPS = 16, 24, 12, 64, 300
ARMS = {
    "rloo": ("rloo", False),
    "global": ("global", False),
    "spo": ("tracker", False),
    "js2": ("js2", False),
    "empirical_bayes": ("empirical_bayes", False),
    "mixture": ("mixture", False),
    "mixture-weighted": ("mixture", True),
}
EXTRA = ("grpo-std", "oracle", "oracle-weighted")


class Bandit:
    """Prompts in clusters; the right answer is the cluster's, and even a right answer is only mostly rewarded."""

    def __init__(self, prompts: int, seed: int) -> None:
        rng = generator("bandit", prompts, seed)
        cluster = rng.integers(CLUSTERS, size=prompts)
        raw = rng.normal(size=(CLUSTERS, WIDTH))[cluster] + 0.6 * rng.normal(size=(prompts, WIDTH))
        self.features = np.clip((raw - raw.mean(axis=0)) / raw.std(axis=0), -4, 4)
        self.right = rng.integers(ANSWERS, size=CLUSTERS)[cluster]
        self.chance = np.tile(rng.uniform(0.0, 0.15, prompts)[:, None], (1, ANSWERS))
        self.chance[np.arange(prompts), self.right] = rng.uniform(0.6, 1.0, prompts)
        self.inputs = np.hstack([self.features, np.ones((prompts, 1))])
        self.theta = np.zeros((WIDTH + 1, ANSWERS))
        self.first, self.second, self.t = np.zeros_like(self.theta), np.zeros_like(self.theta), 0

    def policy(self, prompts: np.ndarray) -> np.ndarray:
        z = self.inputs[prompts] @ self.theta
        z = np.exp(z - z.max(axis=1, keepdims=True))
        return z / z.sum(axis=1, keepdims=True)

    def ascend(self, gradient: np.ndarray, lr: float) -> None:
        """Adam, beta .9 and .999."""
        self.t += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        hat = np.sqrt(self.second / (1 - 0.999**self.t)) + 1e-8
        self.theta += lr * (self.first / (1 - 0.9**self.t)) / hat


def run(arm: str, *, prompts: int, size: int, seed: int, lr: float) -> list[float]:
    """[STEPS] exact mean success."""
    world, rng = Bandit(prompts, seed), generator("draws", prompts, size, seed)
    columns = tuple(Column(f"meaning {i + 1}", "semantic") for i in range(WIDTH))
    estimator = None
    if arm in ARMS:
        preset, weighted = ARMS[arm]
        settings = Settings(config=GroupingConfig(weights="length" if weighted else "none", scale="none"))
        estimator = GroupAwareBaseline(columns, preset=preset, settings=settings, seed=seed)
    curve, everyone = [], np.arange(prompts)
    for step in range(STEPS):
        curve.append(float((world.policy(everyone) * world.chance).sum(axis=1).mean()))
        rows = np.repeat(rng.permutation(prompts)[: BUDGET // size], size)
        pi = world.policy(rows)
        answers = (rng.random(rows.size)[:, None] > pi.cumsum(axis=1)).sum(axis=1).clip(max=ANSWERS - 1)
        rewards = (rng.random(rows.size) < world.chance[rows, answers]).astype(np.float64)
        norms = 1.0 - 2.0 * pi + (pi**2).sum(axis=1, keepdims=True)
        if estimator is not None and not (arm == "rloo" and size == 1):
            batch = Rollouts(
                prompts=tuple(str(row) for row in rows),
                rewards=rewards,
                features=world.features[rows],
                time=float(step),
                weights=norms[np.arange(rows.size), answers],
            )
            advantage = rewards - estimator.predict(batch)
            estimator.observe(batch)
        elif arm == "grpo-std" and size > 1:
            table = rewards.reshape(-1, size)
            spread = table.std(axis=1, ddof=1, keepdims=True) + 1e-6
            advantage = ((table - table.mean(axis=1, keepdims=True)) / spread).ravel()
        elif arm == "oracle":
            advantage = rewards - (pi * world.chance[rows]).sum(axis=1)
        elif arm == "oracle-weighted":
            advantage = rewards - (pi * norms * world.chance[rows]).sum(axis=1) / (pi * norms).sum(axis=1)
        else:
            advantage = rewards
        score = advantage[:, None] * (np.eye(ANSWERS)[answers] - pi)
        world.ascend(world.inputs[rows].T @ score / rows.size, lr)
    return curve


def sweep(out: Path, *, seeds: list[int], sizes: list[int], arms: list[str], prompts: int, lr: float) -> None:
    """Every curve that the file does not hold yet."""
    results = json.loads(out.read_text()) if out.exists() else {}
    for seed, size, arm in product(seeds, sizes, arms):
        key = f"{prompts}/{lr:g}/{size}/{arm}/{seed}"
        if key in results or (arm == "grpo-std" and size == 1):
            continue
        results[key] = run(arm, prompts=prompts, size=size, seed=seed, lr=lr)
        out.write_text(json.dumps(results))
        print(key, round(float(np.mean(results[key])), 4), file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0,1,2,3,4,5")
    parser.add_argument("--sizes", default="1,2,8")
    parser.add_argument("--prompts", type=int, default=2048)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--arms", default=",".join([*ARMS, *EXTRA]))
    parser.add_argument("--out", type=Path, required=True)
    words = parser.parse_args()
    seeds, sizes = ([int(word) for word in listed.split(",")] for listed in (words.seeds, words.sizes))
    sweep(words.out, seeds=seeds, sizes=sizes, arms=words.arms.split(","), prompts=words.prompts, lr=words.lr)


if __name__ == "__main__":
    main()
