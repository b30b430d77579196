"""Rollouts as state: the two files of a checkpoint that hold those of one component.

STEM.parquet  a row a rollout, in the columns of the rollout files; `step` is the number of the part that it belongs to
STEM.json     format, and of each part all that is no rollout
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from coterie.errors import CheckpointError
from coterie.runs.durable import json_dumps, json_loads, write_file
from coterie.runs.rows import RolloutRecord, from_row, schema, to_row


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutFiles:
    """Names, format and contents of the files of one component.

    Attributes:
        stem: of the files' names.
        what: the component, in errors.
        parts: name of the list of parts in the JSON file, such as `groups`.
        format: of the files; another one is refused.
    """

    stem: str
    what: str
    parts: str
    format: int

    @property
    def rows(self) -> str:
        return f"{self.stem}.parquet"

    @property
    def facts(self) -> str:
        return f"{self.stem}.json"

    def write(self, folder: Path, parts: Sequence[Sequence[RolloutRecord]], facts: Mapping[str, Any]) -> None:
        """Write the files into a checkpoint's folder.

        Args:
            parts: records of each part.
            facts: with a list `self.parts` of what else belongs to each.

        Raises:
            RunError: the disk refused, or a rollout cannot be stored.
        """
        rows = [to_row(number, record) for number, part in enumerate(parts) for record in part]
        # Exact log-probs: the ratio of a later update, and so a resumed run, depends on every bit of them.
        pq.write_table(pa.Table.from_pylist(rows, schema=schema(exact=True)), folder / self.rows, compression="zstd")
        write_file(folder / self.facts, json_dumps({"format": self.format, **facts}).encode())

    @contextmanager
    def reading(self, folder: Path) -> Generator[tuple[dict[str, Any], list[list[RolloutRecord]]]]:
        """Context with the facts, and the records of each part; errors inside it become a CheckpointError that names
        the component.

        Raises:
            CheckpointError: a file is missing or damaged, or of another format.
        """
        try:
            facts = json_loads((folder / self.facts).read_bytes())
            if facts["format"] != self.format:
                raise ValueError(f"its format is {facts['format']!r}, this version of coterie reads {self.format}")
            parts: list[list[RolloutRecord]] = [[] for _ in facts[self.parts]]
            for row in pq.read_table(folder / self.rows).to_pylist():
                if not 0 <= row["step"] < len(parts):
                    raise ValueError(f"rollouts that belong to none of the {self.parts} are left over")
                parts[row["step"]].append(from_row(row))
            yield facts, parts
        except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"cannot read {self.what} in {folder}: {error}") from error
