"""SIGKILL of a fine-tuning, of rejection sampling, and in and between the stages of a pipeline."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from coterie import launch
from coterie.runs.inspect import DATA
from coterie.stages import pipeline, rejection
from coterie.stages.records import read_record
from coterie.train.sft import SftTrainer
from faults.cases import Case, of_trial
from faults.harness import Harness, Hooks, Trial
from faults.kills import at_random, chosen, reached
from faults.points import INTERRUPTED, WHILE_RESUMING, WHILE_TRAINING, Point, die_at
from faults.world import NAME, STAGES, end_state, settings

_STAGES = "coterie.stages"
PHASES: dict[str, Hooks] = {
    "between stages": [(pipeline, "_advance"), (pipeline, "_evaluate_base")],
    "a stage's set-up": [(pipeline, "_run_stage")],
    "held-out loss": [(SftTrainer, "heldout_loss")],
    "resume of sampling": [(rejection, "_recorded")],
    "store of samples": [(rejection, "_record")],
    "selection": [(rejection, "select"), (rejection, "write_data"), (rejection, "write_selection")],
    "evaluation of a stage": [(pipeline, "_evaluate")],
    "report of a pipeline": [(pipeline, "write_summary")],
}
"""What a stage or a pipeline may be doing beside what a run does."""
_SAMPLED = {"the rollouts are stored", "before the prompts are stored", "after the prompts are stored"}
"""Points that a fine-tuning does not pass."""
_SAMPLED_AGAIN = {
    "before rollouts are forgotten", "after rollouts are forgotten", "before the state is restored",
    "after the state is restored", "the first step again",
}  # fmt: skip
"""Points that the resume of a fine-tuning does not pass."""
IN_SFT = [
    *(point for point in WHILE_TRAINING if point.name not in _SAMPLED),
    Point("before a held-out loss", "coterie.train.sft:SftTrainer.heldout_loss", "before"),
    Point("after a held-out loss", "coterie.train.sft:SftTrainer.heldout_loss", "after"),
]
IN_REJECTION = [
    Point("a step is sampled", "coterie.rollout.collector:Collector.collect", "after"),
    Point("before a step is stored", f"{_STAGES}.rejection:_record", "before"),
    Point("the rollouts of a step are in a file", "coterie.runs.rollouts:write_step", "after"),
    Point("before the metrics of a step", "coterie.runs.metrics:MetricsDB.record", "before"),
    Point("after the metrics of a step", "coterie.runs.metrics:MetricsDB.record", "after"),
    Point("all is sampled and selected", f"{_STAGES}.rejection:select", "after"),
    Point("a table is in a file", f"{_STAGES}.dataset:pq.write_table", "after"),
    Point("before the rows are published", f"{_STAGES}.rejection:write_data", "before"),
    Point("after the rows are published", f"{_STAGES}.rejection:write_data", "after"),
    Point("the report of the rows is written", f"{_STAGES}.rejection:write_selection", "after"),
    Point("after a file is flushed", "coterie.runs.durable:fsync", "after"),
    Point("before a rename", "os:rename", "before"),
]
BETWEEN = [
    Point("the pipeline is locked", f"{_STAGES}.pipeline:Lock", "after"),
    Point("before a stage is recorded", f"{_STAGES}.records:StageRecord.write", "before"),
    Point("after a stage is recorded", f"{_STAGES}.records:StageRecord.write", "after"),
    Point("before a stage begins", f"{_STAGES}.pipeline:_run_stage", "before"),
    Point("after a stage has ended", f"{_STAGES}.pipeline:_run_stage", "after"),
    Point("a stage's result is hashed", f"{_STAGES}.pipeline:output_of", "after"),
    Point("before a stage is evaluated", f"{_STAGES}.pipeline:_evaluate", "before"),
    Point("after a stage is evaluated", f"{_STAGES}.pipeline:_evaluate", "after"),
    Point("before the report is written", f"{_STAGES}.pipeline:write_summary", "before"),
    Point("after the report is written", f"{_STAGES}.pipeline:write_summary", "after"),
]
RESUMING_SFT = [point for point in WHILE_RESUMING if point.name not in _SAMPLED_AGAIN]
RESUMING_REJECTION = [
    Point("before stored steps are read", f"{_STAGES}.rejection:_recorded", "before"),
    Point("after stored steps are read", f"{_STAGES}.rejection:_recorded", "after"),
    Point("before the database forgets", "coterie.runs.metrics:MetricsDB.truncate_after", "before"),
    Point("after rollouts are forgotten", "coterie.runs.parquet:truncate_after", "after"),
    Point("the first step again", f"{_STAGES}.rejection:_record", "after"),
]
RESUMING = [
    Point("a stage's record is read", f"{_STAGES}.pipeline:read_record", "after"),
    Point("a stage goes on", f"{_STAGES}.pipeline:resume", "before"),
    Point("a stage that was interrupted has ended", f"{_STAGES}.pipeline:resume", "after"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What is killed."""

    work: Callable[[Path, Path], object]
    """Begins it, or goes on with it, given the world and the folder of its runs."""
    state: Callable[[Path], dict[str, str]]
    """Name → hash of all that it leaves, given its folder."""
    loops: Hooks
    """The functions that are its loop."""
    points: list[Point]
    resuming: list[Point]
    middle: int
    """Pass of `INTERRUPTED` at which a first attempt dies before a resume is interrupted."""


class StageHarness(Harness):
    """Golden run and trials of something that is no run of GRPO.

    Args:
        root: is made; everything lies below it.
    """

    def __init__(self, root: Path, kind: Kind) -> None:
        self.kind = kind
        super().__init__(root, phases=PHASES, loops=kind.loops)

    def go_on(self, runs: Path) -> int:
        self.kind.work(self.world, runs)
        return 0

    def state(self, run: Path) -> dict[str, str]:
        return self.kind.state(run)


