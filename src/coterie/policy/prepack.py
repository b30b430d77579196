"""Weights laid out once for the CPU's matrix kernels, for as long as one generation call lasts.

oneDNN reorders a bfloat16 weight on every product; while sampling, the weights stand still and few rows share each
product, so that the reordering is a fifth of the time at 64 rows and half of it at 16. The copy is dropped before the
update needs the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

WORTH = 256
"""Tokens to sample from which packing pays: it costs about as much as a handful of decode steps."""


def supported(model: nn.Module) -> bool:
    """Whether this model's weights are bfloat16 on a CPU whose kernels take a packed weight."""
    one = next(model.parameters(), None)
    return (
        one is not None
        and one.device.type == "cpu"
        and one.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported")
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


@contextmanager
def prepacked(model: nn.Module, *, rows: int, tokens: int) -> Generator[None]:
    """Run the linear layers of `model` on packed copies of their weights, inside `torch.inference_mode`.

    Args:
        rows: how many rows a matrix product will usually have; the layout is chosen for it.
        tokens: about how many tokens will be sampled; below `WORTH` nothing is done.
    """
    layers: list[nn.Linear] = []
    if tokens >= WORTH and supported(model):
        layers = [module for module in model.modules() if type(module) is nn.Linear]
    try:
        for layer in layers:
            layer.forward = _forward(layer, rows)  # ty: ignore[invalid-assignment]  # the instance's own attribute hides the class's method
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _forward(layer: nn.Linear, rows: int) -> Callable[[Tensor], Tensor]:
    packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), rows)
    bias = None if layer.bias is None else layer.bias.detach()

    def forward(states: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(states, packed, bias, "none", [], "")

    return forward
