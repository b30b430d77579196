"""A whole run in seconds: a tiny random model on disk, a task it can learn, settings for it."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from coterie.algo.advantages import by_prompt
from coterie.algo.estimators import Advantages
from coterie.callbacks import Callback, RunInfo
from coterie.config.schema import RunConfig
from coterie.policy.update_report import UpdateReport
from coterie.rollout.collector import Experience
from coterie.rollout.sampler import StepBatch
from coterie.runs import parquet, prompts, rollouts
from coterie.train.step import StepResult
from coterie.types import Credit, EvalResult, Group, Prompt, Rollout
from tiny import tiny_tokenizer
from tiny_models import tiny_model

REWARDS = '''
def likes_a(prompts, completions, **columns):
    """The share of the letter a: easy to learn, never all equal."""
    return [text.count("a") / max(1, len(text)) for text in completions]
'''
TIMED = ("time/", "speed/", "memory/")


def make_model(folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """Save a tiny Llama and its tokenizer as any model folder."""
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", dtype=dtype, vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=0, eos_token_id=2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_config(root: Path, **changed: Any) -> RunConfig:
    """Settings for a run under `root`; `root` must be importable for the reward (a worker imports from its cwd)."""
    (root / "tiny_rewards.py").write_text(REWARDS, encoding="utf-8")
    rows = "".join(f'{{"prompt": "how many legs {k}?", "answer": "{k}"}}\n' for k in range(12))
    (root / "train.jsonl").write_text(rows, encoding="utf-8")
    heldout_rows = "".join(f'{{"prompt": "how many legs {k}?", "answer": "{k}"}}\n' for k in range(50, 54))
    (root / "heldout.jsonl").write_text(heldout_rows, encoding="utf-8")
    model = root / "model"
    if not model.is_dir():
        make_model(model)
    settings: dict[str, Any] = {
        "runs": str(root / "runs"),
        "name": "one",
        "steps": 6,
        "threads": 1,
        "model": {"name": str(model)},
        "data": {
            "train": [{"type": "file", "path": str(root / "train.jsonl")}],
            "heldout": [{"type": "file", "path": str(root / "heldout.jsonl")}],
        },
        "sampling": {"max_tokens": 8},
        "collect": {"prompts_per_step": 3, "group_size": 4},
        "engine": {"max_num_seqs": 5},
        "rewards": {"functions": [{"name": "tiny_rewards:likes_a"}]},
        "optim": {"lr": 1e-2},
        "eval": {"samples": 2, "k": 2, "every": 3},
        "checkpoint": {"every": 2, "keep": 2},
    }
    return RunConfig.model_validate(_merged(settings, changed))


def importable(root: Path) -> str:
    """PYTHONPATH with which a reward's worker finds what lies in `root`, and this very package."""
    return os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))


