"""Step files: one zstd Parquet file a step, with the hash of its rows.

Parquet alone notices only truncation. Page checksums, which every reader can check, cover the data; page headers and
the footer have none, so the file also carries the hash of its rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from coterie.errors import RunError
from coterie.runs.durable import fsync, replacing

_NAME = re.compile(r"step_(\d{6,})\.parquet")


@dataclass(frozen=True, slots=True, eq=False)
class VerifiedTable:
    """Rows of a file with the hash that the file carries."""

    table: pa.Table
    sha256: str

    def require(self, digest: str) -> None:
        """Raise ValueError, inside `reading`, if the rows have another hash than the file carries."""
        if digest != self.sha256:
            raise ValueError("its rows do not match the hash it carries")


def path_of(folder: Path, step: int) -> Path:
    """Path of a step's file."""
    return folder / f"step_{step:06d}.parquet"


def write(
    folder: Path,
    step: int,
    make: Callable[[], pa.Table],
    *,
    noun: str,
    form: str,
    digest: Callable[[pa.Table], str],
    repeated: Sequence[str],
) -> Path:
    """Write the rows of one step, all or nothing.

    Args:
        make: gives the rows.
        noun: of one row, e.g. `rollout`.
        form: format, which a reader requires.
        digest: hash of the rows as they are read back.
        repeated: columns whose values occur often.
    """
    path = path_of(folder, step)
    if path.exists():
        raise RunError(f"{path} exists; a recorded step is never overwritten. A resume first calls truncate_after")
    try:
        table = make()
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        raise RunError(f"the {noun}s of step {step} do not fit their columns: {error}") from error
    metadata = {"coterie": form, "step": str(step), "sha256": digest(table)}
    with replacing(path) as tmp:
        # Statistics are off: token ids have none worth having, and no checksum covers them.
        pq.write_table(
            table.replace_schema_metadata(metadata),
            tmp,
            compression="zstd",
            write_page_checksum=True,
            write_statistics=False,
            use_dictionary=list(repeated),
        )
    return path


@contextmanager
def reading(path: Path, step: int, *, noun: str, forms: Sequence[str], loss: str) -> Generator[VerifiedTable]:
    """Context with the rows of one step; errors inside it become a RunError that names the file.

    Args:
        forms: formats that the reader knows.
        loss: sentence on what depends on the file, for the error.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            metadata = file.schema_arrow.metadata or {}
            has_format = metadata.get(b"coterie", b"").decode(errors="replace") in forms
            if not has_format or metadata.get(b"step") != str(step).encode():
                raise ValueError(f"its header says {metadata!r}, expected format {' or '.join(forms)} and step {step}")
            table = file.read().replace_schema_metadata(None)
        yield VerifiedTable(table, metadata.get(b"sha256", b"").decode(errors="replace"))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, MemoryError) as error:
        raise RunError(
            f"{path} is damaged or is no {noun} file of coterie: {error}. {loss}; restore it from a copy, or delete it"
        ) from error


def steps(folder: Path) -> list[int]:
    """Recorded steps, ascending."""
    if not folder.is_dir():
        return []
    names = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in names if match)


def truncate_after(folder: Path, step: int) -> list[int]:
    """Delete the files of later steps, which a resume will make again; returns those steps."""
    later = [number for number in steps(folder) if number > step]
    for number in later:
        path_of(folder, number).unlink()
    if later:
        fsync(folder)
    return later
