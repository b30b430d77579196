"""Parts of tensors: which values of a tensor lie in this process, and how the whole one is had again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

ADAPTER = ".lora_"
"""Mark in PEFT's names of an adapter's own weights."""
_KINDS = ("weight", "low", "exp_avg", "exp_avg_sq", "step")
"""What stands before a parameter's name in the state of an optimizer."""


def is_shard(tensor: Tensor) -> bool:
    """True if this process has a part of the tensor only."""
    # A DTensor; its class takes as long to import as the rest of this package, and most runs have none.
    return hasattr(tensor, "_local_tensor")


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies in this process, without a gradient; of an ordinary tensor all of it."""
    return getattr(tensor.detach(), "_local_tensor", tensor.detach())


@dataclass(frozen=True, slots=True)
class Cut:
    """How one tensor is cut among ranks.

    Attributes:
        shape: of the whole.
        world: number of ranks.
    """

    shape: tuple[int, ...]
    world: int

    def rows(self, rank: int) -> tuple[int, int]:
        """Half-open range of the rows of one rank."""
        each = -(-self.shape[0] // self.world)
        return min(rank * each, self.shape[0]), min((rank + 1) * each, self.shape[0])

    def values(self, rank: int) -> tuple[int, int]:
        """Half-open range of one rank's values in the flat tensor."""
        width = math.prod(self.shape[1:])
        first, last = self.rows(rank)
        return first * width, last * width


def cuts_of(parameters: Mapping[str, Tensor], world: int) -> dict[str, Cut]:
    """How those parameters are cut that are shards, by name."""
    return {name: Cut(tuple(p.shape), world) for name, p in parameters.items() if is_shard(p)}


def parameter_of(key: str) -> tuple[str, str]:
    """Kind and parameter of a tensor in a state file; the kind is empty where it is the parameter itself."""
    kind, _, name = key.partition("/")
    return (kind, name) if kind in _KINDS else ("", key)


def whole_shape(key: str, cuts: Mapping[str, Cut]) -> tuple[Cut, tuple[int, ...]] | None:
    """How a tensor of a state file is cut, and its whole shape; None where every rank has all of it."""
    kind, name = parameter_of(key)
    if kind == "step" or name not in cuts:
        return None
    cut = cuts[name]
    return cut, cut.shape if kind in ("", "weight") else (math.prod(cut.shape),)


class Gathered(Mapping[str, Tensor]):
    """Whole tensors by name, gathered anew each time that one is asked for.

    Args:
        tensors: by name, of which some are shards.
        gather: name → the whole tensor.
    """

    def __init__(self, tensors: Mapping[str, Tensor], gather: Callable[[str], Tensor]) -> None:
        self.tensors, self.gather = tensors, gather

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.tensors[name]
        return self.gather(name) if is_shard(tensor) else tensor.detach()

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def whole_state(
    module: nn.Module, parameters: Mapping[str, Tensor], whole: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
) -> dict[str, Any]:
    """Arguments with which `save_pretrained` writes whole tensors; empty where the module has them.

    Args:
        module: a model, or a PEFT model, of which the adapter is written.
        parameters: of the model, by name.
        whole: see `Policy.whole`.
    """
    if not any(is_shard(parameter) for parameter in parameters.values()):
        return {}
    entries = module.state_dict(keep_vars=True)
    adapter = {name: tensor for name, tensor in entries.items() if ADAPTER in name}
    names = {id(parameter): name for name, parameter in parameters.items()}
    gathered, tensors = whole(parameters), dict[str, Tensor]()
    for entry, tensor in (adapter or entries).items():
        name = names.get(id(tensor), entry)
        if name not in tensors:  # tied weights stay one tensor
            tensors[name] = gathered[name] if id(tensor) in names else tensor
    return {"state_dict": {entry: tensors[names.get(id(of), entry)] for entry, of in (adapter or entries).items()}}
