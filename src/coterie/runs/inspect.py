"""Read-only views of runs: the summary of one, the list of a folder, the comparison of two."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coterie.config.layers import flatten
from coterie.errors import RunError
from coterie.runs import checkpoint, parquet
from coterie.runs.directory import RunDirectory
from coterie.runs.lock import lock_holder
from coterie.runs.metrics import EvalItem, Event, MetricsDB
from coterie.stats import PairedTest, paired_test
from coterie.types import PASS, POOLED, REWARD, EvalResult, metric_of, overall

REWARD_MEAN = "reward/mean"
REWARD_STD = "reward/std"
COLLAPSE = "collapse"
"""Kind of the event that tells which stop rule ended a run; a resume forgets it with the steps it makes again."""


DATA = "data.parquet"
"""Result of rejection sampling in its run's folder: the kept rollouts."""
REWARD_CHANGED = "reward_changed"
"""Kind of the event that tells from which step on a run was resumed with an edited reward function."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLine:
    """A run as one line of a list."""

    name: str
    state: str
    """running, finished, stopped, collapsed (a stop rule ended it), or damaged."""
    step: int | None
    steps: int | None
    """As configured."""
    model: str | None
    tasks: str
    reward: float | None
    """Mean of the last step."""
    heldout: str | None
    """Metric of `before` and `after`: `pass@1` (a share), or `reward` where the evaluated reward is graded."""
    before: float | None
    """Of the first held-out evaluation, all tasks pooled; None where the last one is of another reward function."""
    after: float | None
    """Of the last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """Summary of one run."""

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
    """The first held-out evaluation, by task; empty where the last one is of another reward function."""
    after: tuple[EvalResult, ...]
    """The last one, empty while there is only one."""
    heldout: Mapping[str, str]
    """Metric of each task: `pass@1`, or `reward` where the evaluated reward is graded."""
    paired: Mapping[str, PairedTest]
    """After minus before on the same prompts, by task: in pass@1, or in reward where it is graded."""
    metrics: Mapping[str, float]
    """Of the last step."""
    events: Mapping[str, int]
    """Number of events by kind."""
    problem: str | None
    """Files that could not be read, with the reason."""


def summary(path: Path, *, tests: bool = True, check_hashes: bool = True) -> RunSummary:
    """Summary of a run's folder.

    Args:
        tests: fill in `paired`, which takes a moment.
        check_hashes: compare all metrics with their hashes too (with `tests` alone).

    Raises:
        RunError: `path` is not a run. A damaged file of one goes into `problem` instead.
    """
    run = RunDirectory.at(path)
    problems = []
    try:
        config = run.read_config()
        steps, model, tasks = _described(config)
    except RunError as error:
        config, steps, model, tasks = {}, None, None, ()
        problems.append(str(error))
    except (TypeError, AttributeError, ValueError) as error:
        config, steps, model, tasks = {}, None, None, ()
        problems.append(f"{run.path / 'config.toml'} has no settings of a run: {error}")
    measured = _Measured()
    if run.metrics.exists():
        try:
            measured = _measured(run.metrics, tests)
            problems += _damage(run.metrics) if tests and check_hashes else []
        except RunError as error:
            problems.append(str(error))
    pid = lock_holder(run.path)
    saved = checkpoint.steps(run.checkpoints)
    return RunSummary(
        name=run.path.resolve().name,
        path=run.path,
        state=_state(
            bool(problems),
            pid,
            COLLAPSE in measured.events,
            _is_complete(measured, saved, steps) or (run.path / DATA).exists(),
        ),
        pid=pid,
        model=model,
        tasks=tasks,
        step=measured.step,
        steps=steps,
        checkpoints=tuple(saved),
        rollout_steps=len(parquet.steps(run.rollouts)),
        size_mb=round(_size(run.path) / 1e6, 1),
        before=measured.before,
        after=measured.after,
        heldout=measured.heldout,
        paired=measured.paired,
        metrics=measured.metrics,
        events=measured.events,
        problem="; ".join(problems) or None,
    )


def _damage(metrics: Path) -> list[str]:
    with MetricsDB.reader(metrics) as database:
        damage = database.damage()
    return [f"{metrics} is damaged: {', '.join(damage[:4])} do not match their hash"] if damage else []


def list_runs(root: Path) -> list[RunLine]:
    """All runs of a folder by name; a damaged one is listed as such. Empty when there is no such folder."""
    lines = []
    for config in sorted(root.glob("*/config.toml")):
        run = summary(config.parent, tests=False)
        metric = run.heldout.get(POOLED) or next(iter(run.heldout.values()), PASS)
        lines.append(
            RunLine(
                name=run.name,
                state=run.state,
                step=run.step,
                steps=run.steps,
                model=run.model,
                tasks=", ".join(run.tasks),
                reward=run.metrics.get(REWARD_MEAN),
                heldout=metric if run.before or run.after else None,
                before=_pooled(run.before, metric),
                after=_pooled(run.after, metric),
            )
        )
    return lines


