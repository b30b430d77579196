"""Named tensors of a checkpoint in one safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from coterie.errors import CheckpointError


def write(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write them, wherever they lie in memory."""
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, file)


def read(file: Path) -> dict[str, Tensor]:
    """What `write` wrote.

    Raises:
        CheckpointError: the file does not open.
    """
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {file}: {error}") from error
