"""Every rollout, one zstd Parquet file a step.

Parquet alone notices only truncation. Page checksums, which every reader can check, cover the data; page headers
and the footer have none, so the file also carries the hash of its rows.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from coterie.errors import RunError
from coterie.runs.durable import fsync, replacing
from coterie.runs.rows import REPEATED, RolloutRecord, from_row, schema, to_row

__all__ = ["RolloutRecord", "read_step", "steps", "truncate_after", "write_step"]

FORMAT = "2"
READABLE = ("1", "2")
"""1 has no context columns (`runs/contexts.py`): what they would say is None."""
_NAME = re.compile(r"step_(\d{6,})\.parquet")


def write_step(folder: Path, step: int, rows: Sequence[RolloutRecord]) -> Path:
    """Write the rollouts of one step, all or nothing.

    Log-probs are kept as float32; a lone surrogate in a text becomes a visible escape.

    Raises:
        RunError: the step is recorded already, a row cannot be recorded (its rollout is named), or the disk
            refused.
    """
    path = folder / f"step_{step:06d}.parquet"
    if path.exists():
        raise RunError(f"{path} exists; a recorded step is never overwritten. A resume first calls truncate_after")
    try:
        table = pa.Table.from_pylist([to_row(step, row) for row in rows], schema=schema())
    except (pa.ArrowException, OverflowError, TypeError) as error:
        raise RunError(f"the rollouts of step {step} do not fit their columns: {error}") from error
    facts = {"coterie": FORMAT, "step": str(step), "sha256": _digest(table.to_pylist())}
    table = table.replace_schema_metadata(facts)
    with replacing(path) as tmp:
        # Statistics are off: token ids have none worth having, and no checksum covers them.
        pq.write_table(
            table,
            tmp,
            compression="zstd",
            write_page_checksum=True,
            write_statistics=False,
            use_dictionary=REPEATED,
        )
    return path


def read_step(folder: Path, step: int) -> list[RolloutRecord]:
    """The rollouts of one step, in the order written.

    Raises:
        RunError: there is no such step, or its file is damaged.
    """
    path = folder / f"step_{step:06d}.parquet"
    if not path.is_file():
        raise RunError(f"no rollouts of step {step} in {folder}; it holds {_span(steps(folder))}")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            facts = file.schema_arrow.metadata or {}
            known = facts.get(b"coterie", b"").decode(errors="replace") in READABLE
            if not known or facts.get(b"step") != str(step).encode():
                raise ValueError(f"its header says {facts!r}, expected format {' or '.join(READABLE)} and step {step}")
            rows = file.read().to_pylist()
        if facts.get(b"sha256") != _digest(rows).encode():
            raise ValueError("its rows do not match the hash it carries")
        return [from_row(row) for row in rows]
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, MemoryError) as error:
        raise RunError(
            f"{path} is damaged or is no rollout file of coterie: {error}. "
            "The other steps do not depend on it; restore it from a copy, or delete it"
        ) from error


def steps(folder: Path) -> list[int]:
    """Recorded steps, ascending."""
    if not folder.is_dir():
        return []
    names = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in names if match)


def truncate_after(folder: Path, step: int) -> list[int]:
    """Delete the rollouts of later steps, which a resume will collect again; returns those steps."""
    later = [number for number in steps(folder) if number > step]
    for number in later:
        (folder / f"step_{number:06d}.parquet").unlink()
    if later:
        fsync(folder)
    return later


def _digest(rows: list[dict[str, Any]]) -> str:
    """Of the rows as they are read back, floats already rounded to their columns."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _span(numbers: list[int]) -> str:
    return f"steps {numbers[0]} to {numbers[-1]}" if numbers else "none"
