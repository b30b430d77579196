"""Sums over the tokens of a rollout, and importance ratios."""

from __future__ import annotations

import torch
from torch import Tensor

# Sums over the tokens of each rollout, handed back to the tokens: [N] in, [N] out, no loop over rollouts.
#
# `rollout` [N] int64 is the index of the rollout that a token belongs to. Indices lie below N (a rollout with a token
# takes up at least that token), so N rows always suffice and no size has to be read back from the device.


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
    """[N] bool: any token of the same rollout has its flag (bool [N]) set."""
    return segment_sum(flags.to(torch.int64), rollout) > 0


# Importance ratios between the current and the old policy, per token or per rollout.

LIMIT = 20.0
"""Log-ratios are clamped to ± this before exp, so that one token cannot overflow the batch."""


RATIOS: dict[str, tuple[str, str]] = {
    "token": ("ρ_t = π_θ(y_t) / π_old(y_t)", "DeepSeekMath 2402.03300, eq. 3"),
    "sequence": ("s_i = exp(mean_t log ρ_t), with gradient through the mean", "GSPO 2507.18071, eq. 7"),
    "sequence_token": ("s_it = sg[s_i] · exp(lp_t - sg[lp_t])", "GSPO-token 2507.18071, eq. 14"),
}
"""level → (formula, source)."""


def log_ratio(logprobs: Tensor, others: Tensor) -> Tensor:
    """log π - log π_other, clamped to ±LIMIT; the gradient outside is zero."""
    return (logprobs - others).clamp(-LIMIT, LIMIT)


def importance_ratio(level: str, log_ratios: Tensor, logprobs: Tensor, rollout: Tensor, counted: Tensor) -> Tensor:
    """The ratio that the surrogate bounds; exactly 1 wherever the two policies agree.

    Args:
        level: see `RATIOS`.
        log_ratios: [N] from `log_ratio`, with gradient.
        logprobs: [N] log π_θ with gradient; read by "sequence_token" only.
        rollout: [N] int64 index of each token's rollout.
        counted: [N] bool: tokens that take part in their rollout's mean.

    Returns:
        [N] with gradient.

    >>> logs = torch.tensor([0.3, -0.1, 0.2])
    >>> same, every = torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.bool)
    >>> importance_ratio("sequence", logs, logs, same, every)
    tensor([1.1426, 1.1426, 1.1426])
    """
    if level == "token":
        return torch.exp(log_ratios)
    if level == "sequence":
        return torch.exp(segment_mean(log_ratios, rollout, counted))
    if level == "sequence_token":
        sequence_ratio = torch.exp(segment_mean(log_ratios.detach(), rollout, counted))
        # The difference is exactly 0 in value and has the gradient of the token's own log-probability.
        return sequence_ratio * torch.exp(logprobs - logprobs.detach())
    raise ValueError(f"ratio = {level!r} is unknown; expected one of {list(RATIOS)}")
