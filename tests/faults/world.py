"""A run so small that hundreds of deaths cost little, and the hashes that tell whether it was the same run."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from coterie.config.schema import RunConfig
from coterie.config.toml import dumps
from coterie.engines.attempt_history import FILE as ATTEMPTS
from coterie.rollout.collector import Experience
from coterie.runs import checkpoint, parquet, prompts, rollouts
from coterie.runs.directory import RunDirectory
from coterie.stages import rejection
from coterie.train.grpo import Trainer
from coterie.train.loop import Loop
from coterie.train.recorder import Recorder
from coterie.train.sft import SftTrainer
from coterie.train.step import StepResult
from tiny import tiny_tokenizer
from tiny_models import tiny_model

NAME = "one"
STEPS = 5
STAGES = ("cold", "more", "reason", "kept", "tuned", "taught")
"""Runs of a pipeline, in their order."""
TIMED = ("time/", "speed/", "memory/")
"""Metrics that depend on the clock."""
REWARDS = '''
def checksum(prompts, completions, **columns):
    """Hardly two texts are worth the same, so that every step has a gradient."""
    return [sum(map(ord, text)) % 97 / 97 for text in completions]
'''
TOOLS = '''
import random, time

class Counter:
    """Counts letters over an episode, and takes its time."""

    def __init__(self):
        self.count = 0

    def add(self, text: str) -> str:
        """Add the letters of a text.

        Args:
            text: the text
        """
        time.sleep(random.SystemRandom().choice([0.0, 0.01, 0.05, 0.1]))
        self.count += len(text)
        if text.count("e") > 2:
            raise ValueError("too many")
        return f"{self.count} letters"
'''


def make_world(folder: Path, **sizes: int) -> None:
    """What every trial reads: a model, prompts, a reward, a tool.

    Args:
        sizes: of the model that are others than usual.
    """
    folder.mkdir(parents=True)
    (folder / "tiny_rewards.py").write_text(REWARDS, encoding="utf-8")
    (folder / "tiny_tools.py").write_text(TOOLS, encoding="utf-8")
    for name, numbers in (("train", range(6)), ("heldout", range(50, 53))):
        rows = "".join(f'{{"prompt": "how many legs {k}?", "answer": "{k}"}}\n' for k in numbers)
        (folder / f"{name}.jsonl").write_text(rows, encoding="utf-8")
    talks = [{"prompt": f"how many legs {k}?", "completion": "the a" + " a" * (k % 3)} for k in range(60, 76)]
    (folder / "talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks), encoding="utf-8")
    tokenizer = tiny_tokenizer()
    model = tiny_model(
        "llama",
        dtype=torch.float32,
        vocab_size=len(tokenizer),
        num_hidden_layers=1,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=2,
        **sizes,
    )
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")


def settings(world: Path, runs: Path, **changed: Any) -> RunConfig:
    """A run of `STEPS` steps with a checkpoint every second one, in the folder `runs`."""
    defaults: dict[str, Any] = {
        "runs": str(runs),
        "name": NAME,
        "steps": STEPS,
        "threads": 1,
        "model": {"name": str(world / "model")},
        "data": {
            name: [{"type": "file", "path": str(world / f"{name}.jsonl"), "task": "legs"}]
            for name in ("train", "heldout")
        },
        "sampling": {"max_tokens": 4},
        "collect": {"prompts_per_step": 2, "group_size": 3},
        "engine": {"max_num_seqs": 4},
        "rewards": {"functions": [{"name": "tiny_rewards:checksum"}]},
        "optim": {"lr": 1e-2},
        "eval": {"samples": 1, "k": 1, "every": 3},
        "checkpoint": {"every": 2, "keep": 2},
    }
    return RunConfig.model_validate(defaults | changed)


def settings_file(world: Path, runs: Path) -> Path:
    """The same settings for the program, in a file beside the folder `runs`."""
    file = runs.with_suffix(".toml")
    file.write_text(dumps(settings(world, runs).model_dump(mode="json")), encoding="utf-8")
    return file


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One step as some process left it."""

    step: int
    hash: str
    time: float
    """Monotonic, seconds; of the end of the step."""


