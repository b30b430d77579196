"""Looking at runs without touching them: one, all of a folder, or two side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coterie.config.layers import flatten
from coterie.errors import RunError
from coterie.observer import EvalResult
from coterie.runs import checkpoint, rollouts
from coterie.runs.directory import RunDirectory
from coterie.runs.lock import lock_holder
from coterie.runs.metrics import MetricsDB

REWARD_MEAN = "reward/mean"
REWARD_STD = "reward/std"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLine:
    """A run on one line of a list."""

    name: str
    state: str
    """running, finished, stopped, or damaged."""
    step: int | None
    steps: int | None
    """As configured."""
    model: str | None
    tasks: str
    reward: float | None
    """Mean of the last step."""
    before: float | None
    """First held-out pass@1, all tasks pooled."""
    after: float | None
    """Last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """A run on one page."""

    name: str
    path: Path
    state: str
    pid: int | None
    """Of the process that trains it right now."""
    model: str | None
    tasks: tuple[str, ...]
    step: int | None
    """Last recorded step."""
    steps: int | None
    """As configured."""
    checkpoints: tuple[int, ...]
    """Steps with a checkpoint, unverified."""
    rollout_steps: int
    """Steps with recorded rollouts."""
    size_mb: float
    before: tuple[EvalResult, ...]
    """The first held-out evaluation, by task."""
    after: tuple[EvalResult, ...]
    """The last one, empty while there is only one."""
    metrics: Mapping[str, float]
    """Of the last step."""
    events: Mapping[str, int]
    """How many of each kind."""
    problem: str | None
    """What could not be read, and why."""


def summary(path: Path) -> RunSummary:
    """All that a run's folder tells.

    Raises:
        RunError: `path` is not a run. A damaged part of one is told in `problem` instead.
    """
    run = RunDirectory.at(path)
    problems = []
    try:
        config = run.read_config()
    except RunError as error:
        config = {}
        problems.append(str(error))
    seen = _Measured()
    if run.metrics.exists():
        try:
            seen = _measured(run.metrics)
        except RunError as error:
            problems.append(str(error))
    steps = config.get("steps")
    pid = lock_holder(run.path)
    return RunSummary(
        name=run.path.resolve().name,
        path=run.path,
        state=_state(bool(problems), pid, seen.step, steps),
        pid=pid,
        model=config.get("model", {}).get("name"),
        tasks=_tasks(config),
        step=seen.step,
        steps=steps,
        checkpoints=tuple(checkpoint.steps(run.checkpoints)),
        rollout_steps=len(rollouts.steps(run.rollouts)),
        size_mb=round(_size(run.path) / 1e6, 1),
        before=seen.before,
        after=seen.after,
        metrics=seen.metrics,
        events=seen.events,
        problem="; ".join(problems) or None,
    )


def list_runs(root: Path) -> list[RunLine]:
    """All runs of a folder by name; a damaged one is listed as such. Empty when there is no such folder."""
    lines = []
    for config in sorted(root.glob("*/config.toml")):
        one = summary(config.parent)
        lines.append(
            RunLine(
                name=one.name,
                state=one.state,
                step=one.step,
                steps=one.steps,
                model=one.model,
                tasks=", ".join(one.tasks),
                reward=one.metrics.get(REWARD_MEAN),
                before=_pooled(one.before),
                after=_pooled(one.after),
            )
        )
    return lines


def diff(one: Path, other: Path) -> dict[str, dict[str, tuple[Any, Any]]]:
    """What differs, as (one, other); sections without a difference are left out, so {} means equal.

    Sections: `config` (dotted keys), `heldout` (`<task> pass@1` and `pass@k` of the last evaluation),
    `metrics` (of the last step).

    Raises:
        RunError: one of them is not a run, or cannot be read.
    """
    sections: dict[str, list[Mapping[str, Any]]] = {"config": [], "heldout": [], "metrics": []}
    for path in (one, other):
        run = RunDirectory.at(path)
        sections["config"].append({".".join(key): value for key, value in flatten(run.read_config())})
        seen = _measured(run.metrics) if run.metrics.exists() else _Measured()
        sections["heldout"].append(
            {
                f"{result.task} {name}": interval.value
                for result in seen.after or seen.before
                for name, interval in (("pass@1", result.pass_at_1), (f"pass@{result.k}", result.pass_at_k))
            }
        )
        sections["metrics"].append(seen.metrics)
    found = {name: _different(*pair) for name, pair in sections.items()}
    return {name: section for name, section in found.items() if section}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    step: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    before: tuple[EvalResult, ...] = ()
    after: tuple[EvalResult, ...] = ()
    events: Mapping[str, int] = field(default_factory=dict)


def _measured(path: Path) -> _Measured:
    with MetricsDB.reader(path) as database:
        step = database.last_step()
        before, after = ends(database)
        events: dict[str, int] = {}
        for event in database.events():
            events[event.kind] = events.get(event.kind, 0) + 1
        metrics = {} if step is None else database.step_metrics(step)
    return _Measured(step=step, metrics=metrics, before=before, after=after, events=events)


def ends(database: MetricsDB) -> tuple[tuple[EvalResult, ...], tuple[EvalResult, ...]]:
    """The first and the last evaluation, each by task; the last is empty while there is only one."""
    results = database.evals()
    if not results:
        return (), ()
    first, last = results[0].step, results[-1].step
    before = tuple(result for result in results if result.step == first)
    return before, tuple(result for result in results if result.step == last) if last != first else ()


def _pooled(results: tuple[EvalResult, ...]) -> float | None:
    pooled = [result for result in results if result.task == "all"] or list(results)
    return pooled[0].pass_at_1.value if len(pooled) == 1 else None


def _state(damaged: bool, pid: int | None, step: int | None, steps: int | None) -> str:
    if damaged:
        return "damaged"
    if pid is not None:
        return "running"
    return "finished" if step is not None and steps is not None and step >= steps else "stopped"


def _tasks(config: Mapping[str, Any]) -> tuple[str, ...]:
    sources = config.get("data", {}).get("train", [])
    names = (s.get("task") or s.get("name") or s.get("target") or Path(s.get("path", "?")).stem for s in sources)
    return tuple(dict.fromkeys(names))


def _size(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:
            continue  # a running training removed it meanwhile
    return total


def _different(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    keys = dict.fromkeys((*one, *other))
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}
