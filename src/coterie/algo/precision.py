"""Which precision sums and softmaxes are taken in."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """float64 stays; everything else is taken to float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@cache
def has_float64(kind: str) -> bool:
    """Whether devices of this kind (`cuda`, `mps`, …) compute in float64. Apple's MPS does not, nor some Intel GPUs."""
    if kind in ("cpu", "cuda", "meta"):
        return True
    try:
        return bool(torch.ones(1, dtype=torch.float64, device=kind).add(1).item() == 2)
    except (TypeError, RuntimeError):
        return False


def widened(tensor: Tensor) -> Tensor:
    """A tensor as float64: on its own device, or on the CPU where that has none."""
    return (tensor if has_float64(tensor.device.type) else tensor.cpu()).double()