def _merged(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in extra.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def fingerprint(run: Path) -> dict[str, Any]:
    """All that must repeat: metrics but for times, evaluations, rollouts, prompts, the last checkpoint's tensors."""
    with sqlite3.connect(run / "metrics.sqlite") as database:
        metrics = database.execute("SELECT step, name, value FROM metrics ORDER BY step, name").fetchall()
        evals = database.execute("SELECT * FROM evals").fetchall()
        items = database.execute("SELECT * FROM eval_items").fetchall()
    database.close()
    rows = {
        (folder, step): [(r.rollout, r.credit, r.logprobs) for r in rollouts.read_step(run / folder, step)]
        for folder in ("rollouts", "evals")
        for step in parquet.steps(run / folder)
    }
    last = sorted((run / "checkpoints").glob("step_*"))[-1]
    weights = {path.name: path.read_bytes() for path in sorted(last.rglob("*.safetensors"))}
    return {
        "metrics": [row for row in metrics if not row[1].startswith(TIMED)],
        "evals": evals,
        "items": items,
        "rollouts": rows,
        "prompts": prompts.read(run / "prompts").to_pylist(),
        "checkpoint": last.name,
        "weights": weights,
    }


def step_result(
    experience: Experience,
    *,
    step: int = 1,
    groups: Sequence[Group] | None = None,
    credits: Sequence[Credit] = (),
    metrics: Mapping[str, float] | None = None,
    skipped: int = 0,
) -> StepResult:
    """The result of a step with this experience, of an estimator and a learner that did nothing else."""
    groups = by_prompt(experience.rollouts) if groups is None else groups
    return StepResult(
        step=step,
        batch=StepBatch(experience=experience, groups=list(groups), cursor=0, pending=()),
        advantages=Advantages(),
        credits=tuple(credits),
        update=UpdateReport(metrics=dict(metrics or {}), logprobs={}, skipped=skipped),
        seconds={"step": 6.0, "collect": 3.0, "update": 3.0},
    )


class Watch(Callback):
    """Callback that records every call."""

    def __init__(self) -> None:
        self.info: RunInfo | None = None
        self.steps: list[dict[str, float]] = []
        self.evals: list[EvalResult] = []
        self.notes: list[tuple[str, str]] = []
        self.message = ""

    def on_start(self, info: RunInfo) -> None:
        self.info = info

    def on_step(self, step: int, metrics: Mapping[str, float], sample: tuple[Prompt, Rollout] | None) -> None:
        self.steps.append(dict(metrics))

    def on_evaluate(self, results: Sequence[EvalResult]) -> None:
        self.evals += results

    def on_event(self, kind: str, message: str) -> None:
        self.notes.append((kind, message))

    def on_end(self, run: Path, message: str) -> None:
        self.message = message


def stop_at(at: int, number: signal.Signals, *, times: int = 1) -> Watch:
    """Callback that sends this process a signal after a step."""

    class Stop(Watch):
        def on_step(self, step: int, metrics: Mapping[str, float], sample: tuple[Prompt, Rollout] | None) -> None:
            for _ in range(times if step == at else 0):
                os.kill(os.getpid(), number)

    return Stop()


CHILD = """
import json, os, sys
from pathlib import Path
sys.path[:0] = sys.argv[4:]
from runs_for_tests import make_config
from coterie import launch
from coterie.train import grpo
point, nth = sys.argv[1], int(sys.argv[2])
seen = 0
def armed(owner, name, after):
    inner = getattr(owner, name)
    def call(*args, **kwargs):
        global seen
        seen += 1
        if seen == nth and not after:
            os.kill(os.getpid(), 9)
        result = inner(*args, **kwargs)
        if seen == nth:
            os.kill(os.getpid(), 9)
        return result
    setattr(owner, name, call)
from coterie.engines.runner import PackedRunner
from coterie.policy.optim import MasterAdamW
from coterie.runs import checkpoint, durable, rollouts
from coterie.runs.metrics import MetricsDB
from coterie.train.evaluate import EVALUATING
POINTS = {
    "decode": (PackedRunner, "decode", False),
    "optimizer": (MasterAdamW, "step", True),
    "rollout-file": (rollouts, "write_step", True),
    "metrics": (MetricsDB, "record", True),
    "evaluation": (MetricsDB, "record_evals", False),
    "fsync": (durable, "fsync", False),
    "publish": (checkpoint, "publish_directory", True),
    "prune": (checkpoint, "prune", False),
}
armed(*POINTS[point])
if sys.argv[3] == "train":
    launch.train(make_config(Path.cwd(), **json.loads(os.environ["CHANGED"])))
else:
    launch.resume("one")
"""


def killed(root: Path, point: str, nth: int, verb: str = "train", *, changed: str = "{}") -> int:
    """Run, with changed settings as JSON, in a process of its own that kills itself at the nth pass of a point."""
    command = [sys.executable, "-c", CHILD, point, str(nth), verb, str(Path(__file__).parent)]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "CHANGED": changed,
        "PYTHONPATH": os.pathsep.join([str(root), os.environ["PYTHONPATH"]]),
    }
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, timeout=120).returncode
