"""A packed row through a decoder: the hidden states that predict its trained tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from coterie.batches.batch import Batch
from coterie.policy.kernel import Kernel, packed_layout, pad_row
from coterie.policy.model import Policy


def predicting_states(policy: Policy, batch: Batch, kernel: Kernel) -> Tensor:
    """[N, D] of the policy's decoder, one for each trained token of the row."""
    device = policy.device
    layout = packed_layout(batch.segments, device, kernel)
    tokens = torch.from_numpy(batch.tokens).to(device)[None]
    positions = torch.from_numpy(batch.positions).to(device)[None]
    hidden = policy.hidden(*pad_row(tokens, positions, layout), layout)[0]
    return hidden.index_select(0, torch.from_numpy(batch.sources).to(device))
