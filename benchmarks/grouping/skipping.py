"""Do skipped dead prompts and sequential groups pay by the clock? The bandit of bandit.py with dead prompts and a model
of costs.

python benchmarks/grouping/skipping.py [--seeds 0,1,2] [--dead 0,0.8,0.95] --out FILE.json

A share of the clusters is dead: half of it is solved whatever the policy answers, half never. Arms: plain GRPO; mixture
with allocation; the same with the tracker, which expects what a prompt's own past says (a skip by history, like GRESO);
mixture with sequential groups: two rollouts of each drawn prompt, which the estimator learns from, then more where the
expected reward, or that the two differed, says that they pay. Both waves enter one update. A second wave has decoding
passes of its own; in the arm `riding` its rows ride along with other rows, and it has none, which is the least that it
can cost. Settings of each arm, share and length are chosen on seeds 101 to 106. The score is seconds until the exact
success on the other prompts is LEVEL, with the seconds of `Costs`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
from bandit import ANSWERS, CLUSTERS, WIDTH, Bandit

from coterie.algo.subsample import keep_probabilities
from coterie.config.advantage import GroupingConfig
from coterie.grouping.allocation import FLOOR, Prospects, allocate, apportion
from coterie.grouping.arrays import Rollouts
from coterie.grouping.features import Column
from coterie.grouping.model import GroupAwareBaseline
from coterie.grouping.presets import Settings
from coterie.rng import generator
from coterie.stats import t_interval

PROMPTS, STEPS, LEVEL, GROUP, TUNED = 300, 200, 0.4, 4, range(101, 107)
ARMS = ("grpo", "tracker", "mixture", "sequential", "riding")
ROLLOUTS, RATES, SKIPS = (32, 64), (0.05, 0.1), (0.0, 0.02, 0.05, 0.1)
ANSWER_TOKENS = (16, 64, 256)
LEAST, MOST = 2, 8
"""Rollouts of a prompt: in the first wave of sequential groups, and at most."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Settings of a run."""

    rollouts: int
    """Of a step."""
    lr: float
    skip: float = 0.0
    first: float = 1.0
    """Share of the rollouts in the first wave; 1: no second wave."""
    differing: bool = False
    """The second wave goes to prompts whose two rewards differed alone, and is smaller where they are few. Otherwise it
    goes to all, in proportion to √(p(1 - p)) with p the expected reward after the first wave."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a step did."""

    prompts: int
    rollouts: int
    trained_prompts: int
    trained: int
    """Rollouts in the update."""
    waves: int
    """Sampling calls."""


def cells(arm: str) -> list[Cell]:
    """Settings that are tried for an arm."""
    skips = (0.0,) if arm == "grpo" else SKIPS
    waves = [(first, rule) for first in (0.5, 0.75) for rule in (False, True)] if arm in ARMS[3:] else [(1.0, False)]
    return [
        Cell(rollouts=rollouts, lr=lr, skip=skip, first=first, differing=rule)
        for rollouts, lr, skip, (first, rule) in product(ROLLOUTS, RATES, skips, waves)
    ]


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

    def seconds(self, work: Work, answer: int, *, riding: bool = False) -> float:
        """Of one step with answers of so many tokens; `riding`: the second wave has no decoding passes of its own."""
        waves = 1 if riding else work.waves
        tokens = work.trained_prompts * self.prompt_tokens + work.trained * answer
        update = self.update + self.token * tokens if work.trained else 0.0
        return work.prompts * self.prefill + answer * (self.pass_ * waves + self.row * work.rollouts) + update


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


