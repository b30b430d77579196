"""State in a checkpoint: tensors in safetensors files, and the rest of a component's state in JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
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
    import torch
    from torch import Tensor

_FORMATS = {"torch.float64": "F64", "torch.float32": "F32", "torch.bfloat16": "BF16", "torch.int16": "I16"}
"""Number formats of a learner's state by their names in safetensors."""
_LONGEST_HEADER = 8 << 20
"""Bytes. Ours take about 100 a tensor; the library would parse 100 MB, which costs seconds and gigabytes."""


def write(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors to one safetensors file."""
    import safetensors.torch  # here: whoever reads arrays alone, as the board does, needs no torch

    safetensors.torch.save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, file)


def stream(
    file: Path, shapes: Mapping[str, tuple[torch.dtype, Sequence[int]]], tensor_of: Callable[[str], Tensor]
) -> None:
    """Write a safetensors file of which only one tensor at a time is in memory.

    Args:
        shapes: number format and shape of each tensor by name.
        tensor_of: name → the tensor; asked once for each, in the order of the file.
    """
    import torch

    # The widest first, as safetensors does it: then every tensor lies on a multiple of its width.
    names = sorted(shapes, key=lambda name: (-shapes[name][0].itemsize, name))
    header: dict[str, Any] = {}
    offset = 0
    for name in names:
        dtype, shape = shapes[name]
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _FORMATS[str(dtype)], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json_dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with file.open("wb") as handle:
        handle.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in names:
            tensor = tensor_of(name).detach().cpu().contiguous()
            assert (tensor.dtype, list(tensor.shape)) == (shapes[name][0], list(shapes[name][1])), name
            handle.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


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
