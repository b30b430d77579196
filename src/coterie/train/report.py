"""The README that a finished run leaves: gathers what `runs.report` writes."""

from __future__ import annotations

from pathlib import Path

from coterie import machine
from coterie.errors import RunError
from coterie.observer import REWARD
from coterie.runs import rollouts, step_files
from coterie.runs.directory import RunDirectory
from coterie.runs.inspect import metrics_by_task, reward_change
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
    """First attempts at held-out prompts of the first task, before training and at the last evaluation: the first
    prompt that turned right, the first that stayed wrong, and so on, so that the choice is nobody's taste. Of a graded
    reward: the first whose reward rose, the first for which it stayed, the first for which it fell."""
    folder = run / EVALS
    steps = step_files.steps(folder)
    if len(steps) < 2 or steps[0] != 0 or _reward_changed(run):
        return []
    try:
        before, after = (_first_attempts(rollouts.read_step(folder, step)) for step in (steps[0], steps[-1]))
    except RunError:
        return []  # damaged rollouts cost the examples, never the report
    shared = [name for name in before if name in after]
    main = [name for name in shared if before[name].prompt.task == before[shared[0]].prompt.task]
    pairs = {name: (before[name].rollout, after[name].rollout) for name in main}
    graded = REWARD in _metrics(run).values()
    kind_of, kinds = (_movement, MOVEMENTS) if graded else (_rightness, RIGHTNESS)
    firsts: dict[Kind, str] = {}
    for name, pair in pairs.items():
        firsts.setdefault(kind_of(*pair), name)
    chosen = [firsts[kind] for kind in kinds if kind in firsts][:count]
    return [
        BeforeAfter(prompt=before[name].prompt, before=before[name].rollout, after=after[name].rollout)
        for name in chosen
    ]


Kind = tuple[bool, bool]
RIGHTNESS: tuple[Kind, ...] = ((False, True), (False, False), (True, True), (True, False))
"""Right before and after: turned right, stayed wrong, stayed right, turned wrong."""
MOVEMENTS: tuple[Kind, ...] = ((True, False), (False, False), (False, True))
"""The reward rose, or fell: rose, stayed, fell."""


def _rightness(before: Rollout, after: Rollout) -> Kind:
    return is_right(before), is_right(after)


def _movement(before: Rollout, after: Rollout) -> Kind:
    change = (after.reward or 0.0) - (before.reward or 0.0)
    return change > 0, change < 0


def _reward_changed(run: Path) -> bool:
    with MetricsDB.reader(RunDirectory.at(run).metrics) as database:
        return reward_change(database) is not None


def _metrics(run: Path) -> dict[str, str]:
    with MetricsDB.reader(RunDirectory.at(run).metrics) as database:
        return metrics_by_task(database)


def is_right(rollout: Rollout) -> bool:
    """Whether a recorded attempt earned the full reward of 1."""
    return (rollout.reward or 0.0) >= CORRECT


def _first_attempts(records: list[RolloutRecord]) -> dict[str, RolloutRecord]:
    return {record.prompt.id: record for record in records if record.rollout.sample == 0}
