"""Named tensors of a checkpoint in one safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from coterie.errors import CheckpointError

_LONGEST_HEADER = 8 << 20
"""Bytes. Ours take about 100 a tensor; the library would parse 100 MB, which costs seconds and gigabytes."""


def write(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write them, wherever they lie in memory."""
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, file)


def read(file: Path) -> dict[str, Tensor]:
    """What `write` wrote.

    Raises:
        CheckpointError: the file does not open, or has a header of absurd length.
    """
    try:
        require_short_header(file)
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {file}: {error}") from error


def require_short_header(file: Path) -> None:
    """Look before the library parses it.

    Raises:
        CheckpointError: the file begins with a header of absurd length.
        OSError: it cannot be read.
    """
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
    if length > _LONGEST_HEADER:
        raise CheckpointError(
            f"cannot read {file}: its header says that it has {length:,} bytes, expected at most "
            f"{_LONGEST_HEADER:,}; it is no checkpoint of coterie"
        )
