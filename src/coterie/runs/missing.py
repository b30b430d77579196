"""Gaps in the record of a run: files of completed steps that were deleted, replaced or cut off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from coterie.runs import parquet
from coterie.runs.directory import RunDirectory
from coterie.runs.metrics import MetricsDB


def gaps(run: RunDirectory, database: MetricsDB, step: int, *, sampled: bool = True) -> list[str]:
    """One line for each kind of record that is not whole up to `step`; empty when all is there.

    Looks at which steps the metrics hold and at the footers of the step files, not at every row: the training depends
    on none of them, so a resume goes on without.

    Args:
        run: the run's folder.
        database: its metrics.
        step: of the checkpoint that the run continues from.
        sampled: its steps have rollouts.
    """
    return [*_metrics(run, database, step), *(_rollouts(run.rollouts, step) if sampled else ())]


def _metrics(run: RunDirectory, database: MetricsDB, step: int) -> Iterator[str]:
    missing = sorted(set(range(1, step + 1)) - set(database.steps()))
    if missing:
        yield (
            f"{run.metrics} has no metrics of {spans(missing)}, though the checkpoint of step {step} says that "
            f"these were trained: the file, or {run.metrics.name}-wal beside it, was moved, deleted or replaced. "
            "Training continues exactly as it would have; plots, tables and the report lack these steps. To keep "
            "them, stop, put both files back, and resume again"
        )
    if missing and 0 not in {result.step for result in database.evals()}:
        yield (
            f"{run.metrics} has no evaluation of step 0: the report cannot compare held-out results before and after "
            "training"
        )


def _rollouts(folder: Path, step: int) -> Iterator[str]:
    recorded = set(parquet.steps(folder))
    missing = [number for number in range(1, step + 1) if number not in recorded]
    if missing:
        yield f"{folder} has no rollouts of {spans(missing)}: their files were moved or deleted"
    cut = [number for number in sorted(recorded) if number <= step and not _opens(parquet.path_of(folder, number))]
    if cut:
        yield (
            f"{folder}: the rollouts of {spans(cut)} cannot be read: the files are cut off or damaged. No other step "
            "depends on them; restore them from a copy, or delete them"
        )


def _opens(path: Path) -> bool:
    """True if a Parquet file has its footer, which is written last."""
    try:
        pq.read_metadata(path)
    except (pa.ArrowException, OSError):
        return False
    return True


def spans(numbers: Sequence[int]) -> str:
    """Ascending steps as a phrase.

    >>> spans([4]), spans([1, 2, 3, 7])
    ('step 4', 'steps 1 to 3, 7')
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    shown = [f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs[:8]]
    more = f" and {len(runs) - 8} more spans" if len(runs) > 8 else ""
    return f"step{'s' if len(numbers) > 1 else ''} {', '.join(shown)}{more}"