def last_step(run: RunDirectory) -> int:
    """Steps that a run recorded; 0 before the first."""
    if not run.metrics.exists():
        return 0
    with MetricsDB.reader(run.metrics) as database:
        return database.last_step() or 0


def diff(first: Path, second: Path) -> dict[str, dict[str, tuple[Any, Any]]]:
    """Differences of two runs as (first, second); sections without a difference are left out, so {} means equal.

    Sections: `config` (dotted keys), `heldout` (`<task> pass@1`, `pass@k` and `reward` of the last evaluation),
    `metrics` (of the last step).
    """
    sections: dict[str, list[Mapping[str, Any]]] = {"config": [], "heldout": [], "metrics": []}
    for path in (first, second):
        run = RunDirectory.at(path)
        sections["config"].append({".".join(key): value for key, value in flatten(run.read_config())})
        measured = _measured(run.metrics) if run.metrics.exists() else _Measured()
        sections["heldout"].append(
            {
                f"{result.task} {name}": interval.value
                for result in measured.after or measured.before
                for name, interval in (
                    (PASS, result.pass_at_1),
                    (f"pass@{result.k}", result.pass_at_k),
                    (REWARD, result.reward),
                )
                if interval is not None
            }
        )
        sections["metrics"].append(measured.metrics)
    differences = {name: _different(*pair) for name, pair in sections.items()}
    return {name: section for name, section in differences.items() if section}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    step: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    before: tuple[EvalResult, ...] = ()
    after: tuple[EvalResult, ...] = ()
    heldout: Mapping[str, str] = field(default_factory=dict)
    paired: Mapping[str, PairedTest] = field(default_factory=dict)
    events: Mapping[str, int] = field(default_factory=dict)


def _measured(path: Path, tests: bool = False) -> _Measured:
    with MetricsDB.reader(path) as database:
        step = database.last_step()
        before, after = ends(database)
        events: dict[str, int] = {}
        for event in database.events():
            events[event.kind] = events.get(event.kind, 0) + 1
        metrics = {} if step is None else database.step_metrics(step)
        paired = compare(database, before, database, after) if tests else {}
        heldout = metrics_by_task(database)
    return _Measured(
        step=step, metrics=metrics, before=before, after=after, heldout=heldout, paired=paired, events=events
    )


def ends(database: MetricsDB) -> tuple[tuple[EvalResult, ...], tuple[EvalResult, ...]]:
    """The evaluations before training (step 0) and the last one, each by task; either is empty where there is none.

    A later one never stands in for that of step 0: what was learned until then would be missing from the difference.
    Evaluations before a change of the reward function are left out where there is one after it.
    """
    results = comparable(database)
    before = tuple(result for result in results if result.step == 0)
    last = results[-1].step if results else 0
    return before, tuple(result for result in results if result.step == last) if last else ()


def reward_change(database: MetricsDB) -> Event | None:
    """The last change of a reward function with evaluations on either side of it."""
    last = max((result.step for result in database.evals()), default=-1)
    events = [event for event in database.events(REWARD_CHANGED) if 0 <= event.data.get("evaluated", -1) < last]
    return events[-1] if events else None


def comparable(database: MetricsDB) -> list[EvalResult]:
    """The evaluations by the reward function of the last one, by step."""
    change = reward_change(database)
    return [result for result in database.evals() if change is None or result.step > change.data["evaluated"]]


def metrics_by_task(*databases: MetricsDB) -> dict[str, str]:
    """The metric by which the evaluations of each task are compared, over all of these runs: `PASS` or `REWARD`."""
    by_task: dict[str, list[EvalResult]] = {}
    for database in databases:
        for result in comparable(database):
            by_task.setdefault(result.task, []).append(result)
    return {task: metric_of(results) for task, results in by_task.items()}


def compare(
    before_db: MetricsDB,
    before: Sequence[EvalResult],
    after_db: MetricsDB,
    after: Sequence[EvalResult],
    *,
    metric: str | None = None,
) -> dict[str, PairedTest]:
    """Difference of two evaluations, `after` minus `before`, by task, on the prompts that both hold: in pass@1, or in
    mean reward where the evaluated reward is graded in any evaluation of the two runs.

    A task is left out where the evaluations share no prompt, or a database did not record their items.

    Args:
        metric: `PASS` or `REWARD` for all tasks; None takes that of each task.
    """
    later = {result.task: result.step for result in after}
    metrics = metrics_by_task(before_db, after_db)
    tests = {}
    for result in before:
        if result.task not in later:
            continue
        name = metric or metrics.get(result.task, PASS)
        task = None if result.task == POOLED else result.task
        test = compare_items(
            before_db.eval_items(result.step, task), after_db.eval_items(later[result.task], task), name
        )
        if test is not None:
            tests[result.task] = test
    return tests


