"""Cost of the group-aware statistics on the controller by the number of prompts that it knows.

    python -m benchmarks.grouping.many_prompts
    python -m benchmarks.grouping.many_prompts --prompts 1000 1000000 --rows 1024 --group-size 16

The estimator of `grouping.preset = "mixture"` first meets every prompt once. Then it gives advantages to steps of
prompts drawn from all of them: seconds of the processor (one thread) of an ordinary step, of a step after which the
tree of regions is fitted anew (every `grouping.refit_every` = 10 steps), and of saving the state into a checkpoint.
Memory is that of a process of its own for each number of prompts: what the prompts themselves take, what the
statistics add, and the high-water mark above both. No model is loaded: rewards are drawn from each prompt's own success
rate. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np

from coterie.algo.estimators import Terms
from coterie.config.advantage import GroupingConfig
from coterie.grouping.estimator import GroupAwareEstimator
from coterie.grouping.features import PromptFeatures
from coterie.grouping.hierarchy import Hierarchy
from coterie.types import Context, Group, Outcome, Prompt, Rollout, RolloutScores, StopReason, Turn

EPISODE = 8192
"""Prompts of a step while all are met for the first time."""
PAGE = os.sysconf("SC_PAGE_SIZE")


def prompt(number: int) -> Prompt:
    """A question whose digits and length vary."""
    text = f"What is {number} plus {number * 7919 % 1000}" + " plus 1" * (number % 9) + "?"
    return Prompt(id=f"sums/{number}", messages=({"role": "user", "content": text},), answer=None, task="sums")


def rate(number: int) -> float:
    """Success rate of a prompt: by its length and its own."""
    return 0.1 + 0.08 * (number % 9) + 0.16 * (number * 2654435761 % 1000) / 1000


def step(
    numbers: Sequence[int], size: int, time_: int, draw: np.random.Generator
) -> tuple[list[Group], dict[str, Rollout]]:
    """The groups and rollouts of one step."""
    groups, rollouts = [], {}
    for number in numbers:
        name = f"sums/{number}"
        rewards = (draw.random(size) < rate(number)).astype(float).tolist()
        members = [_rollout(name, k, time_, reward) for k, reward in enumerate(rewards)]
        rollouts |= {rollout.id: rollout for rollout in members}
        groups.append(
            Group(scale="prompt", key=f"{name}@{time_}", members=tuple(r.id for r in members), rewards=tuple(rewards))
        )
    return groups, rollouts


def _rollout(name: str, sample: int, version: int, reward: float) -> Rollout:
    turn = Turn(
        prompt_tokens=(1,) * 16,
        tokens=(5,) * 8,
        sampler_logprobs=(-0.5,) * 8,
        temperature=1.0,
        stop_reason=StopReason.STOP,
        version=version,
    )
    context = Context(
        prompt_id=name,
        task="sums",
        difficulty=None,
        version=version,
        prompt_length=16,
        completion_length=8,
        stop_reason=StopReason.STOP,
    )
    return Rollout(
        id=f"{name}#{sample}@{version}",
        sample=sample,
        turns=(turn,),
        completion="",
        reward=reward,
        reward_parts={},
        outcome=Outcome.OK,
        context=context,
    )


def no_scores(rollouts: Sequence[Rollout]) -> Mapping[str, RolloutScores]:
    raise AssertionError("nothing here needs the policy")


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def high_water() -> int:
    """Most bytes that this process had in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def measure(count: int, rows: int, size: int, steps: int) -> dict[str, float]:
    """What steps cost beside `count` prompts; in a process of its own, for its memory."""
    empty = resident()
    prompts = [prompt(number) for number in range(count)]
    before = resident()
    estimator = GroupAwareEstimator(
        GroupingConfig(preset="mixture"),
        terms=Terms(clip_low=0.2, clip_high=0.2),
        features=PromptFeatures(prompts, None, dimensions=16),
        part_weights={"": 1.0},
        seed=0,
    )
    draw = np.random.default_rng(0)

    def numbers() -> Iterator[list[int]]:
        for start in range(0, count, EPISODE):
            yield list(range(start, min(start + EPISODE, count)))
        while True:
            yield draw.choice(count, size=min(rows, count), replace=False).tolist()

    drawn = numbers()
    with mock.patch.object(Hierarchy, "refit_due", False):
        for _ in range(-(-count // EPISODE)):
            estimator(*step(next(drawn), 2, estimator.step, draw), no_scores)
        for _ in range(60 + -estimator.step % 10):  # until the window has steps of the usual size alone
            estimator(*step(next(drawn), size, estimator.step, draw), no_scores)
    after = resident()
    seconds: list[float] = []
    for _ in range(steps):
        groups, rollouts = step(next(drawn), size, estimator.step, draw)
        began = time.process_time()
        estimator(groups, rollouts, no_scores)
        seconds.append(time.process_time() - began)
    refits, plain = seconds[9::10], [second for k, second in enumerate(seconds) if k % 10 != 9]
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        estimator.save(Path(folder))
        saved = time.process_time() - began
        size_saved = sum(file.stat().st_size for file in Path(folder).iterdir())
    return {
        "step": median(plain),
        "refit": median(refits),
        "save": saved,
        "saved": size_saved,
        "prompts": before - empty,
        "statistics": after - before,
        "peak": high_water() - after,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--rows", type=int, default=256, help="prompts of a step")
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.count:
        print(json.dumps(measure(options.count, options.rows, options.group_size, options.steps)))
        return
    print(f"steps of {options.rows} prompts × {options.group_size} rollouts, one thread\n")
    print("| prompts | ms a step | ms with a new tree | MB of prompts | MB of statistics | MB more at most | save |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for count in options.prompts:
        print(_row(count, _measured(count, options)), flush=True)


def _measured(count: int, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.grouping.many_prompts", "--count", str(count)]
    command += ["--rows", str(options.rows), "--group-size", str(options.group_size), "--steps", str(options.steps)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout)


def _row(count: int, facts: Mapping[str, float]) -> str:
    times = " | ".join(f"{1000 * facts[name]:.0f}" for name in ("step", "refit"))
    sizes = " | ".join(f"{facts[name] / 1e6:.0f}" for name in ("prompts", "statistics", "peak"))
    return f"| {count:,} | {times} | {sizes} | {facts['save']:.2f} s, {facts['saved'] / 1e6:.1f} MB |"


if __name__ == "__main__":
    main()
