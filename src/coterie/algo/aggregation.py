"""Loss aggregation: the weight of every token as its share of one global denominator. NumPy only."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

LossAggMode = Literal[
    "seq-mean-token-mean", "token-mean", "seq-mean-token-sum-norm", "seq-mean-token-sum", "prompt-mean"
]

LOSS_AGG_MODES: dict[str, tuple[str, str]] = {
    "seq-mean-token-mean": (
        "1 / (R·L_i)",
        "GRPO, DeepSeekMath 2402.03300, eq. 3: mean over tokens, then over rollouts",
    ),
    "token-mean": ("1 / Σ_j L_j", "DAPO 2503.14476, §3.3: mean over all tokens of the step"),
    "seq-mean-token-sum-norm": ("1 / (R·L_max)", "Dr. GRPO 2503.20783: no length in it, so the gradient is unbiased"),
    "seq-mean-token-sum": ("1 / R", "REINFORCE and RLOO; with the sequence ratio, LUSPO's loss"),
    "prompt-mean": (
        "1 / (P·Σ_{j of the same prompt} L_j)",
        "ScaleRL 2510.13786: token mean in a prompt, mean of prompts",
    ),
}
"""how → (weight of each token of rollout i, source). R rollouts and P prompts that have a trained token at all."""


def token_weights(
    lengths: ArrayLike, prompts: ArrayLike, how: LossAggMode, *, max_tokens: int = 0
) -> NDArray[np.float64]:
    """Weight of every token of each rollout in the sum that is the loss.

    Args:
        lengths: [R] trained tokens of each rollout of the whole optimizer step. A rollout without any is left out of
            every denominator and gets weight 0.
        prompts: [R] int: which prompt each rollout answers; read by "prompt-mean" only.
        how: see `LOSS_AGG_MODES`.
        max_tokens: L_max of "seq-mean-token-sum-norm".

    Returns:
        [R] float64.

    >>> token_weights([2, 8], [0, 0], "seq-mean-token-mean").tolist()
    [0.25, 0.0625]
    >>> token_weights([2, 8], [0, 0], "seq-mean-token-sum-norm", max_tokens=10).tolist()
    [0.05, 0.05]
    """
    count = np.asarray(lengths, dtype=np.int64)
    owner = np.asarray(prompts, dtype=np.int64)
    if count.ndim != 1 or count.shape != owner.shape:
        raise ValueError(f"lengths and prompts must both be [R], got shapes {count.shape} and {owner.shape}")
    if (count < 0).any():
        raise ValueError(f"lengths[{int(np.argmin(count))}] = {count.min()} is negative")
    used = count > 0
    rollouts = int(used.sum())
    if how == "seq-mean-token-mean":
        per_token = rollouts * count
    elif how == "token-mean":
        per_token = np.full_like(count, count.sum())
    elif how == "seq-mean-token-sum-norm":
        if max_tokens < 1:
            raise ValueError(
                f"max_tokens = {max_tokens}; 'seq-mean-token-sum-norm' needs the most tokens a rollout may have"
            )
        per_token = np.full_like(count, rollouts * max_tokens)
    elif how == "seq-mean-token-sum":
        per_token = np.full_like(count, rollouts)
    elif how == "prompt-mean":
        _, index = np.unique(owner, return_inverse=True)
        totals = np.bincount(index, weights=count, minlength=1).astype(np.int64)
        per_token = int((totals > 0).sum()) * totals[index]
    else:
        raise ValueError(f"how = {how!r} is unknown; expected one of {list(LOSS_AGG_MODES)}")
    return np.where(used, 1.0 / np.where(used, per_token, 1), 0.0)
