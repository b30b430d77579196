"""How good is each baseline where the truth is known? One command; resumable by (scenario, seed).

python benchmarks/grouping/simulate.py [--quick] [--seeds 0,1,2,3,4] [--scenario main ...] --out FILE.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import bandit
import numpy as np
import report
from world import ANSWERS, SCENARIOS, Draw, World, smaller

from coterie.config.advantage import GroupingConfig
from coterie.grouping.arrays import Rollouts
from coterie.grouping.model import GroupAwareBaseline
from coterie.grouping.presets import Settings
from coterie.rng import generator

BUDGET = 256
"""Rollouts a step, for every group size."""
SIZES = (1, 2, 4, 8)
PLAIN = Settings(config=GroupingConfig(weights="none", scale="none"))
ARMS: dict[str, tuple[str, Settings]] = {
    "grpo": ("prompt", PLAIN),
    "rloo": ("rloo", PLAIN),
    "global": ("global", PLAIN),
    "spo": ("tracker", PLAIN),
    "js2": ("js2", PLAIN),
    "empirical_bayes": ("empirical_bayes", PLAIN),
    "mixture": ("mixture", PLAIN),
    "mixture-weighted": ("mixture", Settings(config=GroupingConfig(scale="none"))),
}
ABLATIONS = (
    "tree",
    "linear",
    "prompt",
    "batch",
    "siblings",
    "root",
    "semantic",
    "complexity",
    "task",
    "reward",
    "temporal",
)
EXTRA = ("grpo-std", "oracle", "oracle-weighted")


def rollouts(world: World, draw: Draw) -> Rollouts:
    return Rollouts(
        prompts=tuple(world.ids[p] for p in draw.prompts),
        rewards=draw.rewards,
        features=world.features[draw.prompts],
        time=float(world.t),
        weights=draw.weights,
    )


def advantages(name: str, world: World, draw: Draw, size: int, estimator: GroupAwareBaseline | None) -> np.ndarray:
    if name == "oracle":
        return draw.rewards - draw.success
    if name == "oracle-weighted":
        # E[W r] / E[W] given the prompt, the constant of least variance; exact for 0/1 rewards only.
        right, wrong = world.norms(draw.prompts)
        return draw.rewards - right / (right + wrong)
    if name == "grpo-std":
        table = draw.rewards.reshape(-1, size)
        if size == 1:
            return np.zeros(len(draw.rewards))
        return ((table - table.mean(axis=1, keepdims=True)) / (table.std(axis=1, ddof=1, keepdims=True) + 1e-6)).ravel()
    if name == "rloo" and size == 1:
        return draw.rewards
    assert estimator is not None
    return draw.rewards - estimator.predict(rollouts(world, draw))


def gradient(world: World, draw: Draw, advantage: np.ndarray) -> np.ndarray:
    """[64] mean over rollouts of A (e_o - pi), for a bias that all prompts share."""
    pi = world.policy(draw.prompts)
    summed = np.bincount(draw.answers, advantage, minlength=ANSWERS) - advantage @ pi
    return summed / len(advantage)


def true_gradient(world: World, prompts: np.ndarray) -> np.ndarray:
    pi, p = world.policy(prompts), world.success(prompts)
    if not world.scenario.graded:
        right = np.eye(ANSWERS)[world.right[prompts]]
        return (p[:, None] * (right - pi)).mean(axis=0)
    return np.zeros(ANSWERS)  # a graded reward is drawn apart from the answer: no gradient to compare with


def run(name: str, seed: int, size: int, *, quick: bool, redraws: int, arms: list[str]) -> dict:
    """One world, all arms on the same rollouts: [steps] squared errors, and gradients at frozen states."""
    scenario = smaller(SCENARIOS[name]) if quick else SCENARIOS[name]
    world = World(scenario, seed)
    draws = generator("rollouts", name, seed, size)
    estimators = {}
    for arm in arms:
        if arm in EXTRA:
            estimators[arm] = None
            continue
        preset, settings = (
            ARMS[arm] if arm in ARMS else ("empirical_bayes", PLAIN.without(arm.removeprefix("empirical_bayes - ")))
        )
        estimators[arm] = GroupAwareBaseline(world.columns, preset=preset, settings=settings, seed=seed)
    mse: dict[str, list[float]] = {arm: [] for arm in arms}
    power: dict[str, list[float]] = {arm: [] for arm in arms}
    moments: dict[str, dict[str, list[float]]] = {arm: {"trace": [], "along": [], "power": []} for arm in arms}
    seconds = dict.fromkeys(arms, 0.0)
    for step in range(scenario.steps):
        prompts = world.choose(BUDGET // size)
        if redraws and step and step % 12 == 0 and not scenario.graded:
            again = [
                world.sample(prompts, size, generator("redraw", name, seed, size, step, k)) for k in range(redraws)
            ]
            truth = true_gradient(world, prompts)
            for arm, estimator in estimators.items():
                g = np.array([gradient(world, d, advantages(arm, world, d, size, estimator)) for d in again])
                moments[arm]["trace"].append(float(g.var(axis=0, ddof=1).sum()))
                moments[arm]["along"].append(float(g.mean(axis=0) @ truth))
                moments[arm]["power"].append(float(truth @ truth))
        draw = world.sample(prompts, size, draws)
        batch = rollouts(world, draw)
        right, wrong = world.norms(draw.prompts)
        for arm, estimator in estimators.items():
            began = time.perf_counter()
            baseline = draw.rewards - advantages(arm, world, draw, size, estimator)
            if estimator is not None:
                estimator.observe(batch)
            seconds[arm] += time.perf_counter() - began
            mse[arm].append(float(((baseline - draw.success) ** 2).mean()))
            power[arm].append(float((right * (1 - baseline) ** 2 + wrong * baseline**2).mean()))
        world.advance()
    return {"mse": mse, "power": power, "gradient": moments, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="half the prompts, 60 steps, 16 redraws")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--scenario", nargs="+", default=["main"], choices=sorted(SCENARIOS))
    parser.add_argument("--sizes", default="1,2,4,8")
    parser.add_argument("--arms", help="comma-separated; default all")
    parser.add_argument("--ablate", action="store_true", help="empirical_bayes without each scale and signal")
    parser.add_argument("--redraws", type=int, help="batches drawn at each frozen state; 0 measures no gradients")
    parser.add_argument("--learn", action="store_true", help="the learning curves of bandit.py too")
    parser.add_argument("--out", type=Path, required=True)
    words = parser.parse_args()
    redraws = words.redraws if words.redraws is not None else 16 if words.quick else 40
    arms = ["empirical_bayes", *(f"empirical_bayes - {x}" for x in ABLATIONS)] if words.ablate else [*ARMS, *EXTRA]
    arms = words.arms.split(",") if words.arms else arms
    results = json.loads(words.out.read_text()) if words.out.exists() else {}
    kind = ("quick " if words.quick else "") + ("ablation " if words.ablate else "")
    for scenario in words.scenario:
        for seed in map(int, words.seeds.split(",")):
            for size in map(int, words.sizes.split(",")):
                key = f"{kind}{scenario}/{seed}/{size}"
                if set(arms) <= set(results.get(key, {}).get("mse", {})):
                    continue
                results[key] = run(scenario, seed, size, quick=words.quick, redraws=redraws, arms=arms)
                words.out.write_text(json.dumps(results))
                means = {arm: round(float(np.mean(values)), 4) for arm, values in results[key]["mse"].items()}
                print(
                    key,
                    means,
                    {a: round(s, 1) for a, s in results[key]["seconds"].items()},
                    file=sys.stderr,
                    flush=True,
                )
    learning = words.out.with_name(words.out.stem + "-learning.json")
    if words.learn:
        seeds = [int(word) for word in words.seeds.split(",")]
        bandit.sweep(learning, seeds=seeds, sizes=[1, 2, 8], arms=[*bandit.ARMS, *bandit.EXTRA], prompts=2048, lr=0.1)
    print(report.write(words.out, learning))


if __name__ == "__main__":
    main()
