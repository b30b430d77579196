"""What the objective needs to know of each trained token: from the batch, this pass, and scores of before."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from coterie.algo.entropy import top_entropy_mask
from coterie.algo.losses import LossInputs
from coterie.batches.batch import Batch
from coterie.policy.logprobs import TokenScores
from coterie.types import RolloutScores

Scores = Mapping[str, RolloutScores]
"""rollout id → what was said of its tokens before the update."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Known:
    """What is known of the tokens of one optimizer step before its passes."""

    scores: Scores | None = None
    moved: bool = False
    """The policy has changed since the scores were taken. Until then its own log-probs are the old ones, so that the
    first ratio is exactly 1, whatever another pass's rounding is."""
    threshold: float = -math.inf
    """Entropy that a token needs for its policy term to count."""
    tokens: int = 0
    """Trained tokens of the whole optimizer step: an entropy bonus is for their mean."""


def loss_inputs(
    batch: Batch, said: TokenScores, known: Known, reference: Callable[[Batch], Tensor] | None
) -> LossInputs:
    """The columns of the objective, [N] each, on the device and in the format of `said`.

    Args:
        reference: asked for the reference's log-probs where the scores do not have them; None asks nobody.
    """
    held, scores = said.logprobs.detach(), known.scores
    old, asked = held, None
    if scores is not None and known.moved:
        old = _gathered(batch, scores, "logprobs", held)
    if scores is not None and all(scores[name].reference is not None for name in batch.spans):
        asked = _gathered(batch, scores, "reference", held)  # measured even where the KL is in the reward
    elif reference is not None:
        asked = reference(batch)
    sampler = _tensor(batch.sampler_logprobs, held)
    if batch.replayed.any():
        old = torch.where(torch.from_numpy(batch.replayed).to(held.device), sampler, old)
    return LossInputs(
        logprobs=said.logprobs,
        old_logprobs=old,
        sampler_logprobs=sampler,
        reference_logprobs=asked,
        advantages=_tensor(batch.advantages, held),
        clip_low=_tensor(batch.clip_low, held),
        clip_high=_tensor(batch.clip_high, held),
        weights=_tensor(batch.weights, held),
        rollout=torch.from_numpy(batch.rollout).to(held.device),
        entropy=said.entropies,
        policy_mask=_important(batch, known, held),
        entropy_weights=torch.full_like(held, 1 / known.tokens) if known.tokens else None,
    )


def _important(batch: Batch, known: Known, like: Tensor) -> Tensor | None:
    """[N] bool: tokens whose policy term counts; None = all."""
    if known.scores is None or known.threshold == -math.inf:
        return None
    return top_entropy_mask(_gathered(batch, known.scores, "entropy", like), known.threshold)


def _tensor(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(like.dtype).to(like.device)


def _gathered(batch: Batch, scores: Scores, name: str, like: Tensor) -> Tensor:
    """[N] one column of the scores in the order of the batch's tokens."""
    return _tensor(np.concatenate([getattr(scores[rollout], name) for rollout in batch.spans]), like)
