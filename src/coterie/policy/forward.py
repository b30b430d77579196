"""Packed batches through the policy and its companions: log-probs, reference log-probs, values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from coterie.algo.entropy import top_entropy_mask
from coterie.algo.losses import LossInputs
from coterie.algo.sampling import widened
from coterie.batches.batch import Batch
from coterie.errors import ModelError
from coterie.policy.critic import Critic
from coterie.policy.kernels import Kernel
from coterie.policy.logprobs import TokenScores, Wanted, chunked_scores, hidden_states_at
from coterie.policy.model import Policy
from coterie.policy.reference import Reference
from coterie.types import RolloutScores


class ForwardPass:
    """Forward passes over packed rows.

    Args:
        kernel: of the attention; see `choose_kernel`.
        temperature: of the sampler; the logits are divided by it.
    """

    def __init__(
        self, policy: Policy, kernel: Kernel, *, temperature: float, reference: Reference | None, critic: Critic | None
    ) -> None:
        self.policy = policy
        self.kernel: Kernel = kernel
        self.temperature = temperature
        self.reference = reference
        self.critic = critic

    def forward(self, policy: Policy, batch: Batch, wanted: Wanted) -> tuple[Tensor, TokenScores]:
        """Hidden states [N, D] before the trained tokens, and what the head says of those."""
        states = hidden_states_at(policy, batch, self.kernel)
        targets = torch.from_numpy(batch.targets).to(policy.device)
        head = policy.head
        said = chunked_scores(
            states,
            head.weight,
            head.bias,
            targets,
            temperature=self.temperature,
            wanted=wanted,
            transform=head.transform,
        )
        return states, said

    @torch.no_grad()
    def reference_logprobs(self, batch: Batch) -> Tensor:
        """[N] log π_ref of the trained tokens.

        Raises:
            ModelError: there is no reference.
        """
        if self.reference is None:
            raise ModelError("objective.kl_beta > 0 needs a reference policy, and this learner has none")
        if self.reference.copy is not None:
            return self.forward(self.reference.copy, batch, Wanted())[1].logprobs
        with self.policy.without_adapters():
            return self.forward(self.policy, batch, Wanted())[1].logprobs

    @torch.no_grad()
    def score(self, batch: Batch, *, entropy: bool, with_reference: bool = True) -> dict[str, RolloutScores]:
        """Scores of each rollout's tokens by the policy, and, with `with_reference`, by reference and critic if any."""
        states, said = self.forward(self.policy, batch, Wanted(entropy=entropy))
        columns = {
            "logprobs": said.logprobs,
            "reference": None if self.reference is None or not with_reference else self.reference_logprobs(batch),
            "entropy": said.entropies if entropy else None,
            "values": None if self.critic is None or not with_reference else self.critic.values(batch, states),
        }
        arrays = {name: widened(one).numpy(force=True) for name, one in columns.items() if one is not None}
        return {
            name: RolloutScores(**{column: values[low:high] for column, values in arrays.items()})
            for name, (low, high) in batch.spans.items()
        }


# What the objective needs to know of each trained token: from the batch, this pass, and scores of before.

Scores = Mapping[str, RolloutScores]
"""rollout id → what was said of its tokens before the update."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UpdateContext:
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
    batch: Batch, said: TokenScores, known: UpdateContext, reference: Callable[[Batch], Tensor] | None
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


def _important(batch: Batch, known: UpdateContext, like: Tensor) -> Tensor | None:
    """[N] bool: tokens whose policy term counts; None = all."""
    if known.scores is None or known.threshold == -math.inf:
        return None
    return top_entropy_mask(_gathered(batch, known.scores, "entropy", like), known.threshold)


def _tensor(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(like.dtype).to(like.device)


def _gathered(batch: Batch, scores: Scores, name: str, like: Tensor) -> Tensor:
    """[N] one column of the scores in the order of the batch's tokens."""
    return _tensor(np.concatenate([getattr(scores[rollout], name) for rollout in batch.spans]), like)
