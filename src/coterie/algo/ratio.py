"""How much likelier is what was said under the policy now than when it was sampled: per token, or per rollout."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from coterie.algo.segments import segment_mean

LIMIT = 20.0
"""Log-ratios are clamped to ± this before exp, so that one token cannot overflow the batch."""

RatioLevel = Literal["token", "sequence", "sequence_token"]

RATIOS: dict[str, tuple[str, str]] = {
    "token": ("ρ_t = π_θ(y_t) / π_old(y_t)", "DeepSeekMath 2402.03300, eq. 3"),
    "sequence": ("s_i = exp(mean_t log ρ_t), with gradient through the mean", "GSPO 2507.18071, eq. 7"),
    "sequence_token": ("s_it = sg[s_i] · exp(lp_t - sg[lp_t])", "GSPO-token 2507.18071, eq. 14"),
}
"""level → (formula, source)."""


def log_ratio(logprobs: Tensor, others: Tensor) -> Tensor:
    """log π - log π_other, clamped to ±LIMIT; the gradient outside is zero."""
    return (logprobs - others).clamp(-LIMIT, LIMIT)


def importance_ratio(
    level: RatioLevel, log_ratios: Tensor, logprobs: Tensor, rollout: Tensor, counted: Tensor
) -> Tensor:
    """The ratio that the surrogate bounds; exactly 1 wherever the two policies agree.

    Args:
        level: see `RATIOS`.
        log_ratios: [N] from `log_ratio`, with gradient.
        logprobs: [N] log π_θ with gradient; read by "sequence_token" only.
        rollout: [N] int64 index of each token's rollout.
        counted: [N] bool: tokens that take part in their rollout's mean.

    Returns:
        [N] with gradient.

    Raises:
        ValueError: unknown level.

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
        held = torch.exp(segment_mean(log_ratios.detach(), rollout, counted))
        # The difference is exactly 0 in value and has the gradient of the token's own log-probability.
        return held * torch.exp(logprobs - logprobs.detach())
    raise ValueError(f"ratio = {level!r} is unknown; expected one of {list(RATIOS)}")
