"""Critic for PPO: the value of each trained token, read from the hidden state that predicts it."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from coterie.algo.sampling import at_least_float32, widened
from coterie.algo.value_losses import binary_value_loss, explained_variance, squared_value_loss
from coterie.batches.batch import Batch
from coterie.config.objective import CriticConfig
from coterie.config.optim import OptimConfig
from coterie.policy.activations import arrange, saving
from coterie.policy.kernels import choose_kernel
from coterie.policy.logprobs import hidden_states_at
from coterie.policy.model import Policy
from coterie.policy.optim import MasterAdamW, learning_rate

FILE = "critic.safetensors"


class Critic:
    """A linear value head on the hidden states of the policy, or of a decoder of its own.

    It starts at zero, so that the first advantages are the rewards themselves.

    Args:
        policy: whose hidden states are read.
        trunk: a decoder of its own (`kind = "model"`); None shares the policy's and trains it too.
        total_steps: optimizer steps of the whole run, for the schedule.
    """

    def __init__(
        self, policy: Policy, trunk: Policy | None, *, config: CriticConfig, optim: OptimConfig, total_steps: int
    ) -> None:
        self.config = config
        self.trunk = trunk
        self.total_steps = total_steps
        self.optim = optim.model_copy(update={"lr": config.lr})
        exact = at_least_float32(policy.dtype)
        self.head = nn.Linear(policy.head.in_features, 1, dtype=exact, device=policy.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        parameters = {f"critic/head.{name}": parameter for name, parameter in self.head.named_parameters()}
        if trunk is not None:
            if trunk.head.weight is not trunk.model.get_input_embeddings().weight:
                trunk.head.requires_grad_(False)  # the decoder's states are read before it
            arrange(trunk.model, trunk.device, optim)
            self.kernel = choose_kernel(trunk, optim.attention)
            parameters |= {f"critic/{name}": parameter for name, parameter in trunk.parameters().items()}
        self.optimizer = MasterAdamW(parameters, self.optim)

    def values(self, batch: Batch, states: Tensor) -> Tensor:
        """[N] the value before each trained token; with `bounded`, a probability.

        Args:
            batch: the packed row.
            states: [N, D] the policy's hidden states that predict the trained tokens.
        """
        logits = self._logits(batch, states)
        return torch.sigmoid(logits) if self.config.bounded else logits

    def loss(self, batch: Batch, states: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The value loss of this part, weighted and summed, and the values [N], detached."""
        logits = self._logits(batch, states)
        values = torch.sigmoid(logits) if self.config.bounded else logits
        if batch.returns is None or batch.values is None:
            return logits.sum() * 0.0, values.detach()  # a pre-flight pass has no targets
        targets = torch.from_numpy(batch.returns).to(values.dtype).to(values.device)
        old = torch.from_numpy(batch.values).to(values.dtype).to(values.device)
        if self.config.bounded:
            value_loss = binary_value_loss(logits, targets, weights.to(values))
        else:
            value_loss = squared_value_loss(values, targets, weights.to(values), old_values=old, clip=self.config.clip)
        return self.config.coefficient * value_loss.loss, values.detach()

    def _logits(self, batch: Batch, states: Tensor) -> Tensor:
        if self.trunk is not None:
            with saving(self.trunk.model.parameters(), self.optim):
                states = hidden_states_at(self.trunk, batch, self.kernel)
            if not torch.is_grad_enabled():
                self.trunk.runner.settle()
        return self.head(states.to(self.head.weight.dtype))[:, 0]

    def step(self, count: int, norm: float) -> None:
        """Optimizer step `count` (from 1) along a gradient of this norm."""
        self.optimizer.step(learning_rate(self.optim, count, self.total_steps), norm)


class ValueMetrics:
    """Statistics of the critic's predictions over the packed batches of one update."""

    def __init__(self) -> None:
        self.returns: list[np.ndarray] = []
        self.values: list[np.ndarray] = []
        self.loss = 0.0

    def add(self, batch: Batch, values: Tensor, loss: Tensor) -> None:
        """Add one part; `values` [N] are those before the step."""
        if batch.returns is None:
            return
        self.returns.append(batch.returns)
        self.values.append(widened(values).numpy(force=True))
        self.loss += float(loss.detach())

    def merge(self, other: ValueMetrics) -> None:
        """Add the statistics of other parts of the same update."""
        self.returns += other.returns
        self.values += other.values
        self.loss += other.loss

    def summary(self) -> dict[str, float]:
        """Mean value, loss, and explained variance where the targets vary; empty without a critic."""
        if not self.returns:
            return {}
        returns, values = np.concatenate(self.returns), np.concatenate(self.values)
        metrics = {"critic/value": float(values.mean()), "critic/loss": self.loss}
        if returns.var() > 1e-12:
            metrics["critic/explained_variance"] = explained_variance(returns, values)
        return {name: value for name, value in metrics.items() if math.isfinite(value)}
