"""Packed batches through the policy and its companions: log-probs, reference log-probs, values."""

from __future__ import annotations

import torch
from torch import Tensor

from coterie.algo.precision import widened
from coterie.batches.batch import Batch
from coterie.errors import ModelError
from coterie.policy.critic import Critic
from coterie.policy.kernel import Kernel
from coterie.policy.logprobs import TokenScores, Wanted, chunked_scores
from coterie.policy.model import Policy
from coterie.policy.reference import Reference
from coterie.policy.states import predicting_states
from coterie.types import RolloutScores


class Passes:
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
        states = predicting_states(policy, batch, self.kernel)
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
    def score(
        self, batch: Batch, *, entropy: bool, score_norm: bool = False, companions: bool = True
    ) -> dict[str, RolloutScores]:
        """What is said of each rollout's tokens by the policy, and, unless `companions` is False, by reference and
        critic where there are any."""
        states, said = self.forward(self.policy, batch, Wanted(entropy=entropy, score_norm=score_norm))
        columns = {
            "logprobs": said.logprobs,
            "reference": None if self.reference is None or not companions else self.reference_logprobs(batch),
            "entropy": said.entropies if entropy else None,
            "score_norms": said.score_norms if score_norm else None,
            "values": None if self.critic is None or not companions else self.critic.values(batch, states),
        }
        arrays = {name: widened(one).numpy(force=True) for name, one in columns.items() if one is not None}
        return {
            name: RolloutScores(**{column: values[low:high] for column, values in arrays.items()})
            for name, (low, high) in batch.spans.items()
        }
