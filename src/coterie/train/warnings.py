"""Do sampler and learner read the same weights? One look a step; the rules of `coterie doctor` look at whole series."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

METRIC, ERROR = "mismatch/kl", "mismatch/kl_error"
FULL, HALF = 1e-6, 1e-2
"""Nats a token that rounding does not reach: in float32 it makes 1e-13 on a CPU and 1e-8 between kernels, in bfloat16
2e-3 in the mean of many steps of SmolLM2-135M. One matrix times 1.01 makes 1e-5 to 5e-4, and so shows in float32
alone."""
SURE = 2.0
"""Standard errors by which half precision's limit has to be exceeded. A single token that is rounded apart where the
policy is sure adds up to 8 nats, and decides the mean of a step with few tokens; other weights move all of them."""


def disagreement(metrics: Mapping[str, float], dtype: torch.dtype) -> str | None:
    """What to say of one step's mismatch; None where rounding explains it, or nothing was trained.

    Args:
        dtype: of the policy's weights.
    """
    found = metrics.get(METRIC)
    if found is None or metrics.get("staleness/max", 0.0) > 0:
        return None
    full = dtype in (torch.float32, torch.float64)
    limit = FULL if full else HALF
    least = found if full else found - SURE * metrics.get(ERROR, math.inf)
    if least <= limit:
        return None
    return (
        f"the learner scores the sampled tokens otherwise than the sampler did: {METRIC} = {found:.2g} nats a token, "
        f"while rounding in {str(dtype).removeprefix('torch.')} makes less than {limit:g}. The engine's weights are "
        "not those of this step, or its kernels are wrong"
    )
