"""Regions through a run: what was expected of each and what came, step by step, and the tree at a checkpoint."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from coterie.board.rollout_pages import StepFiles
from coterie.errors import RunError
from coterie.runs import checkpoint, parquet
from coterie.runs.query import readable
from coterie.text import safe_text

STEPS = 120
"""Steps that are read of a longer run, evenly spread."""
PROMPTS = 500
"""Prompts of the table, those that were asked in the most steps."""
REGIONS = 40
"""Regions that are shown, those with the most rollouts."""


def through_the_run(files: StepFiles, run: Path) -> dict[str, Any]:
    """Of each region, or task where the run has no regions: rollouts, mean reward and mean expectation by step.

    Returns:
        `by` (region or task), `steps`, and rows with `name`, `rollouts`, `reward` and `expected` (a value a step, None
        where it was not visited); `checkpoints` that hold a tree.
    """
    folder = run / "rollouts"
    steps = spread(parquet.steps(folder), STEPS)
    table = files.together(folder, steps)
    by = "region" if table["region"].null_count < len(table) else "task"
    cells: dict[str, dict[int, tuple[int, float | None, float | None]]] = defaultdict(dict)
    with readable():
        measured = [("reward", "count"), ("reward", "mean"), ("expected", "mean")]
        means = table.group_by([by, "step"], use_threads=False).aggregate(measured)
    for row in means.to_pylist():
        if row[by] is not None:
            cells[row[by]][row["step"]] = (row["reward_count"], row["reward_mean"], row["expected_mean"])
    return {"by": by, "steps": steps, "rows": _rows(cells, steps), "checkpoints": trees(run)}


def _rows(
    cells: dict[str, dict[int, tuple[int, float | None, float | None]]], steps: list[int]
) -> list[dict[str, Any]]:
    """The busiest rows, their cells as lists over the steps."""
    empty = (0, None, None)
    rows: list[dict[str, Any]] = [
        {
            "name": safe_text(name),
            "filter": name,
            "rollouts": sum(count for count, _, _ in visits.values()),
            "reward": [visits.get(step, empty)[1] for step in steps],
            "expected": [visits.get(step, empty)[2] for step in steps],
            "counts": [visits.get(step, empty)[0] for step in steps],
        }
        for name, visits in cells.items()
    ]
    return sorted(rows, key=lambda row: -row["rollouts"])[:REGIONS]


def spread(steps: list[int], most: int) -> list[int]:
    """At most so many of the steps, evenly spread, both ends among them."""
    if len(steps) <= most:
        return steps
    return [steps[round(index * (len(steps) - 1) / (most - 1))] for index in range(most)]


def trees(run: Path) -> list[int]:
    """Steps whose checkpoint holds the state of a group-aware estimator."""
    folder = run / "checkpoints"
    return [step for step in checkpoint.steps(folder) if any((folder / f"step_{step:06d}").glob("grouping*"))]


def tree(run: Path, step: int | None) -> dict[str, Any]:
    """The tree of regions at a checkpoint, the newest by default. Imports the group-aware estimator.

    Raises:
        RunError: the run has no regions, or no such checkpoint.
    """
    if not trees(run):
        raise RunError(f"no checkpoint of {run.name} holds a tree of regions")
    from coterie.board.regions import read

    return read(run, run.parent, step).plain()


def prompts_through_the_run(files: StepFiles, run: Path, task: str = "") -> dict[str, Any]:
    """Mean reward of each prompt of the run's last steps, and how often it was asked: the map of prompts."""
    folder = run / "rollouts"
    table = files.together(folder, parquet.steps(folder)[-STEPS:])
    with readable():
        table = table.filter(pc.field("task") == task) if task else table
        measured = [("reward", "count"), ("reward", "mean"), ("step", "count_distinct")]
        means = table.group_by(["prompt_id", "task"], use_threads=False).aggregate(measured)
        means = means.select(["prompt_id", "task", "reward_count", "reward_mean", "step_count_distinct"])
        means = means.rename_columns(["prompt_id", "task", "rollouts", "reward", "visits"])
        means = means.filter(pc.field("rollouts") > 0).sort_by([("visits", "descending"), ("reward", "ascending")])
    return {"rows": means.slice(0, PROMPTS).to_pylist()}
