"""Weights of a policy in one safetensors file, through which a server in another process gets what the learner made.

A file appears whole by one rename. A reader checks all names and shapes before it changes the first weight.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from coterie.errors import ModelError
from coterie.policy.model import Policy
from coterie.policy.tensor_parts import ADAPTER

BASE = ".base_layer"
"""Mark in PEFT's names of the layer below an adapter."""


def weights_of(policy: Policy) -> Mapping[str, Tensor]:
    """The weights by transformers' names, each tensor once, with an adapter's update added to its base.

    W + alpha / rank · B A is taken in float32 and rounded once.
    """
    whole = policy.whole({name: parameter.detach() for name, parameter in policy.model.named_parameters()})
    if policy.adapters is None:
        return whole
    weights = {name.replace(BASE, ""): whole[name] for name in whole if ADAPTER not in name}
    for name, layer in policy.model.named_modules():
        if hasattr(layer, "lora_A") and hasattr(layer, "base_layer"):
            base = weights[f"{name}.weight"]
            for adapter in layer.lora_A:
                up, down = whole[f"{name}.lora_B.{adapter}.weight"], whole[f"{name}.lora_A.{adapter}.weight"]
                wide = torch.promote_types(base.dtype, torch.float32)
                update = layer.scaling[adapter] * (up.to(wide) @ down.to(wide))
                weights[f"{name}.weight"] = (base.to(wide) + update).to(base.dtype)
    return weights


def write(policy: Policy, path: Path) -> None:
    """Write the weights to a file that appears whole.

    Raises:
        OSError, SafetensorError: the disk refused.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file({name: tensor.cpu().contiguous() for name, tensor in weights_of(policy).items()}, draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


@torch.no_grad()
def read_into(policy: Policy, path: Path) -> None:
    """Replace the weights of a policy by those of a file, rounded to the policy's number format.

    Raises:
        ModelError: the file is damaged, or is of another model; no weight was changed.
    """
    parameters = dict(policy.model.named_parameters())
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            _require_same({name: tuple(file.get_slice(name).get_shape()) for name in names}, parameters, path)
            tensors = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path.name} cannot be read: {error}; write the weights again") from error
    for name, tensor in tensors.items():
        parameters[name].copy_(tensor)


def _require_same(shapes: Mapping[str, tuple[int, ...]], parameters: Mapping[str, Tensor], path: Path) -> None:
    """Raise ModelError unless the file has the policy's tensors, all of them and of their shapes."""
    for name in sorted(shapes.keys() | parameters.keys()):
        there = shapes.get(name)
        here = tuple(parameters[name].shape) if name in parameters else None
        if there != here:
            raise ModelError(
                f"{path.name} is of another model: {name} has the shape {there or 'of no tensor'} there and "
                f"{here or 'of no tensor'} here; serve the model that is trained"
            )
