"""Rollout files: the rollouts of each step, with credit and log-probs.

One Parquet file per step; `runs/rows.py` has the columns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from coterie.errors import RunError
from coterie.runs import parquet
from coterie.runs.rows import REPEATED, RolloutRecord, from_row, schema, to_row

__all__ = ["RolloutRecord", "read_step", "write_step"]

FORMAT = "4"
READABLE = ("1", "2", "3", "4")
"""1 has no context columns, which read as None. 1 and 2 have no `messages`: their episodes had one turn. 1 to 3 have no
`sampler_entropies`."""
NOUN = "rollout"


def write_step(folder: Path, step: int, rows: Sequence[RolloutRecord]) -> Path:
    """Write the rollouts of one step, all or nothing.

    Log-probs are kept as float32; a lone surrogate in a text becomes a visible escape.

    Raises:
        RunError: the step is recorded already, a row cannot be recorded (its rollout is named), or the disk refused.
    """
    return parquet.write(
        folder,
        step,
        lambda: pa.Table.from_pylist([to_row(step, row) for row in rows], schema=schema()),
        noun=NOUN,
        form=FORMAT,
        digest=lambda table: _digest(table.to_pylist()),
        repeated=REPEATED,
    )


def read_step(folder: Path, step: int) -> list[RolloutRecord]:
    """The rollouts of one step, in the order written."""
    path = parquet.path_of(folder, step)
    if not path.is_file():
        raise RunError(f"no rollouts of step {step} in {folder}; it holds {_span(parquet.steps(folder))}")
    loss = "The other steps do not depend on it"
    with parquet.reading(path, step, noun=NOUN, forms=READABLE, loss=loss) as file:
        rows = file.table.to_pylist()
        file.require(_digest(rows))
        return [from_row(row) for row in rows]


def _digest(rows: list[dict[str, Any]]) -> str:
    """Hash of the rows as they are read back, floats already rounded to their columns."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _span(numbers: list[int]) -> str:
    return f"steps {numbers[0]} to {numbers[-1]}" if numbers else "none"
