"""The README that a finished run leaves: gathers what `runs.report` writes."""

from __future__ import annotations

from pathlib import Path

from coterie import machine
from coterie.errors import RunError
from coterie.runs import rollouts, step_files
from coterie.runs.directory import RunDirectory
from coterie.runs.metrics import MetricsDB
from coterie.runs.report import BeforeAfter, write_report
from coterie.runs.rollouts import RolloutRecord
from coterie.train.evaluation import CORRECT
from coterie.train.recorder import EVALS
from coterie.types import Rollout


def report_run(run: RunDirectory) -> Path:
    """Write the run's README.md and picture from what is recorded."""
    with MetricsDB.reader(run.metrics) as database:
        seconds = sum(value for _, value in database.series("time/step"))
    return write_report(
        run, machine=machine.facts(run.path).line(), seconds=seconds, samples=before_and_after(run.path)
    )


def before_and_after(run: Path, count: int = 3) -> list[BeforeAfter]:
    """First attempts at held-out prompts of the first task, at the first and the last evaluation: the first prompt that
    turned right, the first that stayed wrong, and so on, so that the choice is nobody's taste."""
    folder = run / EVALS
    steps = step_files.steps(folder)
    if len(steps) < 2:
        return []
    try:
        before, after = (_first_attempts(rollouts.read_step(folder, step)) for step in (steps[0], steps[-1]))
    except RunError:
        return []  # damaged rollouts cost the examples, never the report
    shared = [name for name in before if name in after]
    main = [name for name in shared if before[name].prompt.task == before[shared[0]].prompt.task]
    firsts: dict[tuple[bool, bool], str] = {}
    for name in main:  # the first of each kind: turned right, stayed wrong, stayed right, turned wrong
        firsts.setdefault((is_right(before[name].rollout), is_right(after[name].rollout)), name)
    kinds = [(False, True), (False, False), (True, True), (True, False)]
    chosen = [firsts[kind] for kind in kinds if kind in firsts][:count]
    return [
        BeforeAfter(prompt=before[name].prompt, before=before[name].rollout, after=after[name].rollout)
        for name in chosen
    ]


def is_right(rollout: Rollout) -> bool:
    """Whether a recorded attempt earned the full reward of 1."""
    return (rollout.reward or 0.0) >= CORRECT


def _first_attempts(records: list[RolloutRecord]) -> dict[str, RolloutRecord]:
    return {record.prompt.id: record for record in records if record.rollout.sample == 0}
