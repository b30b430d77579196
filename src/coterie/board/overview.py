"""Records of runs as the board's pages show them: the list, one run, its curves, and runs side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from coterie.board.catalog import Catalogue
from coterie.board.meanings import meaning_of, meanings
from coterie.config.layers import flatten
from coterie.doctor.health import diagnose
from coterie.errors import CoterieError, RunError
from coterie.runs import inspect, parquet
from coterie.runs.directory import RunDirectory
from coterie.runs.metrics import MetricsDB
from coterie.text import difference_text, metric_text, p_text
from coterie.types import PASS, POOLED, EvalResult, overall

SPARK = 48
"""Points of a small curve."""
DRAWN, DIGITS = 400, 6
"""Points of a curve, at most, and their digits: of a longer one the lowest and the highest of each stretch, so that no
spike is lost."""
LAST_EVENTS = 500
PATIENCE = 0.15
"""Seconds of a part of the check of all metrics."""
LOSS = "loss"
"""Metric of a fine-tuning, which has no training reward."""


def run_list(catalogue: Catalogue) -> dict[str, Any]:
    """Every run as a row, and the settings in which they differ."""
    rows, configs = [], {}
    for name in catalogue.runs():
        row, config = catalogue.kept(name, "row", _row)
        rows.append({**row, "name": name})
        configs[name] = config
    keys = dict.fromkeys(key for config in configs.values() for key in config)
    differing = [key for key in keys if len({repr(config.get(key)) for config in configs.values()}) > 1]
    for row in rows:
        row["settings"] = {key: configs[row["name"]].get(key) for key in differing}
    return {"root": str(catalogue.root), "runs": rows, "differing": differing}


def _row(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run of the list with its flat settings."""
    summary = inspect.summary(path, tests=False)
    metric = summary.heldout.get(POOLED) or next(iter(summary.heldout.values()), PASS)
    rewards: list[tuple[int, float]] = []
    losses: list[tuple[int, float]] = []
    results: list[EvalResult] = []
    seconds, started = 0.0, None
    if summary.step is not None:
        with MetricsDB.reader(path / "metrics.sqlite") as database:
            rewards = database.series(inspect.REWARD_MEAN)
            losses = [] if rewards else database.series(LOSS)
            results = overall(inspect.comparable(database))
            seconds = sum(value for _, value in database.series("time/step"))
            started = next((event.time for event in database.events()), None)
    row = {
        "state": summary.state,
        "problem": summary.problem,
        "model": model_label(str(summary.model)),
        "tasks": list(summary.tasks),
        "step": summary.step or 0,
        "steps": _target(summary),
        "metric": metric,
        "before": _estimate(summary.before, metric),
        "after": _estimate(summary.after, metric),
        "heldout": [[result.step, estimate.value] for result in results if (estimate := result.metric(metric))],
        "reward": rewards[-1][1] if rewards else None,
        "loss": losses[-1][1] if losses else None,
        "spark": thinned(rewards or losses, SPARK),
        "seconds": seconds,
        "started": started,
    }
    return row, flat_config(path)


def _target(summary: inspect.RunSummary) -> int | None:
    """Steps that the run is to have; of a finished one those that it has, since rejection may need fewer."""
    return summary.step or 0 if summary.state == "finished" else summary.steps


def model_label(name: str) -> str:
    """A model's name for people: of a checkpoint its run and step, else the last part of a path.

    >>> model_label("/runs/r1/zero/checkpoints/step_000010/model"), model_label("smollm2-135m")
    ('zero@10', 'smollm2-135m')
    """
    *_, run, folder, step, last = ("", "", "", *Path(name).parts) if name else ("",) * 4
    if (folder, last) == ("checkpoints", "model") and step.startswith("step_"):
        return f"{run}@{int(step.removeprefix('step_'))}"
    return last


def _estimate(results: Sequence[EvalResult], metric: str) -> dict[str, Any] | None:
    pooled = overall(results)
    estimate = pooled[0].metric(metric) if len(pooled) == 1 else None
    return None if estimate is None else {**asdict(estimate), "text": metric_text(metric, estimate)}


