"""When does skipping dead prompts pay by the clock? The bandit of bandit.py with dead prompts, and a model of costs.

python benchmarks/grouping/skipping.py [--seeds 0,1,2] [--dead 0,0.8,0.95] --out FILE.json

A share of the clusters is dead: half of it is solved whatever the policy answers, half never. Arms: plain GRPO; mixture
with allocation; the same with the tracker, which expects what a prompt's own past says (a skip by history, like GRESO).
Rollouts a step, learning rate and `skip` are chosen for each arm, share and length on seeds 101 and 102. The score is
seconds until the exact success on the other prompts is LEVEL, with the seconds of `Costs`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from bandit import ANSWERS, CLUSTERS, WIDTH, Bandit

from coterie.algo.subsample import keep_probabilities
from coterie.config.advantage import GroupingConfig
from coterie.grouping.allocation import Prospects, allocate
from coterie.grouping.arrays import Rollouts
from coterie.grouping.features import Column
from coterie.grouping.model import GroupAwareBaseline
from coterie.grouping.presets import Settings
from coterie.rng import generator

PROMPTS, STEPS, LEVEL, GROUP, TUNED = 300, 200, 0.4, 4, (101, 102)
ARMS = ("grpo", "tracker", "mixture")
ROLLOUTS, RATES, SKIPS = (32, 64), (0.05, 0.1), (0.0, 0.02, 0.05, 0.1)
ANSWER_TOKENS = (16, 64, 256)


@dataclass(frozen=True, kw_only=True)
class Costs:
    """CPU seconds of parts of a step, fitted to recorded runs of recipes/wide-difficulty with 16 and with 32 rollouts a
    step (`coterie timing`: SmolLM2-135M, one thread)."""

    pass_: float = 0.037
    """One decoding pass of the whole batch."""
    row: float = 0.0011
    """And of each sequence in it."""
    prefill: float = 0.03
    """One prompt."""
    update: float = 1.0
    """An optimizer step with the fixed part of forward and backward; none where no rollout has an advantage."""
    token: float = 0.0045
    """Forward and backward of one token."""
    prompt_tokens: int = 25

    def seconds(self, step: tuple[int, int, int, int], answer: int) -> float:
        """Of one step: (prompts, rollouts, prompts and rollouts in the update), answers of so many tokens."""
        prompts, rollouts, trained_prompts, trained = step
        update = (
            self.update + self.token * (trained_prompts * self.prompt_tokens + trained * answer) if trained else 0.0
        )
        return prompts * self.prefill + answer * (self.pass_ + self.row * rollouts) + update


class Mixed(Bandit):
    """Clusters of which a share is dead."""

    def __init__(self, dead: float, seed: int) -> None:
        super().__init__(PROMPTS, seed)
        cluster = generator("bandit", PROMPTS, seed).integers(CLUSTERS, size=PROMPTS)
        order = generator("dead", seed).permutation(CLUSTERS)
        count = round(dead * CLUSTERS)
        solved, never = order[: count // 2], order[count // 2 : count]
        self.chance[np.isin(cluster, solved)] = 1.0
        self.chance[np.isin(cluster, never)] = 0.0
        self.live = np.flatnonzero(~np.isin(cluster, order[:count]))

    def success(self) -> float:
        return float((self.policy(self.live) * self.chance[self.live]).sum(axis=1).mean())


def run(
    arm: str, dead: float, *, rollouts: int, lr: float, skip: float, seed: int
) -> tuple[list[float], list[list[int]]]:
    """[STEPS + 1] success on live prompts, and the work of each step, see `Costs.seconds`."""
    world, rng = Mixed(dead, seed), generator("draws", arm, rollouts, seed)
    columns = tuple(Column(f"meaning {i + 1}", "semantic") for i in range(WIDTH))
    config = GroupingConfig(weights="none", scale="expected", min_weight=10)
    model = GroupAwareBaseline(columns, preset="mixture" if arm == "grpo" else arm, settings=Settings(config=config))
    names = tuple(str(row) for row in range(PROMPTS))
    curve, work, order = [world.success()], [], np.zeros(0, dtype=np.int64)
    for step in range(STEPS):
        if arm == "grpo":
            count = rollouts // GROUP
            order = order if order.size >= count else np.append(order, rng.permutation(PROMPTS))
            rows, order = np.repeat(order[:count], GROUP), order[count:]
        else:
            mean, variance = model.expect(names, world.features, float(step))
            everyone = np.ones(PROMPTS)
            prospects = Prospects(
                success=np.clip(mean, 0.0, 1.0),
                variance=variance,
                prompt_cost=25 * everyone,
                rollout_cost=24 * everyone,
            )
            plan = allocate(
                prospects, rollouts=rollouts, least=2, skip=skip, review=0.1, counters=("skipping", seed, step)
            )
            rows = np.repeat(plan.chosen, plan.rollouts)
        pi = world.policy(rows)
        answers = (rng.random(rows.size)[:, None] > pi.cumsum(axis=1)).sum(axis=1).clip(max=ANSWERS - 1)
        rewards = (rng.random(rows.size) < world.chance[rows, answers]).astype(np.float64)
        if arm == "grpo":
            table = rewards.reshape(-1, GROUP)
            spread = table.std(axis=1, ddof=1, keepdims=True) + 1e-6
            advantage = ((table - table.mean(axis=1, keepdims=True)) / spread).ravel()
        else:
            batch = Rollouts(
                prompts=tuple(names[row] for row in rows),
                rewards=rewards,
                features=world.features[rows],
                time=float(step),
            )
            advantage = model.advantages(batch)
            model.observe(batch)
            keep = keep_probabilities(np.abs(advantage), 1.0)
            uniforms = rng.random(PROMPTS)[rows]
            advantage = np.where(uniforms < keep, advantage / np.maximum(keep, 1e-9), 0.0)
        trained = advantage != 0
        if trained.any():
            score = advantage[:, None] * (np.eye(ANSWERS)[answers] - pi)
            world.ascend(world.inputs[rows].T @ score / rows.size, lr)
        curve.append(world.success())
        work.append([np.unique(rows).size, rows.size, np.unique(rows[trained]).size, int(trained.sum())])
        if curve[-1] >= LEVEL:
            break
    return curve, work


def seconds_to_level(curve: list[float], work: list[list[int]], answer: int) -> float:
    """Infinite where the level was not reached in STEPS."""
    if curve[-1] < LEVEL:
        return float("inf")
    return sum(Costs().seconds((a, b, c, d), answer) for a, b, c, d in work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2,3,4,5,6,7")
    parser.add_argument("--dead", default="0,0.5,0.8,0.95")
    parser.add_argument("--out", type=Path, required=True)
    words = parser.parse_args()
    seeds = [int(word) for word in words.seeds.split(",")]
    rows = []
    for dead in map(float, words.dead.split(",")):
        runs: dict[tuple, tuple] = {}

        def spent(arm: str, cell: tuple, chosen: Sequence[int], answer: int) -> list[float]:
            for seed in chosen:
                if (arm, cell, seed) not in runs:  # noqa: B023
                    rollouts, lr, skip = cell
                    runs[arm, cell, seed] = run(arm, dead, rollouts=rollouts, lr=lr, skip=skip, seed=seed)  # noqa: B023
            return [seconds_to_level(*runs[arm, cell, seed], answer) for seed in chosen]  # noqa: B023

        for answer in ANSWER_TOKENS:
            for arm in ARMS:
                grid = list(product(ROLLOUTS, RATES, (0.0,) if arm == "grpo" else SKIPS))
                best = min(grid, key=lambda cell: np.mean(spent(arm, cell, TUNED, answer)))
                seconds = spent(arm, best, seeds, answer)
                steps = [len(runs[arm, best, seed][1]) for seed in seeds]
                rows.append(
                    {"dead": dead, "answer": answer, "arm": arm, "cell": best, "seconds": seconds, "steps": steps}
                )
                print(
                    f"dead {dead:.2f}, answers of {answer}: {arm}, {best[0]} rollouts, lr {best[1]}, skip {best[2]}: "
                    f"{np.median(seconds):.0f} s, {np.median(steps):.0f} steps, {np.isfinite(seconds).sum()} reach it",
                    flush=True,
                )
            words.out.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