class Arm:
    """Draws prompts and credits rollouts, in one wave or two."""

    def __init__(self, name: str, cell: Cell, world: Mixed, seed: int) -> None:
        self.plain, self.cell, self.world, self.seed = name == "grpo", cell, world, seed
        preset = "tracker" if name == "tracker" else "mixture"
        columns = tuple(Column(f"meaning {i + 1}", "semantic") for i in range(WIDTH))
        config = GroupingConfig(weights="none", scale="expected", min_weight=10)
        self.model = GroupAwareBaseline(columns, preset=preset, settings=Settings(config=config))
        self.rng = generator("draws", name, cell.rollouts, seed)
        self.order = np.zeros(0, dtype=np.int64)

    def first_wave(self, step: int) -> np.ndarray:
        """[B] prompt of each rollout."""
        if self.plain:
            count = self.cell.rollouts // GROUP
            if self.order.size < count:
                self.order = np.append(self.order, self.rng.permutation(PROMPTS))
            rows, self.order = np.repeat(self.order[:count], GROUP), self.order[count:]
            return rows
        everyone = np.arange(PROMPTS)
        mean, variance = self.expect(everyone, step)
        plan = allocate(
            Prospects(
                success=mean, variance=variance, prompt_cost=np.full(PROMPTS, 25.0), rollout_cost=np.full(PROMPTS, 24.0)
            ),
            rollouts=LEAST * round(self.cell.rollouts * self.cell.first / LEAST),
            least=LEAST,
            most=MOST if self.cell.first == 1 else LEAST,
            skip=self.cell.skip,
            review=0.1,
            counters=("skipping", self.seed, step),
        )
        return np.repeat(plan.chosen, plan.rollouts)

    def second_wave(self, rows: np.ndarray, rewards: np.ndarray, step: int) -> np.ndarray:
        """[B'] prompt of each further rollout, after the estimator learned from the first wave."""
        prompts, spare = rows[::LEAST], self.cell.rollouts - rows.size
        if self.cell.differing:
            pairs = rewards.reshape(-1, LEAST)
            prompts = prompts[pairs.min(axis=1) != pairs.max(axis=1)]
            wishes = np.ones(prompts.size)
        else:
            mean, _ = self.expect(prompts, step)
            wishes = np.sqrt(mean * (1.0 - mean)) + FLOOR
        spare = min(spare, (MOST - LEAST) * prompts.size)
        return np.repeat(prompts, apportion(wishes, spare, MOST - LEAST)) if spare else prompts[:0]

    def expect(self, rows: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
        """[N] expected rewards from 0 to 1, and their variances."""
        names = tuple(str(row) for row in rows)
        mean, variance = self.model.expect(names, self.world.features[rows], float(step))
        return np.clip(mean, 0.0, 1.0), variance

    def credit(self, rows: np.ndarray, rewards: np.ndarray, step: int) -> np.ndarray:
        """[B] advantages; the estimator learns from the rewards."""
        if self.plain:
            table = rewards.reshape(-1, GROUP)
            spread = table.std(axis=1, ddof=1, keepdims=True) + 1e-6
            return ((table - table.mean(axis=1, keepdims=True)) / spread).ravel()
        names = tuple(str(row) for row in rows)
        batch = Rollouts(prompts=names, rewards=rewards, features=self.world.features[rows], time=float(step))
        advantage = self.model.advantages(batch)
        self.model.observe(batch)
        return advantage

    def sample(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[B] answers and rewards of the policy."""
        pi = self.world.policy(rows)
        answers = (self.rng.random(rows.size)[:, None] > pi.cumsum(axis=1)).sum(axis=1).clip(max=ANSWERS - 1)
        return answers, (self.rng.random(rows.size) < self.world.chance[rows, answers]).astype(np.float64)

    def step(self, step: int) -> Work:
        """Samples, credits and updates the policy once."""
        rows = self.first_wave(step)
        answers, rewards = self.sample(rows)
        advantage = self.credit(rows, rewards, step)
        waves = 1
        if self.cell.first < 1 and (more := self.second_wave(rows, rewards, step)).size:
            further, gained = self.sample(more)
            advantage = np.append(advantage, self.credit(more, gained, step))
            rows, answers, waves = np.append(rows, more), np.append(answers, further), 2
        if not self.plain:
            keep = keep_probabilities(np.abs(advantage), 1.0)
            uniforms = self.rng.random(PROMPTS)[rows]
            advantage = np.where(uniforms < keep, advantage / np.maximum(keep, 1e-9), 0.0)
        trained = advantage != 0
        if trained.any():
            score = advantage[:, None] * (np.eye(ANSWERS)[answers] - self.world.policy(rows))
            self.world.ascend(self.world.inputs[rows].T @ score / rows.size, self.cell.lr)
        return Work(
            prompts=np.unique(rows).size,
            rollouts=rows.size,
            trained_prompts=np.unique(rows[trained]).size,
            trained=int(trained.sum()),
            waves=waves,
        )


def run(name: str, dead: float, cell: Cell, seed: int) -> list[Work]:
    """Work of each step until LEVEL is reached, or of STEPS."""
    world = Mixed(dead, seed)
    arm, work = Arm(name, cell, world, seed), []
    while world.success() < LEVEL and len(work) < STEPS:
        work.append(arm.step(len(work)))
    return work


def table(rows: list[dict]) -> str:
    """Markdown: seconds of pairs of arms as ratios, geometric means over seeds with Student's 95 % interval of the
    logarithms, and median updates."""

    def ratio(ours: list[float], theirs: list[float]) -> str:
        logs = t_interval(np.log(ours) - np.log(theirs))
        return f"{np.exp(logs.value):.2f} [{np.exp(logs.low):.2f}, {np.exp(logs.high):.2f}]"

    pairs = [(arm, "grpo") for arm in ARMS[1:]] + [(arm, "mixture") for arm in ARMS[3:]]
    lines = [
        "| dead | answers of | " + " | ".join(f"{arm} / {other}" for arm, other in pairs) + " | updates of each arm |",
        "| --- | --: |" + " --- |" * (len(pairs) + 1),
    ]
    for dead, answer in dict.fromkeys((row["dead"], row["answer"]) for row in rows):
        arms = {row["arm"]: row for row in rows if (row["dead"], row["answer"]) == (dead, answer)}
        cells = [f"{100 * dead:.0f} %", str(answer)]
        cells += [ratio(arms[arm]["seconds"], arms[other]["seconds"]) for arm, other in pairs]
        cells.append(", ".join(f"{np.median(arms[arm]['steps']):.0f}" for arm in ARMS))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2,3,4,5,6,7")
    parser.add_argument("--dead", default="0,0.5,0.8,0.95")
    parser.add_argument("--out", type=Path, required=True)
    words = parser.parse_args()
    seeds = [int(word) for word in words.seeds.split(",")]
    rows: list[dict] = []
    runs = cache(run)

    def works(arm: str, dead: float, cell: Cell, seed: int) -> list[Work]:
        return runs("sequential" if arm == "riding" else arm, dead, cell, seed)

    def spent(arm: str, dead: float, cell: Cell, seed: int, answer: int) -> float:
        """Seconds to LEVEL, or of all STEPS."""
        return sum(Costs().seconds(part, answer, riding=arm == "riding") for part in works(arm, dead, cell, seed))

    for dead, answer, arm in product(map(float, words.dead.split(",")), ANSWER_TOKENS, ARMS):
        best = min(cells(arm), key=lambda cell: sum(spent(arm, dead, cell, seed, answer) for seed in TUNED))
        seconds = [spent(arm, dead, best, seed, answer) for seed in seeds]
        steps = [len(works(arm, dead, best, seed)) for seed in seeds]
        rows.append({"dead": dead, "answer": answer, "arm": arm, "seconds": seconds, "steps": steps} | asdict(best))
        words.out.write_text(json.dumps(rows))
        print(
            f"dead {dead:.2f}, answers of {answer}: {arm}, {asdict(best)}: {np.median(seconds):.0f} s, "
            f"{np.median(steps):.0f} steps, {(np.array(steps) < STEPS).sum()} reach it",
            flush=True,
        )
    print(table(rows))


if __name__ == "__main__":
    main()
