"""What a tensor of a sharded policy is in this process: the part of it that lies here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

ADAPTER = ".lora_"
"""Mark in PEFT's names of an adapter's own weights."""


def is_shard(tensor: Tensor) -> bool:
    """True if this process has a part of the tensor only."""
    # A DTensor; its class takes as long to import as the rest of this package, and most runs have none.
    return hasattr(tensor, "_local_tensor")


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies in this process, without a gradient; of an ordinary tensor all of it."""
    return getattr(tensor.detach(), "_local_tensor", tensor.detach())


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
