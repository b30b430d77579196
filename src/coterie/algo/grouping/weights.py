"""What a rollout counts for: a stand-in for the squared length of its score, from what the sampler said already."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def probability_weight(logprobs: Sequence[float]) -> float:
    """Σ_t (1 - p_t)² over the sampled tokens; `logprobs` [C] are log p_t, at most 0.

    A token's score with respect to the logits is onehot - π, and ‖onehot - π‖² = (1 - p)² + Σ_others π² lies between
    (1 - p)² and 2 (1 - p)². So this is the squared score norm up to a factor of two, for free: a token that could not
    have been another one counts nothing, however long the answer.

    >>> probability_weight([0.0, float(np.log(0.5))])
    0.25
    """
    return float(np.square(np.expm1(np.asarray(logprobs, dtype=np.float64))).sum())
