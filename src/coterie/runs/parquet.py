"""One zstd Parquet file a step, which vouches for its own rows.

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
class Recorded:
    """What a file holds, before its rows are trusted."""

    table: pa.Table
    sha256: str

    def require(self, digest: str) -> None:
        """Refuse rows of another hash than the file carries.

        Raises:
            ValueError: inside `reading`, which says of which file.
        """
        if digest != self.sha256:
            raise ValueError("its rows do not match the hash it carries")


def path_of(folder: Path, step: int) -> Path:
    """Where the file of a step lies."""
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
        form: format, which a reader asks for.
        digest: hash of the rows as they are read back.
        repeated: columns whose values occur often.

    Raises:
        RunError: the step is recorded already, a row does not fit its columns, or the disk refused.
    """
    path = path_of(folder, step)
    if path.exists():
        raise RunError(f"{path} exists; a recorded step is never overwritten. A resume first calls truncate_after")
    try:
        table = make()
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        raise RunError(f"the {noun}s of step {step} do not fit their columns: {error}") from error
    facts = {"coterie": form, "step": str(step), "sha256": digest(table)}
    with replacing(path) as tmp:
        # Statistics are off: token ids have none worth having, and no checksum covers them.
        pq.write_table(
            table.replace_schema_metadata(facts),
            tmp,
            compression="zstd",
            write_page_checksum=True,
            write_statistics=False,
            use_dictionary=list(repeated),
        )
    return path


@contextmanager
def reading(path: Path, step: int, *, noun: str, forms: Sequence[str], loss: str) -> Generator[Recorded]:
    """The rows of one step; whatever is wrong with them, here or inside, is said of the file.

    Args:
        forms: formats that the reader knows.
        loss: what depends on the file, to be said where it is damaged.

    Raises:
        RunError: the file is damaged, of another step or of another format.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            facts = file.schema_arrow.metadata or {}
            known = facts.get(b"coterie", b"").decode(errors="replace") in forms
            if not known or facts.get(b"step") != str(step).encode():
                raise ValueError(f"its header says {facts!r}, expected format {' or '.join(forms)} and step {step}")
            table = file.read().replace_schema_metadata(None)
        yield Recorded(table, facts.get(b"sha256", b"").decode(errors="replace"))
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
