"""Packed copies of the weights of linear layers, for sampling: layers that read the same states become one product."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

WORTH = 256
"""Tokens to sample from which packing pays: it costs about as much as a handful of decode steps."""
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of layers of one module that are called with the same states, one after the other."""


def supported(model: nn.Module) -> bool:
    """True if the model's weights are bfloat16 on a CPU whose kernels take a packed weight."""
    parameter = next(model.parameters(), None)
    return (
        parameter is not None
        and parameter.device.type == "cpu"
        and parameter.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported")
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


class Product:
    """states [.., D] → [.., N], the product with the weights of layers that read the same states, side by side.

    oneDNN reorders a bfloat16 weight on every product; while sampling, the weights stand still and few rows share each
    product, so that the reordering is a fifth of the time at 64 rows and half of it at 16.

    Args:
        rows: how many rows the product will usually have; the layout is chosen for it. 0 packs nothing.
    """

    def __init__(self, layers: Sequence[nn.Linear], rows: int) -> None:
        self.sizes = [layer.out_features for layer in layers]
        weights, biases = [layer.weight.detach() for layer in layers], [layer.bias for layer in layers]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        self.bias = None if biases[0] is None else torch.cat([bias.detach() for bias in biases])
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows) if rows else weight
        self.packed = bool(rows)

    def __call__(self, states: Tensor) -> Tensor:
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(states, self.weight, self.bias, "none", [], "")
        return nn.functional.linear(states, self.weight, self.bias)


class SharedProduct:
    """One product for layers that are called one after the other: the first computes it, the others take their part."""

    def __init__(self, product: Product) -> None:
        self.product = product
        self._states: Tensor | None = None
        self._parts: Sequence[Tensor] = ()

    def part(self, index: int) -> Callable[[Tensor], Tensor]:
        """Forward function of layer `index`."""

        def forward(states: Tensor) -> Tensor:
            if self._states is not states:
                self._states, self._parts = states, self.product(states).split(self.product.sizes, -1)
            part = self._parts[index]
            if index == len(self._parts) - 1:  # the last of them: nothing is held any longer
                self._states, self._parts = None, ()
            return part

        return forward


Products = dict[nn.Module, Product]
"""Layer → the product that it is computed by; siblings have the same one."""


def products(model: nn.Module, rows: int) -> Products:
    """The products of all linear layers of a model.

    Args:
        rows: see `Product`.
    """
    shared: Products = {}
    for module in model.modules():
        for names in SIBLINGS:
            layers = [getattr(module, name, None) for name in names]
            linear = [layer for layer in layers if type(layer) is nn.Linear]
            alike = len({(layer.in_features, layer.bias is None) for layer in linear}) == 1
            if len(linear) == len(names) and alike:
                shared |= dict.fromkeys(linear, Product(linear, rows))
    alone = [module for module in model.modules() if type(module) is nn.Linear and module not in shared]
    return shared | {layer: Product([layer], rows) for layer in alone}


@contextmanager
def prepacked(model: nn.Module, *, rows: int, tokens: int) -> Generator[Products]:
    """Run the linear layers of `model` on packed copies of their weights, inside `torch.inference_mode`; yields the
    products, none where packing is not supported or does not pay. The copies are dropped at the end, before the update
    needs the memory.

    Args:
        rows: how many rows a matrix product will usually have.
        tokens: about how many tokens will be sampled; below `WORTH` nothing is done.
    """
    packed = products(model, rows) if tokens >= WORTH and supported(model) else {}
    siblings: dict[Product, list[nn.Module]] = {}
    for layer, product in packed.items():
        siblings.setdefault(product, []).append(layer)
    try:
        for product, layers in siblings.items():
            shared = SharedProduct(product)
            for index, layer in enumerate(layers):
                layer.forward = product if len(layers) == 1 else shared.part(index)
        yield packed
    finally:
        for layer in packed:
            layer.__dict__.pop("forward", None)
