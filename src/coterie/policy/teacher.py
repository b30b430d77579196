"""The teacher of on-policy distillation: a frozen model that scores the tokens that the student sampled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coterie.batches.batch import Batch
from coterie.batches.pack import plan_scoring
from coterie.config.optim import OptimConfig
from coterie.errors import DataError, ModelError
from coterie.policy.activations import OomSplitter
from coterie.policy.forward import ForwardPass
from coterie.policy.kernels import choose_kernel
from coterie.policy.model import Policy
from coterie.types import Rollout


class Teacher:
    """A frozen model in packed forward passes.

    Args:
        policy: its weights; frozen here.
        temperature: of the student's sampler: both distributions are compared at it.
        optim: attention kernel and the most tokens of a packed row.
    """

    def __init__(self, policy: Policy, *, temperature: float, optim: OptimConfig) -> None:
        policy.model.requires_grad_(False)
        self.policy = policy
        self.optim = optim
        kernel = choose_kernel(policy, optim.attention)
        self.passes = ForwardPass(policy, kernel, temperature=temperature, reference=None, critic=None)
        self.fitting = OomSplitter()

    @property
    def bytes(self) -> int:
        """Memory of its weights."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.policy.model.parameters())

    def require_room(self, longest: int) -> None:
        """Refuse episodes of more tokens than its context.

        Raises:
            DataError: names the settings.
        """
        if longest > self.policy.context:
            raise DataError(
                f"an episode may have {longest} tokens, more than the context of {self.policy.context} of the teacher "
                f"{self.policy.name}; lower sampling.max_tokens or data.max_prompt_tokens"
            )

    def __call__(self, rollouts: Sequence[Rollout]) -> dict[str, np.ndarray]:
        """[C] log-probs of each rollout's sampled tokens, by its id; one without tokens has none.

        Raises:
            ModelError: the student sampled a token that the teacher has no logit of.
        """
        scores: dict[str, np.ndarray] = {}
        for batch in plan_scoring(rollouts, max_tokens_per_microbatch=self.optim.max_tokens_per_microbatch):
            for part in self.fitting.run(batch, lambda cut, _: self._score(cut)):
                scores |= part
        return scores

    def _score(self, batch: Batch) -> dict[str, np.ndarray]:
        logits, largest = self.policy.head.weight.shape[0], int(batch.targets.max())
        if largest >= logits:
            raise ModelError(
                f"the student sampled token {largest}, and the teacher {self.policy.name} has logits of {logits} "
                "tokens; take a teacher whose vocabulary is at least as large"
            )
        return {name: scored.logprobs for name, scored in self.passes.score(batch, entropy=False).items()}
