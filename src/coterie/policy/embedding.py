"""What a prompt means to the policy: the mean of its hidden states half way up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from coterie.algo.precision import widened
from coterie.batches.segments import pack_prompts
from coterie.policy.attention import PackedLayout
from coterie.policy.compile import eager
from coterie.policy.model import Policy

_TOKENS = 2048
"""Of one forward pass."""


@torch.no_grad()
def embed_prompts(policy: Policy, prompts: Sequence[Sequence[int]]) -> np.ndarray:
    """[P, D] float64.

    States in the middle say more of a text's meaning than the last ones, which are about the next token (Skean et al.
    2025, Layer by Layer, arXiv:2502.02013), and cost half as much.

    Args:
        prompts: token ids of each, as the policy is asked them.
    """
    found: list[np.ndarray] = []
    todo = list(prompts)
    with eager(policy):
        while todo:
            batch = [todo.pop(0)]
            while todo and sum(map(len, batch)) + len(todo[0]) <= _TOKENS:
                batch.append(todo.pop(0))
            found += _pass(policy, batch)
    return np.stack(found) if found else np.zeros((0, policy.head.in_features))


def _pass(policy: Policy, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
    row = pack_prompts(prompts)
    tokens, positions = (torch.from_numpy(one).to(policy.device)[None] for one in (row.tokens, row.positions))
    hidden = widened(policy.middle(tokens, positions, PackedLayout(row.segments, policy.device))[0])
    shared = hidden[: row.head].sum(0)
    return [
        ((shared + hidden[one.start : one.start + one.prompt].sum(0)) / (row.head + one.prompt)).numpy(force=True)
        for one in row.segments
    ]
