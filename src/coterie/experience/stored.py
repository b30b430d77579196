"""The stored rollouts of some runs as one table that is read only as far as it is asked for."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow import fs

from coterie.errors import RunError
from coterie.runs import prompts, rows, step_files
from coterie.runs.directory import RunDirectory

RUN = pa.field("run", pa.string())


@dataclass(frozen=True, eq=False)
class Stored:
    """What runs have recorded."""

    folders: dict[str, Path]
    """Name → folder."""

    @property
    def schema(self) -> pa.Schema:
        """`run`, then the columns of the rollout files, whatever format the files have."""
        return pa.schema([RUN, *rows.schema()])

    def rollouts(self, first: int | None = None, last: int | None = None, recent: int | None = None) -> ds.Dataset:
        """Rollouts of the training steps from `first` to `last`, or of each run's last `recent` steps of those."""
        found = []
        form = ds.ParquetFileFormat(default_fragment_scan_options=_checked())
        for name, folder in self.folders.items():
            steps = [step for step in step_files.steps(folder / "rollouts") if _inside(step, first, last)]
            for step in steps if recent is None else steps[len(steps) - min(recent, len(steps)) :]:
                file = str(step_files.path_of(folder / "rollouts", step))
                here = ds.field("run") == name
                found.append(form.make_fragment(file, filesystem=fs.LocalFileSystem(), partition_expression=here))
        if not found:
            return ds.dataset(self.schema.empty_table())
        return ds.FileSystemDataset(found, self.schema, form, fs.LocalFileSystem())

    @cached_property
    def prompts(self) -> pa.Table:
        """`run`, then the columns of the prompt files; no rows from runs of an older coterie.

        Raises:
            RunError: a file is damaged.
        """
        parts = []
        for name, folder in self.folders.items():
            table = prompts.read(folder / "prompts")
            parts.append(table.add_column(0, RUN, pa.array([name] * len(table), pa.string())))
        return pa.concat_tables(parts)


def open_runs(runs: Sequence[str | Path], root: Path = Path("runs")) -> Stored:
    """The runs of these names or paths; also while they train.

    Raises:
        RunError: one of them is no run.
    """
    paths = [RunDirectory.at(run, root).path for run in runs]
    names = [path.resolve().name for path in paths]
    alike = len(set(names)) < len(names)
    return Stored({str(path) if alike else name: path for name, path in zip(names, paths, strict=True)})


@contextmanager
def readable() -> Generator[None]:
    """Turn what pyarrow says of a bad file, or of columns that cannot be compared, into an error of coterie's own.

    Raises:
        RunError: with pyarrow's reason, which names the file.
    """
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise RunError(
            f"the stored rollouts cannot be read: {error}. A damaged file can be restored from a copy or deleted; the "
            "other steps do not depend on it"
        ) from error


def _checked() -> ds.ParquetFragmentScanOptions:
    return ds.ParquetFragmentScanOptions(page_checksum_verification=True)


def _inside(step: int, first: int | None, last: int | None) -> bool:
    return (first is None or step >= first) and (last is None or step <= last)