def keep_chain(file: Path) -> None:
    """From now on, each step of this process appends its link: everything that a step decides, hashed."""
    trained, imitated, sampled = Trainer.record, SftTrainer.advance, rejection._record

    def append(run: RunDirectory, step: int, digest: str) -> None:
        link = {"step": numbered(run.path.name, step), "hash": digest, "time": time.monotonic()}
        handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(handle, json.dumps(link).encode() + b"\n")  # one write: no kill can cut it
        os.close(handle)

    def record(self: Trainer, result: StepResult) -> None:
        trained(self, result)
        append(self.recorder.run, result.step, state_hash(self))

    def advance(self: SftTrainer) -> None:
        imitated(self)
        append(self.recorder.run, self.progress.step, state_hash(self))

    def keep(recorder: Recorder, step: int, experience: Experience, seconds: float) -> None:
        # Before it is stored: a step that is stored is not sampled again.
        rows = [(x.id, [turn.tokens for turn in x.turns], x.reward) for x in experience.rollouts]
        digest = hashlib.sha256(repr(rows).encode()).hexdigest()
        append(recorder.run, step, digest)
        sampled(recorder, step, experience, seconds)

    Trainer.record, SftTrainer.advance, rejection._record = record, advance, keep  # ty: ignore[invalid-assignment]


def numbered(run: str, step: int) -> int:
    """A step's number in a chain, in which the steps of a pipeline's stages follow each other."""
    return step + 1000 * STAGES.index(run) if run in STAGES else step


def read_chain(file: Path) -> list[Link]:
    if not file.exists():
        return []
    return [Link(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def state_hash(trainer: Loop) -> str:
    """sha256 over weights, moments, counters, cursor, policy version, and what the step stored: sampled tokens,
    log-probs, rewards, advantages (where it samples), metrics."""
    digest = hashlib.sha256()
    for name, tensor in sorted(trainer.learner.optimizer.state().items()):
        digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    counters = {
        **trainer.learner.counters(),
        **trainer.progress.state(),
        **trainer.state(),
    }
    if getattr(trainer, "lagged", None) is None:  # else the engine gets its next version while the learner updates
        counters["version"] = trainer.engine.version
    digest.update(json.dumps(counters, sort_keys=True).encode())
    run = trainer.recorder.run
    if trainer.progress.step in parquet.steps(run.rollouts):
        digest.update(_rows_hash(run.rollouts, trainer.progress.step).encode())
    metrics = trainer.recorder.db.step_metrics(trainer.progress.step)
    digest.update(repr(sorted(item for item in metrics.items() if not item[0].startswith(TIMED))).encode())
    return digest.hexdigest()


def _rows_hash(folder: Path, step: int) -> str:
    rows = [(row.prompt, row.rollout, row.credit, row.logprobs) for row in rollouts.read_step(folder, step)]
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def end_state(run: Path) -> dict[str, str]:
    """Name → hash of all that a finished run leaves and that must repeat."""
    hashes = dict(_tables(run / "metrics.sqlite"))
    for folder in ("rollouts", "evals"):
        hashes |= {f"{folder} {step}": _rows_hash(run / folder, step) for step in parquet.steps(run / folder)}
    prompt_rows = repr(prompts.read(run / "prompts").to_pylist())
    hashes["prompts"] = hashlib.sha256(prompt_rows.encode()).hexdigest()
    saved = checkpoint.newest(run / "checkpoints")
    hashes["checkpoints"] = repr(checkpoint.steps(run / "checkpoints"))
    if saved is not None:
        hashes["state"] = repr(sorted(saved.state.items()))
        for file in sorted([*saved.path.rglob("*.safetensors"), *saved.path.glob(ATTEMPTS)]):
            hashes[f"weights {file.name}"] = hashlib.sha256(file.read_bytes()).hexdigest()
    left = [path.name for path in run.rglob(".tmp-*")]
    return hashes | {"leftovers": repr(left)}


def _tables(file: Path) -> Iterator[tuple[str, str]]:
    if not file.exists():  # of rejection sampling from stored rollouts
        return
    database = sqlite3.connect(file)
    try:
        for table in ("metrics", "evals", "eval_items"):
            rows = database.execute(f"SELECT * FROM {table}").fetchall()
            kept = sorted(row for row in rows if not str(row[1]).startswith(TIMED))
            yield table, hashlib.sha256(repr(kept).encode()).hexdigest()
    finally:
        database.close()


def divergence(
    golden: dict[int, str],
    end: dict[str, str],
    chain: list[Link],
    run: Path,
    state: Callable[[Path], dict[str, str]] = end_state,
) -> str | None:
    """The first difference from the golden run; None when there is none.

    Args:
        golden: step → hash of the run that was left alone.
        end: its `state`.
        chain: links of every attempt at the run in question, in the order written.
        state: hashes of what a finished run leaves.
    """
    for link in chain:
        if golden.get(link.step) != link.hash:
            return f"step {link.step} has another hash than the golden run"
    missing = sorted(set(golden) - {link.step for link in chain})
    if missing:
        return f"step {missing[0]} was never made"
    hashes = state(run)
    for name in sorted(set(end) | set(hashes)):
        if end.get(name) != hashes.get(name):
            return f"{name}: {hashes.get(name, 'absent')[:60]}, expected {end.get(name, 'absent')[:60]}"
    return None
