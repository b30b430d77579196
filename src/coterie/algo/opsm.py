"""Off-policy sequence masking: rollouts that went wrong, and that the policy no longer produces, teach nothing."""

from __future__ import annotations

from torch import Tensor

from coterie.algo.ratio import log_ratio
from coterie.algo.segments import segment_mean


def off_policy_keep(
    logprobs: Tensor, sampler_logprobs: Tensor, advantages: Tensor, rollout: Tensor, counted: Tensor, delta: float
) -> Tensor:
    """Tokens to keep: not those with A < 0 in a rollout with mean_t(log π_sampler - log π_θ) > δ (DeepSeek-V3.2).

    The distance is measured from the sampler, so it holds both the steps since and the sampler's other numerics (as in
    TRL and slime). TRL suggests δ = 0.5, slime 1e-4: choose from the logged values.

    Args:
        logprobs: [N], not differentiated.
        sampler_logprobs: [N].
        advantages: [N].
        rollout: [N] int64 index of each token's rollout.
        counted: [N] bool: tokens that take part in the mean.
        delta: nats per token.

    Returns:
        [N] bool.
    """
    distance = segment_mean(log_ratio(sampler_logprobs, logprobs.detach()), rollout, counted)
    return (advantages >= 0) | (distance <= delta)
