"""Sampling ahead (`engine.lag = 1`) in two processes of one thread each, beside one process of two threads.

    python -m benchmarks.overlap
    python -m benchmarks.overlap --rounds 6 --steps 6 --prompts 4 --group-size 8 --max-tokens 32
    python -m benchmarks.overlap --layers 6       # a random model of as many layers: less memory, and whole answers

Each way is a whole training of the demo's model and prompts, in a process of its own, by a reward that differs from
answer to answer, so that every rollout is trained on. The ways of a round follow each other in an order that turns, so
that other load concerns them alike. The first step of each is left out, and the last, in which nothing is sampled
ahead. Seconds of the processor are those of the run and its engine service; they say what a quiet machine would take:
two threads at best half of them, two processes at best the longer of sampling and update. On a busy machine two threads
wait for each other longer, and spin meanwhile. Prints a table in Markdown: medians over the steps of all rounds, and of
the rounds' ratios to the first way with their range.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

RECIPE = Path(__file__).parents[1] / "recipes" / "demo" / "config.toml"
APART = ["--threads", "1", "--cluster.host", "processes", "--cluster.threads", "1"]
WAYS = {
    "one process, 2 threads": ["--threads", "2"],
    "2 processes of 1 thread, in turn": APART,
    "2 processes of 1 thread, lag 1": [*APART, "--engine.lag", "1"],
}
"""Flags of each way."""
TICK = os.sysconf("SC_CLK_TCK")


def train(flags: Sequence[str]) -> None:
    """One training of the recipe in this process; prints a line of JSON with what each step took."""
    from coterie import launch
    from coterie.callbacks import Callback
    from coterie.config.load import load

    class Clock(Callback):
        """Seconds of the clock and of the processor at the end of each step."""

        def __init__(self) -> None:
            self.steps: list[dict[str, float]] = []
            self.last = (time.perf_counter(), *_processor())

        def on_step(self, step: int, metrics: Mapping[str, float], sample: Any) -> None:
            now = (time.perf_counter(), *_processor())
            wall, learner, engine = (after - before for after, before in zip(now, self.last, strict=True))
            facts = {"wall": wall, "learner": learner, "engine": engine, "tokens": metrics["tokens/generated"]}
            facts |= {name: metrics[f"time/{name}"] for name in ("collect", "update", "generate")}
            self.steps.append(facts)
            self.last = now

    clock = Clock()
    launch.train(load(["@", str(RECIPE), *flags]).config, clock)
    print(json.dumps(clock.steps))


def _processor() -> tuple[float, float]:
    """Seconds of this process, and of its children that run."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    spent = 0.0
    for pid in children:
        if b"engine_service" in Path(f"/proc/{pid}/cmdline").read_bytes():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            spent += (int(fields[11]) + int(fields[12])) / TICK
    return time.process_time(), spent


def letters(completions: Sequence[str], **columns: Any) -> list[float]:
    """A reward that differs from answer to answer."""
    return [sum(map(ord, text)) % 97 / 97 for text in completions]


def cut_model(layers: int, folder: Path) -> None:
    """A model of the demo's widths with fewer layers and random weights, and the demo's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from coterie.data import assets

    source = assets.ensure("smollm2-135m")
    config = AutoConfig.from_pretrained(source, num_hidden_layers=layers)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    tokenizer.save_pretrained(folder)


def measured(options: argparse.Namespace, way: str, seed: int, model: str) -> list[dict[str, float]]:
    """The steps of one training, but for the first and the last."""
    with tempfile.TemporaryDirectory() as runs:
        flags = {
            "model.name": model,
            "rewards.functions": '[{"name": "benchmarks.overlap:letters"}]',
            "runs": runs,
            "seed": seed,
            "steps": options.steps + 2,
            "collect.prompts_per_step": options.prompts,
            "collect.group_size": options.group_size,
            "sampling.max_tokens": options.max_tokens,
            "eval.limit": 1,
            "eval.samples": 1,
            "eval.k": 1,
            "checkpoint.every": 0,
        }
        words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
        command = [sys.executable, "-m", "benchmarks.overlap", "--train", json.dumps([*words, *WAYS[way]])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])[1:-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--layers", type=int, default=0, help="of a random model; 0: the demo's model")
    parser.add_argument("--train", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        return train(json.loads(options.train))
    rounds: list[dict[str, list[dict[str, float]]]] = []
    names = list(WAYS)
    with tempfile.TemporaryDirectory() as folder:
        if options.layers:
            cut_model(options.layers, Path(folder))
        model = folder if options.layers else "smollm2-135m"
        for number in range(options.rounds):
            order = names[number % len(names) :] + names[: number % len(names)]
            rounds.append({})
            for way in order:
                rounds[-1][way] = measured(options, way, number, model)
                print(json.dumps({"round": number, "way": way, "steps": rounds[-1][way]}), file=sys.stderr, flush=True)
    return _print(options, rounds)


def _print(options: argparse.Namespace, rounds: list[dict[str, list[dict[str, float]]]]) -> None:
    size = f"{options.prompts} prompts × {options.group_size} × up to {options.max_tokens} tokens"
    if options.layers:
        size = f"{options.layers} layers, {size}"
    print(f"{size}, {options.rounds} rounds of {options.steps} steps; load {os.getloadavg()[0]:.1f} at the end\n")
    columns = ["seconds a step", "CPU s: run", "CPU s: service", "CPU s together", "learner waits, s"]
    print(f"| way | {' | '.join(columns)} | wall ÷ first way | CPU ÷ first way |")
    print("| --- |" + " ---: |" * (len(columns) + 2))
    first = next(iter(WAYS))
    for way in WAYS:
        steps = [step for of_ways in rounds for step in of_ways[way]]
        cells = [median(step[name] for step in steps) for name in ("wall", "learner", "engine")]
        cells += [median(step["learner"] + step["engine"] for step in steps), median(step["collect"] for step in steps)]
        text = " | ".join(f"{cell:.2f}" for cell in cells)
        ratios = [_ratio(rounds, way, first, names) for names in (("wall",), ("learner", "engine"))]
        print(f"| {way} | {text} | {' | '.join(ratios)} |")


def _ratio(rounds: list[dict[str, list[dict[str, float]]]], way: str, first: str, names: tuple[str, ...]) -> str:
    def spent(steps: list[dict[str, float]]) -> float:
        return sum(step[name] for step in steps for name in names)

    ratios = sorted(spent(of_ways[way]) / spent(of_ways[first]) for of_ways in rounds)
    return f"{median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]"


if __name__ == "__main__":
    main()
