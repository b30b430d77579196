"""Time of the board's pages on a run of a million rollouts, made for the purpose: python -m benchmarks.board_pages."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coterie import machine
from coterie.board.server import Board
from coterie.config.schema import RunConfig
from coterie.runs import parquet, prompts, rollouts
from coterie.runs.directory import RunDirectory
from coterie.runs.metrics import MetricsDB
from coterie.runs.rows import REPEATED, schema
from coterie.types import Message, Prompt

GROUP, TOKENS = 8, 64
"""Rollouts of a group, tokens of a completion."""
METRICS = 80
WIDTH = 576
"""Of an embedding: SmolLM2-135M's hidden states."""


def make(root: Path, steps: int, size: int) -> Path:
    """A run of so many steps of so many rollouts, as training would have stored it."""
    with RunDirectory.create(root, "large", "x") as run:
        run.write_config(RunConfig(name="large", steps=steps).model_dump(mode="json"))
        generator = np.random.default_rng(0)
        with MetricsDB(run.metrics) as database:
            for step in range(1, steps + 1):
                values = generator.random(METRICS)
                extra = {f"reward/task/t{k}": float(value) for k, value in enumerate(values)}
                spent = {"time/step": 1.0, "rollouts": float(size)}
                database.record(step, {"reward/mean": float(values[0]), **extra, **spent})
        recorded: set[str] = set()
        (run.path / "prompts").mkdir(exist_ok=True)
        for step in range(1, steps + 1):
            table = pa.table(columns(step, size, generator), schema=schema())
            metadata = {"coterie": rollouts.FORMAT, "step": str(step), "sha256": ""}
            pq.write_table(
                table.replace_schema_metadata(metadata),
                parquet.path_of(run.rollouts, step),
                compression="zstd",
                write_page_checksum=True,
                write_statistics=False,
                use_dictionary=list(REPEATED),
            )
            fresh = sorted(set(table["prompt_id"].to_pylist()) - recorded)
            recorded.update(fresh)
            prompts.write_step(run.path / "prompts", step, [embedded(name, generator) for name in fresh])
    return run.path


def embedded(name: str, generator: np.random.Generator) -> prompts.StoredPrompt:
    """A prompt with an embedding of a small model's width."""
    asked = Prompt(id=name, messages=(Message(role="user", content="1 + 1?"),), answer="2", task="task 0")
    vector = generator.normal(size=WIDTH).astype(np.float32)
    return prompts.StoredPrompt(prompt=asked, kind="policy", embedding=vector)


