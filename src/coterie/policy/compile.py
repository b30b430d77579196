"""Regional compilation: each decoder layer is compiled, once for all layers, and the rest of the model stays eager.

A layer is where the time goes (norms, rotary embedding, activation and residuals fuse), and all layers share one
compiled graph, so the wait at the start is that of one layer and not of the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch

from coterie.errors import ModelError
from coterie.policy.model import Policy


@contextmanager
def eager(policy: Policy) -> Generator[None]:
    """Inside, compiled layers run as they were written: for the engine, whose shapes would be compiled anew."""
    layers = getattr(policy.decoder, "layers", ())
    if not any(getattr(layer, "_compiled_call_impl", None) for layer in layers):
        yield  # entering a stance loads the compiler
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def compile_layers(policy: Policy, *, backend: str | Callable[..., Any] = "inductor") -> int:
    """Compile the policy's decoder layers in place; the parameters and their names stay the same.

    Args:
        backend: of `torch.compile`.

    Returns:
        How many layers there are.

    Raises:
        ModelError: the model has no list of decoder layers, or runs through its own forward pass.
    """
    if policy.path.kind == "plain":
        raise ModelError(
            f"{type(policy.model).__name__} runs through its own forward pass, where its layers would be compiled anew "
            "for every length of a sequence; set optim.compile_layers = false"
        )
    layers = getattr(policy.decoder, "layers", None)
    if not isinstance(layers, torch.nn.ModuleList):
        raise ModelError(
            f"{type(policy.decoder).__name__} has no list of decoder layers to compile; leave regional compilation off"
        )
    for layer in layers:
        layer.compile(backend=backend)
    return len(layers)
