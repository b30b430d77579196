"""A program that disturbs: python -m benchmarks.peers.load_noise KIND COUNT NICE, until its input ends.

It says `ready` once it is at work, and at the end how much it got done, so that starving it does not look like a gain.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from coterie.config.rewards import RewardsConfig
from coterie.rewards.pool import Scorer
from coterie.types import Prompt

UNIT_LOOPS = 100_000
"""Some milliseconds of Python, as a reward function that parses an answer takes."""
REWARD = "benchmarks.peers.load_noise:score"
SIDE = 512
"""Of the square matrices of `math`."""


def unit(loops: int = UNIT_LOOPS) -> int:
    """One piece of work like a reward function's."""
    return sum(number * number for number in range(loops))


def score(completions: Sequence[str], loops: int = UNIT_LOOPS) -> list[float]:
    """A reward function that keeps its worker busy: one unit a completion."""
    return [float(unit(loops) % 2) for _ in completions]


LOOP = f"""
while True:
    sum(number * number for number in range({UNIT_LOOPS}))
"""
SHORT = f"""
import subprocess, sys
while True:
    subprocess.run([sys.executable, "-c", "sum(number * number for number in range({UNIT_LOOPS}))"])
"""


@contextmanager
def programs(code: str, count: int) -> Generator[None]:
    """`count` Python programs of the same priority as this process."""
    started = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        yield
    finally:
        for program in started:
            program.kill()
            program.wait()


@contextmanager
def busy(count: int) -> Generator[Callable[[], int]]:
    """`count` programs that never wait, this one among them, of which alone the work is counted."""

    def work() -> int:
        unit()
        return 1

    with programs(LOOP, count - 1):
        yield work


@contextmanager
def mixed(count: int) -> Generator[Callable[[], int]]:
    """Half of the programs start one short process after the other, as package installs do; the others never wait."""
    with programs(SHORT, count // 2), busy(count - count // 2) as work:
        yield work


@contextmanager
def math(count: int) -> Generator[Callable[[], int]]:
    """Matrix products on `count` threads of torch."""
    import torch

    torch.set_num_threads(count)
    matrix = torch.randn(SIDE, SIDE)

    def product() -> int:
        matrix.mm(matrix)
        return 1

    yield product


@contextmanager
def workers(count: int) -> Generator[Callable[[], int]]:
    """`count` reward workers as a run has them, at the priority that a run gives them."""
    config: dict[str, Any] = {"functions": [{"name": REWARD}], "workers": count, "timeout_s": 600}
    prompts = [
        Prompt(id=f"p/{index}", messages=({"role": "user", "content": "?"},), answer=None, task="noise")
        for index in range(4 * count)
    ]
    with Scorer(RewardsConfig.model_validate(config)) as scorer:
        scorer.start()
        yield lambda: len(scorer.score(prompts, [""] * len(prompts)))


KINDS = {"busy": busy, "mixed": mixed, "math": math, "workers": workers}


def main(kind: str, count: int, nice: int) -> None:
    """Work in units until standard input ends."""
    if nice:
        os.setpriority(os.PRIO_PROCESS, 0, nice)
    with KINDS[kind](count) as work:
        done, started = 0, time.monotonic()
        print("ready", flush=True)
        while not select.select([sys.stdin], [], [], 0)[0]:
            done += work()
        seconds = time.monotonic() - started
    print(json.dumps({"units": done, "seconds": seconds}), flush=True)  # when the programs that it started are gone


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