def flat_config(path: Path) -> dict[str, Any]:
    """Settings by dotted key; none where they cannot be read."""
    try:
        return {".".join(key): value for key, value in flatten(RunDirectory.at(path).read_config())}
    except RunError:
        return {}


def run_page(path: Path) -> dict[str, Any]:
    """All of one run but its curves: progress, held-out results, events, machine, settings, what is stored."""
    summary = inspect.summary(path, check_hashes=False)
    page: dict[str, Any] = {
        "name": path.name,
        "path": str(path.absolute()),
        "state": summary.state,
        "pid": summary.pid,
        "problem": summary.problem,
        "model": model_label(str(summary.model or "")),
        "tasks": list(summary.tasks),
        "step": summary.step or 0,
        "steps": _target(summary),
        "size_mb": summary.size_mb,
        "checkpoints": list(summary.checkpoints),
        "rollout_steps": parquet.steps(path / "rollouts"),
        "last": dict(summary.metrics),
        "settings": flat_config(path),
        "evals": [],
        "events": [],
        "machine": {},
        "paired": [
            {"task": task, "text": difference_text(test.metric, test), "p": p_text(test, label="p = ")}
            for task, test in summary.paired.items()
        ],
    }
    if not (path / "metrics.sqlite").is_file():
        return page
    try:
        with MetricsDB.reader(path / "metrics.sqlite") as database:
            metrics = inspect.metrics_by_task(database)
            page["evals"] = [_evaluation(result, metrics.get(result.task, PASS)) for result in database.evals()]
            events = database.events()
    except RunError as error:
        return page | {"problem": page["problem"] or str(error)}
    page["events"] = [
        {"step": event.step, "kind": event.kind, "message": event.message, "time": event.time}
        for event in events[-LAST_EVENTS:]
    ]
    versions = [event.data for event in events if event.kind == "versions"]
    page["machine"] = dict(versions[-1]) if versions else {}
    return page


def _evaluation(result: EvalResult, metric: str) -> dict[str, Any]:
    estimate = result.metric(metric)
    return {
        "step": result.step,
        "task": result.task,
        "metric": metric,
        "value": None if estimate is None else estimate.value,
        "low": None if estimate is None else estimate.low,
        "high": None if estimate is None else estimate.high,
        "text": metric_text(metric, estimate),
        "prompts": result.prompts,
        "samples": result.samples,
        "length": result.mean_length,
        "truncated": result.truncated,
    }