def columns(step: int, size: int, generator: np.random.Generator) -> dict[str, list]:
    """The columns of one step."""
    drawn = generator.integers(20_000, size=size // GROUP)
    names = [f"sums/{number}" for number in drawn for _ in range(GROUP)]
    samples = [k % GROUP for k in range(size)]
    given = {
        "step": [step] * size,
        "prompt_id": names,
        "task": [f"task {k % 5}" for k in range(size)],
        "rollout_id": [f"{name}#{k}@{step - 1}" for name, k in zip(names, samples, strict=True)],
        "sample": samples,
        "prompt": ['[{"role": "user", "content": "1 + 1?"}]'] * size,
        "completion": [f"The answer of attempt {k} is {generator.integers(1000)}." * 4 for k in range(size)],
        "tokens": generator.integers(0, 49_000, (size, TOKENS), dtype=np.int32).tolist(),
        "prompt_tokens": [[1, 2, 3]] * size,
        "loss_mask": [[True] * TOKENS] * size,
        "sampler_entropies": generator.random((size, TOKENS), dtype=np.float32).tolist(),
        "sampler_logprobs": (-generator.random((size, TOKENS), dtype=np.float32)).tolist(),
        "logprobs": (-generator.random((size, TOKENS), dtype=np.float32)).tolist(),
        "turns": ["[]"] * size,
        "reward": generator.random(size).round(3).tolist(),
        "reward_parts": [f'{{"number": {k % 2}, "length": {k % 3 / 2}}}' for k in range(size)],
        "advantage": generator.normal(size=size).tolist(),
        "outcome": ["ok"] * size,
        "stop_reason": ["stop" if k % 7 else "length" for k in range(size)],
        "version": [step - 1] * size,
        "prompt_length": [3] * size,
        "completion_length": generator.integers(4, TOKENS, size).tolist(),
        "expected": generator.random(size).tolist(),
        "region": [f"digits > {k % 9}" for k in range(size)],
    }
    return {name: given.get(name, [None] * size) for name in schema().names}


def measure(board: Board, question: str, **words: object) -> tuple[list[tuple[float, float]], int, dict]:
    """Seconds of five equal requests by the clock and of the processor, the first one cold; bytes, and the answer.

    The processor's seconds are those of this process: of the board, and the little that asking takes.
    """
    seconds, size, answer = [], 0, {}
    for _ in range(5):
        connection = http.client.HTTPConnection("127.0.0.1", board.port or 0)
        started, spent = time.perf_counter(), time.process_time()
        address = f"/api/{question}?{urlencode(words)}"
        connection.request("GET", address, headers={"authorization": f"Bearer {board.token}"})
        data = connection.getresponse().read()
        seconds.append((time.perf_counter() - started, time.process_time() - spent))
        size, answer = len(data), json.loads(data)
        connection.close()
    return seconds, size, answer


def main() -> None:
    """Make the run, ask the board as its pages do, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rollouts", type=int, default=504, help="of a step")
    parser.add_argument("--folder", type=Path, help="keep the run here, and use it where it is there already")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.folder or Path(scratch)
        run = root / "large"
        if not run.is_dir():
            root.mkdir(parents=True, exist_ok=True)
            make(root, arguments.steps, arguments.rollouts)
        count = len(parquet.steps(run / "rollouts")) * arguments.rollouts
        print(f"{count:,} rollouts on {machine.facts(run).line()}; load {os.getloadavg()[0]:.1f}\n")
        with Board(root, 0) as board:
            report(board)


def report(board: Board) -> None:
    """Print the first request and the median of the next four, in milliseconds by the clock and of the processor."""
    print("| page | first | later | first, processor | later, processor | bytes |\n|" + " --- |" * 6)
    _, _, first = measure(board, "runs")
    large = {"run": "large"}
    middle = first["runs"][0]["step"] // 2
    some = measure(board, "rollouts", **large, last=middle)[2]["rows"][0]
    questions = {
        "rollouts, newest": ("rollouts", large),
        "rollouts, highest reward of a step": (
            "rollouts",
            large | {"first": middle, "last": middle, "order": "-reward"},
        ),
        "rollouts of a task that are cut": ("rollouts", large | {"task": "task 3", "stop": "length"}),
        "rollouts that hardly exist (reward from 0.9995)": ("rollouts", large | {"min_reward": 0.9995}),
        "a group": ("group", large | {"step": middle, "prompt": some["prompt_id"]}),
        "a rollout with its tokens": ("rollout", large | {"step": middle, "id": some["rollout_id"]}),
        "a run": ("run", large),
        "its curves": ("curves", large),
        "its parts of the reward": ("parts", large),
        "its regions": ("regions", large),
        "its map of prompts": ("map", large),
        "its prompts": ("prompts", large),
        "its findings": ("doctor", large),
        "the check of its metrics, a part": ("damage", large),
    }
    for page, (question, words) in questions.items():
        seconds, size, _ = measure(board, question, **words)
        first, *later = seconds
        times = [first[0], statistics.median(each[0] for each in later)]
        times += [first[1], statistics.median(each[1] for each in later)]
        print(f"| {page} | {' | '.join(f'{1e3 * value:.0f}' for value in times)} | {size:,} |", flush=True)


if __name__ == "__main__":
    main()