def kills(
    root: Path, count: int, passes: int, seed: int, *, most: int = 0, share: tuple[int, int] = (0, 1)
) -> Iterator[Case]:
    """Kills of each of the three at every named point, and at random until `count` have happened.

    Args:
        most: only so many points of each, and none of a resume; 0: all.
        share: this worker and how many there are; each of the three is one worker's.
    """
    for place, name in enumerate(_KINDS):
        if place % share[1] != share[0]:
            continue
        kind = _KINDS[name]
        harness = StageHarness(root / name, kind)
        trials = _at_points(harness, kind, passes, most), at_random(harness, -(-count // 3), seed * 10 + place)
        for trial in chain(*trials):
            yield of_trial("stages", replace(trial, name=f"{name}: {trial.name}"))


def _at_points(harness: Harness, kind: Kind, passes: int, most: int) -> Iterator[Trial]:
    size = len(kind.points)
    places = [size * (2 * k + 1) // (2 * most) for k in range(most)] if most else range(size)  # evenly spread
    for point, nth in chosen(harness, [kind.points[place] for place in places], None, "count", passes):
        yield reached(harness.trial(f"{point.name}, pass {nth}", [die_at(point, nth)]), 1)
    if most:
        return
    before = die_at(INTERRUPTED, kind.middle)
    for point, nth in chosen(harness, kind.resuming, before, "count-resume", passes):
        yield reached(harness.trial(f"resume, {point.name}, pass {nth}", [before, die_at(point, nth)]), 2)


# What is killed


def _fine_tune(world: Path, runs: Path) -> None:
    if (runs / NAME / "config.toml").exists():
        launch.resume(NAME, runs=runs)
        return
    data = {"train": [_file(world, "talks")], "heldout": [_file(world, "heldout")]}
    launch.train(settings(world, runs, sft={"batch_size": 4, "heldout_share": 0.2}, data=data))


def _sample(world: Path, runs: Path) -> None:
    if (runs / NAME / "config.toml").exists():
        rejection.resume(NAME, runs=runs)
        return
    kept = {"min_reward": 0.0, "per_prompt": 2}
    rejection.rejection(settings(world, runs, rejection=kept, sampling={"max_tokens": 24}))


def _pipeline(world: Path, runs: Path) -> None:
    """A fine-tuning, sampling from it, GRPO from it, the best of both, a fine-tuning on them, and a distillation."""
    shared = settings(world, runs).model_dump(mode="json", include={"model", "collect", "engine", "rewards", "optim"})
    kept, few = {"rejection": {"min_reward": 0.0}}, {"batch_size": 4}
    pipeline.run_pipeline(
        {
            "name": NAME,
            "runs": str(runs),
            "settings": {
                **shared, "threads": 1, "steps": 2, "sampling": {"max_tokens": 8},
                "checkpoint": {"every": 2, "keep": 1}, "eval": {"samples": 1, "k": 1},
                "data": {"train": [_file(world, "train")]},
            },
            "evaluation": [{"name": "legs", "settings": {"data": {"heldout": [_file(world, "heldout")]}}}],
            "stage": [
                {
                    "name": "cold", "kind": "sft",
                    "settings": {"steps": 3, "sft": few, "data": {"train": [_file(world, "talks")]}},
                },
                {"name": "more", "kind": "rejection", "model": "cold", "settings": kept},
                {"name": "reason", "kind": "grpo", "model": "cold"},
                {"name": "kept", "kind": "rejection", "rollouts": ["reason"], "settings": kept},
                {"name": "tuned", "kind": "sft", "data": ["more", "kept"], "settings": {"sft": few}},
                {"name": "taught", "kind": "distill", "model": "cold", "teacher": "tuned"},
            ],
        }
    )  # fmt: skip


def _file(world: Path, name: str) -> Mapping[str, Any]:
    return {"type": "file", "path": str(world / f"{name}.jsonl"), "task": "legs"}


def rows_state(run: Path) -> dict[str, str]:
    """What rejection sampling leaves: what was sampled, the rows that are kept, and the report."""
    rows = repr(pq.read_table(run / DATA).to_pylist())
    report = (run / "report.json").read_text(encoding="utf-8")
    return {**end_state(run), "rows": hashlib.sha256(rows.encode()).hexdigest(), "report": report}


def pipeline_state(folder: Path) -> dict[str, str]:
    """What each stage leaves, what is recorded of it, and the report of all."""
    state = {"folders": repr(sorted(path.name for path in folder.iterdir() if path.is_dir()))}
    for name in STAGES:
        of_stage = (rows_state if (folder / name / DATA).exists() else end_state)(folder / name)
        state |= {f"{name}: {key}": value for key, value in of_stage.items()}
        record = read_record(folder, name)
        state[f"{name}: record"] = "" if record is None else json.dumps(record.evaluations, sort_keys=True)
    return state | {"report": (folder / "report.json").read_text(encoding="utf-8")}


_KINDS = {
    "sft": Kind(
        work=_fine_tune, state=end_state, loops=[(SftTrainer, "run")], points=IN_SFT, resuming=RESUMING_SFT, middle=4
    ),
    "pipeline": Kind(
        work=_pipeline, state=pipeline_state, loops=[(pipeline, "_evaluate_base")], points=BETWEEN, resuming=RESUMING,
        middle=6,
    ),
    "rejection": Kind(
        work=_sample, state=rows_state, loops=[(rejection, "_sample")], points=IN_REJECTION,
        resuming=RESUMING_REJECTION, middle=2,
    ),
}  # fmt: skip
