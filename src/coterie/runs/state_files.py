"""State in a checkpoint: tensors in safetensors files, and the rest of a component's state in JSON."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from coterie.errors import CheckpointError
from coterie.runs.durable import json_dumps, json_loads, write_file

if TYPE_CHECKING:
    from torch import Tensor

_LONGEST_HEADER = 8 << 20
"""Bytes. Ours take about 100 a tensor; the library would parse 100 MB, which costs seconds and gigabytes."""


def write(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors to one safetensors file."""
    import safetensors.torch  # here: whoever reads arrays alone, as the board does, needs no torch

    safetensors.torch.save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, file)


def read(file: Path) -> dict[str, Tensor]:
    """Named tensors of a safetensors file."""
    import safetensors.torch

    try:
        require_short_header(file)
        return safetensors.torch.load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {file}: {error}") from error


def require_short_header(file: Path) -> None:
    """Raise CheckpointError if a safetensors file begins with a header of absurd length, before it is parsed."""
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
    if length > _LONGEST_HEADER:
        raise CheckpointError(
            f"cannot read {file}: its header says that it has {length:,} bytes, expected at most "
            f"{_LONGEST_HEADER:,}; it is no checkpoint of coterie"
        )


@dataclass(frozen=True, slots=True)
class StateFiles:
    """The two files of one component.

    Attributes:
        stem: their name without the ending.
        what: the component, e.g. `the groups`, for errors.
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
        """Write the files into a checkpoint's folder."""
        # In C order: safetensors stores what lies in memory, whatever the strides say.
        safetensors.numpy.save_file(
            {name: np.asarray(array, order="C") for name, array in arrays.items()}, folder / self.arrays
        )
        write_file(folder / self.facts, json_dumps(dict(facts)).encode())

    @contextmanager
    def reading(self, folder: Path) -> Generator[tuple[dict[str, np.ndarray], dict[str, Any]]]:
        """Context with the stored arrays and facts; errors inside it become a CheckpointError that names the component.

        Raises:
            CheckpointError: a file is missing or damaged, or does not hold what is asked of it.
        """
        try:
            facts = json_loads((folder / self.facts).read_bytes())
            require_short_header(folder / self.arrays)
            yield safetensors.numpy.load_file(folder / self.arrays), facts
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"cannot read {self.what} in {folder}: {error}") from error
