"""What the backward pass keeps of the forward pass: everything, one state a layer, or nothing on the device."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from coterie.config.optim import OptimConfig
from coterie.errors import ConfigError, ModelError

_SMALL = 1 << 16
"""Tensors of fewer values stay where they are: moving them would cost more than they take."""


def arrange(model: nn.Module, device: torch.device, config: OptimConfig) -> None:
    """Prepare the model for the settings, once.

    Raises:
        ConfigError: offload without a device to offload from.
        ModelError: checkpointing of a model without decoder layers that transformers marks for it.
    """
    if config.offload and device.type != "cuda":
        raise ConfigError(
            f"optim.offload = true moves activations from a GPU into main memory, but model.device is {device.type}; "
            "use optim.checkpointing instead"
        )
    if config.checkpointing:
        _checkpoint_layers(model)


def _checkpoint_layers(model: nn.Module) -> None:
    # transformers' own switch acts in training mode only, and that would switch dropout on as well.
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(
            f"{type(model).__name__} marks no layers for checkpointing; use optim.checkpointing = false and a smaller "
            "optim.token_budget"
        )
    for layer in layers:
        if not getattr(layer.forward, "recomputed", False):
            layer.forward = _recomputed(layer.forward)


def _recomputed(forward: Any) -> Any:
    @wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # Nothing in an eval-mode layer is random, so the generators' state need not be kept.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    call.recomputed = True  # ty: ignore[missing-attribute]
    return call


def saving(parameters: Iterable[Tensor], config: OptimConfig) -> AbstractContextManager[Any]:
    """Around a forward pass: where tensors saved for the backward pass go."""
    return Offload(parameters) if config.offload else nullcontext()


class Offload(torch.autograd.graph.saved_tensors_hooks):
    """Keep saved activations in pinned main memory, as torch's `save_on_cpu` does, but leave the weights alone: a
    matrix product saves its weight too, and that is on the device anyway."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        held = {parameter.untyped_storage().data_ptr() for parameter in parameters}

        def pack(tensor: Tensor) -> tuple[torch.device, Tensor]:
            stays = tensor.numel() < _SMALL or tensor.untyped_storage().data_ptr() in held
            return tensor.device, tensor if stays else _to_main_memory(tensor)

        def unpack(packed: tuple[torch.device, Tensor]) -> Tensor:
            device, tensor = packed
            return tensor.to(device, non_blocking=True)

        super().__init__(pack, unpack)


def _to_main_memory(tensor: Tensor) -> Tensor:
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
    return copy.copy_(tensor)