def all_series(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Every metric of a run as (step, value); none where nothing was recorded."""
    if not (path / "metrics.sqlite").is_file():
        return {}
    with MetricsDB.reader(path / "metrics.sqlite") as database:
        return database.all_series()


def curves(series: Mapping[str, Sequence[tuple[int, float]]]) -> dict[str, Any]:
    """Every metric as [steps, values] with its meaning, in the order of the page that explains them."""
    order = {id(row): place for place, row in enumerate(meanings())}
    metrics = []
    for name, points in series.items():
        row = meaning_of(name)
        steps, values = zip(*thinned(points, DRAWN), strict=True) if points else ((), ())
        metrics.append(
            {
                "name": name,
                "section": "Other" if row is None else row.section,
                "means": "" if row is None else row.means,
                "worry": "" if row is None else row.worry,
                "do": "" if row is None else row.do,
                "place": [len(order) if row is None else order[id(row)], name],
                "steps": steps,
                "values": [float(f"{value:.{DIGITS}g}") for value in values],
            }
        )
    metrics.sort(key=lambda metric: metric["place"])
    return {"metrics": metrics, "clock": _clock(series)}


def _clock(series: Mapping[str, Sequence[tuple[int, float]]]) -> dict[str, Any]:
    """Seconds and rollouts spent until the end of each step."""
    seconds, rollouts = dict(series.get("time/step", ())), dict(series.get("rollouts", ()))
    steps = sorted({*seconds, *rollouts})
    spent, sampled, clock = 0.0, 0.0, []
    for step in steps:
        spent += seconds.get(step, 0.0)
        sampled += rollouts.get(step, 0.0)
        clock.append((step, spent, sampled))
    return {"steps": [row[0] for row in clock], "seconds": [r[1] for r in clock], "rollouts": [r[2] for r in clock]}


def damage(path: Path, cursor: str = "") -> dict[str, Any]:
    """A part of the check of all metrics against their hashes, as far as `PATIENCE` allows.

    Returns:
        `damaged` records, and the cursor of the next part in `next`; None at the end.
    """
    file = path / "metrics.sqlite"
    if not file.is_file():
        return {"damaged": [], "next": None}
    with MetricsDB.reader(file) as database:
        damaged, following = database.damage_from(cursor, PATIENCE)
    return {"damaged": damaged, "next": following}


def findings(path: Path, series: Mapping[str, Sequence[tuple[int, float]]]) -> dict[str, Any]:
    """The doctor's findings in words, the most severe first."""
    try:
        diagnosis = diagnose(path, series)
    except RunError as error:
        return {"verdict": str(error), "findings": [], "passed": [], "skipped": [], "ended": ""}
    return {
        "verdict": diagnosis.verdict,
        "ended": diagnosis.ended,
        "findings": [asdict(finding) for finding in diagnosis.findings],
        "passed": list(diagnosis.quiet),
        "skipped": [asdict(rule) for rule in diagnosis.unjudged],
    }


def comparison(catalogue: Catalogue, names: Sequence[str]) -> dict[str, Any]:
    """Runs side by side: reward and held-out curves, settings that differ, and each run's paired difference to the
    first."""
    paths = {name: catalogue.path(name) for name in dict.fromkeys(names)}
    if len(paths) < 2:
        raise RunError(f"{', '.join(names) or 'nothing'} was chosen; choose two runs or more to compare them")
    configs = {name: flat_config(path) for name, path in paths.items()}
    first, *others = paths
    keys = dict.fromkeys(key for config in configs.values() for key in config)
    return {
        "runs": [catalogue.kept(name, "curve", _curve) | {"name": name} for name in paths],
        "settings": [
            {"key": key, "values": [configs[name].get(key) for name in paths]}
            for key in keys
            if len({repr(config.get(key)) for config in configs.values()}) > 1
        ],
        "paired": [_paired(paths[first], paths[name]) | {"first": first, "second": name} for name in others],
    }


def _curve(path: Path) -> dict[str, Any]:
    curve: dict[str, Any] = {"steps": [], "reward": [], "clock": _clock({}), "evals": []}
    if (path / "metrics.sqlite").is_file():
        try:
            with MetricsDB.reader(path / "metrics.sqlite") as database:
                series = {name: database.series(name) for name in ("time/step", "rollouts", inspect.REWARD_MEAN)}
                metrics = inspect.metrics_by_task(database)
                results = overall(inspect.comparable(database))
        except RunError as error:
            return curve | {"problem": str(error)}
        points = thinned(series[inspect.REWARD_MEAN], DRAWN)
        curve |= {"steps": [step for step, _ in points], "reward": [value for _, value in points]}
        curve |= {"clock": _clock(series)}
        curve |= {"evals": [_evaluation(result, metrics.get(result.task, PASS)) for result in results]}
    return curve


def _paired(baseline: Path, candidate: Path) -> dict[str, Any]:
    """Differences of the last evaluations by task, and what keeps them from being compared."""
    pair: dict[str, Any] = {"tasks": [], "problem": None}
    try:
        tests = inspect.compare_runs(baseline, candidate)
        obstacles = inspect.obstacles(baseline, candidate, tests)
    except CoterieError as error:
        return pair | {"problem": str(error)}
    for task, test in tests.items():
        blocked = obstacles.get(task, [])
        shown = {"text": difference_text(test.metric, test), "p": p_text(test, label="p = ")}
        pair["tasks"].append({"task": task, "metric": test.metric, "blocked": blocked, **({} if blocked else shown)})
    return pair


def thinned(points: Sequence[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """At most so many points: of each stretch the lowest and the highest, in the order of steps."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / (most // 2))
    values = np.asarray([value for _, value in points], dtype=np.float64)
    stretches = np.pad(values, (0, -len(values) % size), mode="edge").reshape(-1, size)  # more of the last value
    starts = np.arange(len(stretches)) * size
    chosen = np.unique(np.concatenate([starts + stretches.argmin(axis=1), starts + stretches.argmax(axis=1)]))
    return [points[place] for place in chosen.tolist()]
