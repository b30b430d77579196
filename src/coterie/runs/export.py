"""Export of a table for other programs: Parquet, JSON lines, or CSV that no spreadsheet executes."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from coterie.errors import RunError
from coterie.runs.durable import json_dumps, replacing
from coterie.text import safe_text

FORMULA = tuple("=+-@\t\r\n＝＋－＠")
"""A spreadsheet takes a cell that begins so for a formula (OWASP, CSV injection)."""


def export(file: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Write the batches; the ending of `file` decides the format. Returns the number of rows.

    Parquet and JSON lines hold every value as it was stored. In CSV lists and tables are JSON, control characters are
    visible escapes, and a text that a spreadsheet would execute has an apostrophe before it.
    """
    write = _WRITERS.get(file.suffix)
    if write is None:
        raise RunError(f"{file} ends in {file.suffix!r}; an export ends in {', '.join(_WRITERS)}")
    if file.exists():
        raise RunError(f"{file} exists, and an export overwrites nothing; choose another name, or delete it")
    if not file.parent.is_dir():
        raise RunError(f"{file.parent} is no folder; make it, or export elsewhere")
    with replacing(file) as tmp:
        return write(tmp, schema, batches)


def _parquet(file: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    count = 0
    with pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer:
        for batch in batches:
            writer.write_batch(batch)
            count += len(batch)
    return count


def _jsonl(file: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    count = 0
    with file.open("w", encoding="ascii", newline="\n") as handle:
        for batch in batches:
            for row in batch.to_pylist():
                handle.write(json_dumps(jsonable(row)) + "\n")
            count += len(batch)
    return count


def _csv(file: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    count = 0
    with file.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\r\n")
        writer.writerow([csv_cell(name) for name in schema.names])
        for batch in batches:
            writer.writerows([csv_cell(value) for value in row.values()] for row in batch.to_pylist())
            count += len(batch)
    return count


_WRITERS = {".parquet": _parquet, ".jsonl": _jsonl, ".csv": _csv}


def csv_cell(value: Any) -> Any:
    """A value as a CSV cell: numbers as they are, texts escaped, the rest as JSON, empty for None.

    >>> csv_cell("=1+1"), csv_cell(-1.5), csv_cell([1, 2])
    ("'=1+1", -1.5, '[1, 2]')
    """
    if value is None or isinstance(value, bool | int | float):
        return "" if value is None else value
    text = value if isinstance(value, str) else None
    if text is None:
        plain = jsonable(value)
        text = plain if isinstance(plain, str) else json_dumps(plain)
    return f"'{safe_text(text)}" if text.startswith(FORMULA) else safe_text(text)


def jsonable(value: Any) -> Any:
    """The value as JSON: None for a number that is not finite, text for a type that JSON lacks."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value():
        return int(value)
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
