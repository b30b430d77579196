"""Forward passes over packed batches: log-probs of policy and reference, values of the critic, inputs of the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
from coterie.policy.logprobs import OutputFlags, TokenOutputs, chunked_scores, hidden_states_at
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

    def forward(self, policy: Policy, batch: Batch, flags: OutputFlags) -> tuple[Tensor, TokenOutputs]:
        """Hidden states [N, D] that predict the trained tokens, and the head's outputs for them."""
        states = hidden_states_at(policy, batch, self.kernel)
        targets = torch.from_numpy(batch.targets).to(policy.device)
        head = policy.head
        outputs = chunked_scores(
            states,
            head.weight,
            head.bias,
            targets,
            temperature=self.temperature,
            flags=flags,
            transform=head.transform,
        )
        if not torch.is_grad_enabled():
            policy.runner.settle()
        return states, outputs

    @torch.no_grad()
    def reference_logprobs(self, batch: Batch) -> Tensor:
        """[N] log π_ref of the trained tokens."""
        if self.reference is None:
            raise ModelError("objective.kl_beta > 0 needs a reference policy, and this learner has none")
        if self.reference.copy is not None:
            return self.forward(self.reference.copy, batch, OutputFlags())[1].logprobs
        with self.policy.without_adapters():
            return self.forward(self.policy, batch, OutputFlags())[1].logprobs

    @torch.no_grad()
    def score(self, batch: Batch, *, entropy: bool, with_reference: bool = True) -> dict[str, RolloutScores]:
        """Scores of each rollout's tokens by the policy, and, with `with_reference`, by reference and critic if any."""
        states, outputs = self.forward(self.policy, batch, OutputFlags(entropy=entropy))
        columns = {
            "logprobs": outputs.logprobs,
            "reference": None if self.reference is None or not with_reference else self.reference_logprobs(batch),
            "entropy": outputs.entropies if entropy else None,
            "values": None if self.critic is None or not with_reference else self.critic.values(batch, states),
        }
        arrays = {name: widened(tensor).numpy(force=True) for name, tensor in columns.items() if tensor is not None}
        return {
            name: RolloutScores(**{column: values[low:high] for column, values in arrays.items()})
            for name, (low, high) in batch.spans.items()
        }


Scores = Mapping[str, RolloutScores]
"""rollout id → scores of its tokens before the update."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UpdateContext:
    """Scores and constants of one optimizer step, known before its forward passes."""

    scores: Scores | None = None
    moved: bool = False
    """The policy has changed since the scores were taken. Until then its own log-probs are the old ones, so that the
    first ratio is exactly 1, whatever another pass's rounding is."""
    threshold: float = -math.inf
    """Entropy that a token needs for its policy term to count."""
    tokens: int = 0
    """Trained tokens of the whole optimizer step: an entropy bonus is for their mean."""
    covariant: Mapping[str, np.ndarray] | None = None
    """rollout id → [n] bool: its tokens that clip_cov or kl_cov chose; None = none."""
    bypass: bool = False
    """The sampler's log-probs are the old ones; see `RolloutCorrectionConfig.bypass_mode`."""
    lacks_reference: bool = False
    """The objective has a KL, and the scores of some rollouts lack the reference's log-probs."""


def loss_inputs(batch: Batch, outputs: TokenOutputs, context: UpdateContext, reference: Tensor | None) -> LossInputs:
    """The inputs of the objective, [N] each, on the device and in the format of `outputs`.

    Args:
        reference: [N] the reference's log-probs where the scores lack them; None leaves them out.
    """
    logprobs, scores = outputs.logprobs.detach(), context.scores
    sampler = _tensor(batch.sampler_logprobs, logprobs)
    old, reference_logprobs = sampler if context.bypass else logprobs, reference
    if scores is not None and context.moved and not context.bypass:
        old = _score_column(batch, scores, "logprobs", logprobs)
    if scores is not None and has_reference(batch, scores):
        # Measured even where the KL is in the reward.
        reference_logprobs = _score_column(batch, scores, "reference", logprobs)
    if batch.replayed.any():
        old = torch.where(torch.from_numpy(batch.replayed).to(logprobs.device), sampler, old)
    return LossInputs(
        logprobs=outputs.logprobs,
        old_logprobs=old,
        sampler_logprobs=sampler,
        reference_logprobs=reference_logprobs,
        advantages=_tensor(batch.advantages, logprobs),
        clip_low=_tensor(batch.clip_low, logprobs),
        clip_high=_tensor(batch.clip_high, logprobs),
        weights=_tensor(batch.weights, logprobs),
        rollout=torch.from_numpy(batch.rollout).to(logprobs.device),
        entropy=outputs.entropies,
        policy_mask=_policy_mask(batch, context, logprobs),
        covariant=_covariant(batch, context, logprobs),
        entropy_weights=torch.full_like(logprobs, 1 / context.tokens) if context.tokens else None,
    )


def has_reference(batch: Batch, scores: Scores) -> bool:
    """True if the scores have the reference's log-probs of all rollouts of a row."""
    return all(scores[name].reference is not None for name in batch.spans)


def _policy_mask(batch: Batch, context: UpdateContext, like: Tensor) -> Tensor | None:
    """[N] bool: tokens whose policy term counts; None = all."""
    if context.scores is None or context.threshold == -math.inf:
        return None
    return top_entropy_mask(_score_column(batch, context.scores, "entropy", like), context.threshold)


def _covariant(batch: Batch, context: UpdateContext, like: Tensor) -> Tensor | None:
    """[N] bool: tokens chosen by their covariance; None = none."""
    if context.covariant is None:
        return None
    chosen = np.concatenate([context.covariant[rollout] for rollout in batch.spans])
    return torch.from_numpy(chosen).to(like.device)


def _tensor(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(like.dtype).to(like.device)


def _score_column(batch: Batch, scores: Scores, name: str, like: Tensor) -> Tensor:
    """[N] one column of the scores in the order of the batch's tokens."""
    return _tensor(np.concatenate([getattr(scores[rollout], name) for rollout in batch.spans]), like)
