"""Which precision sums and softmaxes are taken in."""

from __future__ import annotations

import torch


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """float64 stays; everything else is taken to float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
