"""Sums over the tokens of each rollout, handed back to the tokens: [N] in, [N] out, no loop over rollouts.

`rollout` [N] int64 is the index of the rollout that a token belongs to. Indices lie below N (a rollout with a token
takes up at least that token), so N rows always suffice and no size has to be read back from the device.
"""

from __future__ import annotations

import torch
from torch import Tensor


def segment_sum(values: Tensor, rollout: Tensor) -> Tensor:
    """[N] each token's rollout total; differentiable.

    >>> segment_sum(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([0, 0, 1])).tolist()
    [3.0, 3.0, 5.0]
    """
    totals = values.new_zeros(values.shape).index_add(0, rollout, values)
    return totals.index_select(0, rollout)


def segment_mean(values: Tensor, rollout: Tensor, counted: Tensor) -> Tensor:
    """[N] mean over those tokens of a rollout that are counted (bool [N]); 0 where it has none.

    What is not counted is replaced before the sum, so that not even an infinity there can matter.
    """
    total = segment_sum(torch.where(counted, values, 0.0), rollout)
    return total / segment_sum(counted.to(values.dtype), rollout).clamp(min=1)


def segment_any(flags: Tensor, rollout: Tensor) -> Tensor:
    """[N] bool: does any token of the same rollout have its flag (bool [N]) set?"""
    return segment_sum(flags.to(torch.int64), rollout) > 0
