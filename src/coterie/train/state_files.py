"""A part's state in a checkpoint: one safetensors file of NumPy arrays, and JSON for the rest."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from coterie.errors import CheckpointError
from coterie.policy.tensors import require_short_header
from coterie.runs.durable import json_dumps, json_loads, write_file


@dataclass(frozen=True, slots=True)
class StateFiles:
    """The two files of one part.

    Attributes:
        stem: their name without the ending.
        what: the part, e.g. `the groups`, for errors.
    """

    stem: str
    what: str

    @property
    def arrays(self) -> str:
        return f"{self.stem}.safetensors"

    @property
    def facts(self) -> str:
        return f"{self.stem}.json"

    def write(self, folder: Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """Into a checkpoint's folder.

        Raises:
            RunError: the disk refused.
        """
        # In C order: safetensors stores what lies in memory, whatever the strides say.
        save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, folder / self.arrays)
        write_file(folder / self.facts, json_dumps(dict(facts)).encode())

    @contextmanager
    def reading(self, folder: Path) -> Generator[tuple[dict[str, np.ndarray], dict[str, Any]]]:
        """Arrays and facts as they were written; whatever is wrong with them, here or inside, is said of the part.

        Raises:
            CheckpointError: a file is missing or damaged, or does not hold what is asked of it.
        """
        try:
            facts = json_loads((folder / self.facts).read_bytes())
            require_short_header(folder / self.arrays)
            yield load_file(folder / self.arrays), facts
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"cannot read {self.what} in {folder}: {error}") from error
