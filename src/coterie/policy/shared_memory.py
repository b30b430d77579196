"""Weights of a policy in memory that other processes of this machine map, through which services get them.

The memory has no name in any folder: it is gone with the last process that maps it, also after SIGKILL.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from coterie.errors import EngineError
from coterie.policy.activations import release

SHARED = Path("/dev/shm")
"""A file system in memory, where Linux has it; a file of the temporary folder does elsewhere."""
ALIGNMENT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slot:
    """Place of a tensor."""

    name: str
    dtype: str
    """Of torch, without the module."""
    shape: Sequence[int]
    offset: int
    """Bytes from the start."""


class SharedWeights:
    """Tensors one after the other in a mapped file without a name.

    Args:
        file: descriptor of the file; a process that inherits it maps the same memory.
        slots: one dict a tensor, as `slots` gives them.
    """

    def __init__(self, file: int, slots: Sequence[Mapping[str, Any]]) -> None:
        self.file = file
        self._slots = [_Slot(**slot) for slot in slots]
        self._map = mmap.mmap(file, os.fstat(file).st_size)

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> Self:
        """Memory for tensors of these names, shapes and number formats; `write` fills it.

        Raises:
            EngineError: neither the shared memory nor the temporary folder has room.
        """
        slots, size = [], 0
        for name, tensor in weights.items():
            dtype = str(tensor.dtype).removeprefix("torch.")
            slots.append(_Slot(name=name, dtype=dtype, shape=list(tensor.shape), offset=size))
            size += -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT
        return cls(_reserved(max(size, 1)), [asdict(slot) for slot in slots])

    @classmethod
    def laid_out(cls, slots: Sequence[Mapping[str, Any]]) -> Self:
        """Memory of this process for tensors in these places, as `slots` gives them.

        Raises:
            EngineError: see `of`.
        """
        ends = [slot["offset"] + math.prod(slot["shape"]) * _width(slot["dtype"]) for slot in slots]
        return cls(_reserved(max([1, *(-(-end // ALIGNMENT) * ALIGNMENT for end in ends)])), slots)

    @property
    def arguments(self) -> dict[str, Any]:
        """What another process opens the memory with, JSON-able."""
        return {"file": self.file, "slots": self.slots}

    @property
    def files(self) -> list[int]:
        """Descriptors that the other process inherits."""
        return [self.file]

    @property
    def content(self) -> memoryview:
        """The whole memory."""
        return memoryview(self._map)

    @property
    def slots(self) -> list[dict[str, Any]]:
        """Names, number formats, shapes and places, JSON-able."""
        return [asdict(slot) for slot in self._slots]

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name; they read the memory itself."""
        return {slot.name: self._view(slot) for slot in self._slots}

    def _view(self, slot: _Slot) -> Tensor:
        dtype, count = getattr(torch, slot.dtype), math.prod(slot.shape)
        if not count:
            return torch.empty(slot.shape, dtype=dtype)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=slot.offset).view(tuple(slot.shape))

    @torch.no_grad()
    def write(self, weights: Mapping[str, Tensor]) -> None:
        """Copy the tensors into the memory."""
        for name, place in self.tensors().items():
            place.copy_(weights[name].detach())

    @torch.no_grad()
    def read_into(self, weights: Mapping[str, Tensor]) -> None:
        """Copy the memory into tensors.

        Raises:
            EngineError: they have other names or shapes; none was changed.
        """
        views = self.tensors()
        if {name: view.shape for name, view in views.items()} != {name: to.shape for name, to in weights.items()}:
            names = sorted({slot.name for slot in self._slots} ^ set(weights))[:3]
            raise EngineError(
                f"the service's model has other weights than the learner's ({', '.join(names) or 'other shapes'}); "
                "both read model.name: was the folder changed since the run began?"
            )
        for name, view in views.items():
            weights[name].copy_(view)

    def close(self) -> None:
        """Give the memory back, once no tensor reads it."""
        os.close(self.file)


class ServiceWeights:
    """The trained weights of a service's policy, read from the shared memory, and without memory of their own while it
    sleeps.

    Args:
        shared: where the run writes them.
        weights: by name, each tensor once; the tensors themselves stay, so that whoever holds one sees it come and go.
    """

    def __init__(self, shared: SharedWeights, weights: Mapping[str, Tensor]) -> None:
        self._shared, self._weights = shared, dict(weights)
        self._shapes = {name: tensor.shape for name, tensor in weights.items()}

    def load(self) -> None:
        """Read them, with memory for them again where they have none.

        Raises:
            EngineError: the shared memory has other names or shapes.
        """
        for name, tensor in self._weights.items():
            if tensor.shape != self._shapes[name]:
                tensor.data = tensor.data.new_empty(self._shapes[name])
        self._shared.read_into(self._weights)

    def release(self) -> None:
        """Give their memory back, to the device or the system: the values are lost, every tensor has no element."""
        for tensor in self._weights.values():
            tensor.data = tensor.data.new_empty(0)
        release()


def _width(dtype: str) -> int:
    return getattr(torch, dtype).itemsize


def _reserved(size: int) -> int:
    """Descriptor of a file without a name whose bytes are all there: a later write cannot run out of room."""
    problem: OSError | None = None
    for folder in dict.fromkeys((SHARED, Path(tempfile.gettempdir()))):
        if not folder.is_dir():
            continue
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                os.posix_fallocate(file.fileno(), 0, size)
                return os.dup(file.fileno())
        except OSError as error:
            problem = error
    raise EngineError(
        f"no room for {size} bytes of weights in {SHARED} or {tempfile.gettempdir()}: {problem}; free memory, or name "
        "another folder in TMPDIR"
    )
