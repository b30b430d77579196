"""A checkpoint's tensors: what is no such file is refused at once."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch

from coterie.errors import CheckpointError
from coterie.runs import state_files


def test_they_come_back(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    tensors = {"a": torch.arange(6.0).view(2, 3).t(), "b": torch.zeros(0, dtype=torch.bfloat16)}
    state_files.write(file, tensors)
    loaded = state_files.read(file)
    assert all(
        torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot read"),
        (b"\0", "cannot read"),
        (struct.pack("<Q", 4) + b"{}", "cannot read"),
        (struct.pack("<Q", 1 << 60), r"its header says that it has 1,152,921,504,606,846,976 bytes, expected at most"),
        (struct.pack("<Q", 9 << 20) + b" " * (9 << 20), r"has 9,437,184 bytes, expected at most 8,388,608"),
    ],
)
def test_other_files_are_refused(data: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        state_files.read(file)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        state_files.read(tmp_path / "x.safetensors")