def compare_items(before: Iterable[EvalItem], after: Iterable[EvalItem], metric: str) -> PairedTest | None:
    """Difference of two evaluations, `after` minus `before`, on the prompts that both hold; None where there are none.

    Args:
        metric: `PASS` or `REWARD`.
    """
    first, second = (
        {(item.task, item.prompt_id): value for item in items if (value := item.metric(metric)) is not None}
        for items in (before, after)
    )
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return None
    return paired_test([first[key] for key in shared], [second[key] for key in shared], metric=metric)


def compare_runs(baseline: Path, candidate: Path) -> dict[str, PairedTest]:
    """Difference of two runs' last evaluations by task, candidate minus baseline, on shared prompts: see `compare`.

    Prompts are the same when their ids are: compare runs on the same held-out data.
    """
    files = [RunDirectory.at(path).metrics for path in (baseline, candidate)]
    if not all(file.exists() for file in files):
        return {}
    with MetricsDB.reader(files[0]) as first, MetricsDB.reader(files[1]) as second:
        (before, after), (earlier, later) = ends(first), ends(second)
        return compare(first, after or before, second, later or earlier)


def _pooled(results: tuple[EvalResult, ...], metric: str) -> float | None:
    pooled = overall(results)
    estimate = pooled[0].metric(metric) if len(pooled) == 1 else None
    return None if estimate is None else estimate.value


def _is_complete(measured: _Measured, saved: Sequence[int], steps: int | None) -> bool:
    """All steps recorded, evaluated where the run evaluates at all, and saved: the last step ends with its checkpoint,
    and a stop saves one without the evaluation."""
    if steps is None or (measured.step or 0) < steps or max(saved, default=-1) < steps:
        return False
    evaluated = measured.after or measured.before
    return not evaluated or evaluated[0].step >= steps


def _state(damaged: bool, pid: int | None, collapsed: bool, complete: bool) -> str:
    if damaged:
        return "damaged"
    if pid is not None:
        return "running"
    if collapsed:
        return "collapsed"
    return "finished" if complete else "stopped"


def _described(config: Mapping[str, Any]) -> tuple[int | None, str | None, tuple[str, ...]]:
    """Steps, model and tasks that the settings name.

    Raises:
        TypeError, AttributeError, ValueError: they are no settings of a run.
    """
    steps, model = config.get("steps"), config.get("model", {}).get("name")
    if steps is not None and not isinstance(steps, int):
        raise ValueError(f"steps = {steps!r} is no whole number")
    sources = config.get("data", {}).get("train", [])
    names = (s.get("task") or s.get("name") or s.get("target") or Path(s.get("path", "?")).stem for s in sources)
    return steps, None if model is None else str(model), tuple(dict.fromkeys(map(str, names)))


def _size(folder: Path) -> int:
    """Bytes of the files in a folder; a link counts as the file that it leads to."""
    total = 0
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return 0  # a running training removed it meanwhile
    for entry in entries:
        try:
            if entry.is_dir(follow_symlinks=False):
                total += _size(Path(entry.path))
            elif entry.is_file():
                total += entry.stat().st_size
        except FileNotFoundError:
            continue
    return total


def _different(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    keys = dict.fromkeys((*first, *second))
    return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}


_EVALUATION = ("part", "correct_threshold", "temperature")
"""Settings under `eval` that change what is measured; `samples`, `k` and `limit` change how precisely."""


def differing(first: Mapping[str, Any], second: Mapping[str, Any], metric: str) -> list[str]:
    """Settings that keep two runs' held-out results from being compared; empty where they can be.

    Args:
        first: the settings of a run, as its config.toml holds them.
        second: those of the other run.
        metric: `PASS` depends on the evaluated reward part alone, `REWARD` on all parts and their weights.
    """
    keys = ["environment.name", "environment.params", "data.heldout", *(f"eval.{name}" for name in _EVALUATION)]
    names = [key for key in keys if _at(first, key) != _at(second, key)]
    rewards = [_judging(config, metric) for config in (first, second)]
    return ([] if rewards[0] == rewards[1] else ["rewards.functions"]) + names


def obstacles(baseline: Path, candidate: Path, tests: Mapping[str, PairedTest]) -> dict[str, list[str]]:
    """Settings that keep two runs' results from being compared, by task; tasks without any are left out.

    Args:
        tests: of `compare_runs`.
    """
    if not tests:
        return {}
    first, second = (RunDirectory.at(path).read_config() for path in (baseline, candidate))
    names = {task: differing(first, second, test.metric) for task, test in tests.items()}
    return {task: settings for task, settings in names.items() if settings}


def _judging(config: Mapping[str, Any], metric: str) -> Any:
    parts = _at(config, "rewards.functions") or []
    if metric != PASS:
        return [(part.get("name"), part.get("params") or {}, part.get("weight", 1.0)) for part in parts]
    label_of_eval = _at(config, "eval.reward")
    labels = [part.get("label") or str(part.get("name", "")).split(":")[-1] for part in parts]
    judging = [part for part, label in zip(parts, labels, strict=True) if label == label_of_eval] or parts[:1]
    return [(part.get("name"), part.get("params") or {}) for part in judging]


def _at(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value or None
