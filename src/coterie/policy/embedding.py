"""What a prompt means to the policy: the mean of its last hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from coterie.batches import Segment
from coterie.policy.attention import PackedLayout
from coterie.policy.model import Policy

_TOKENS = 2048
"""Of one forward pass."""


@torch.no_grad()
def embed_prompts(policy: Policy, prompts: Sequence[Sequence[int]]) -> np.ndarray:
    """[P, D] float64.

    Args:
        prompts: token ids of each, as the policy is asked them.
    """
    found: list[np.ndarray] = []
    todo = list(prompts)
    while todo:
        batch = [todo.pop(0)]
        while todo and sum(map(len, batch)) + len(todo[0]) <= _TOKENS:
            batch.append(todo.pop(0))
        found += _pass(policy, batch)
    return np.stack(found) if found else np.zeros((0, policy.head.in_features))


def _pass(policy: Policy, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
    starts = np.concatenate([[0], np.cumsum([len(ids) for ids in prompts])])
    segments = [
        Segment(start=int(start), prompt=len(ids), lengths=()) for start, ids in zip(starts, prompts, strict=False)
    ]
    tokens = torch.tensor([token for ids in prompts for token in ids], device=policy.device)[None]
    positions = torch.cat([torch.arange(len(ids), device=policy.device) for ids in prompts])[None]
    hidden = policy.hidden(tokens, positions, PackedLayout(segments, policy.device))[0].double()
    return [part.mean(0).numpy(force=True) for part in hidden.split([len(ids) for ids in prompts])]
