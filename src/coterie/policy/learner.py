"""The learner: scores packed batches and moves the policy along the gradient of the objective."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from coterie.algo.losses import LossInputs, LossOutputs, grpo_loss
from coterie.batches import Batch
from coterie.config.schema import ObjectiveConfig, OptimConfig
from coterie.errors import CheckpointError, ModelError, NonFiniteError
from coterie.policy.activations import arrange, saving
from coterie.policy.compile import compile_layers
from coterie.policy.fitting import Fitting
from coterie.policy.kernel import choose_kernel, packed_layout, pad_row
from coterie.policy.logprobs import chunked_logprobs
from coterie.policy.metrics import TokenMetrics
from coterie.policy.model import Policy
from coterie.policy.optim import MasterAdamW, learning_rate

STATE_FILE = "optimizer.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateReport:
    """What one update did."""

    metrics: dict[str, float]
    logprobs: dict[str, np.ndarray]
    """rollout id → [N] the learner's log-probs of its trained tokens before the first optimizer step."""
    skipped: int
    """Optimizer steps not taken because the gradient was not finite."""
    splits: int = 0
    """How often a packed batch was cut in two because memory was refused."""


class Learner:
    """Owns the weights and the optimizer.

    Args:
        policy: trained in place.
        reference: frozen copy for the KL; None uses the policy with its adapters off (LoRA), or no KL at all.
        temperature: of the sampler; the learner divides the logits by it too.
        total_steps: optimizer steps of the whole run, for the schedule.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        optim: OptimConfig,
        objective: ObjectiveConfig,
        temperature: float,
        total_steps: int,
        reference: Policy | None = None,
    ) -> None:
        self.policy = policy
        self.reference = reference
        self.config = optim
        self.objective = objective
        self.temperature = temperature
        self.total_steps = total_steps
        self.steps_taken = 0
        self.skipped_in_a_row = 0
        parameters = policy.parameters()
        if not parameters:
            raise ModelError(
                f"{policy.name} is a finished adapter and has nothing to train; name its base model, with model.lora "
                "for a new adapter"
            )
        arrange(policy.model, policy.device, optim)
        self.kernel = choose_kernel(policy, optim.attention)
        if optim.compile_layers:
            compile_layers(policy)
        self.optimizer = MasterAdamW(parameters, optim)
        self.fitting, self.scoring = Fitting(), Fitting()  # a pass without gradient fits where one with does not

    def update(self, minibatches: Sequence[Sequence[Batch]]) -> UpdateReport:
        """One optimizer step per minibatch, each the sum over its packed batches.

        With a single minibatch the policy that sampled is the policy that learns, so the ratio is exactly 1 and no
        scoring pass is made; with more, old log-probs are scored before the first step.

        Raises:
            NonFiniteError: more than `optim.max_skipped` gradients in a row were not finite.
        """
        metrics = TokenMetrics()
        before_splits = self.fitting.splits + self.scoring.splits
        logprobs: dict[str, np.ndarray] = {}
        old: dict[int, Tensor] = {}
        if len(minibatches) > 1:
            distinct = {id(batch): batch for minibatch in minibatches for batch in minibatch}
            old = {key: self.score(batch) for key, batch in distinct.items()}
        rates, norms, skipped = [], [], 0
        for minibatch in minibatches:
            for batch in minibatch:
                before = self._backward(batch, old.get(id(batch)), metrics)
                for rollout_id, (start, end) in batch.spans.items():
                    logprobs.setdefault(rollout_id, before[start:end].numpy(force=True))
            rate, norm = self._step()
            rates.append(rate)
            norms.append(norm)
            skipped += not math.isfinite(norm)
        report = metrics.summary() | {"lr": rates[-1] if rates else 0.0}
        finite = [norm for norm in norms if math.isfinite(norm)]
        if finite:
            report["grad_norm"] = sum(finite) / len(finite)
        splits = self.fitting.splits + self.scoring.splits - before_splits
        return UpdateReport(metrics=report, logprobs=logprobs, skipped=skipped, splits=splits)

    def _step(self) -> tuple[float, float]:
        """One optimizer step, refused when the gradient is not finite."""
        self.steps_taken += 1
        rate = learning_rate(self.config, self.steps_taken, self.total_steps)
        norm = self.optimizer.step(rate)
        self.skipped_in_a_row = 0 if math.isfinite(norm) else self.skipped_in_a_row + 1
        if self.skipped_in_a_row > self.config.max_skipped:
            raise NonFiniteError(
                f"the gradient norm was {norm} for {self.skipped_in_a_row} optimizer steps in a row (allowed: "
                f"optim.max_skipped = {self.config.max_skipped}); the weights are still those before; lower optim.lr"
            )
        return rate, norm

    def _backward(self, batch: Batch, old: Tensor | None, metrics: TokenMetrics) -> Tensor:
        """Add this batch's part of the gradient, cut where memory asks for it; returns the detached log-probs [N]."""

        def attempt(part: Batch, done: set[str]) -> tuple[LossOutputs, LossInputs, Tensor, Batch]:
            start = batch.spans[next(iter(part.spans))][0]
            known = None if old is None else old[start : start + len(part.targets)]
            return *self._backward_part(part, known, done), part

        parts = self.fitting.run(batch, attempt)
        for outputs, inputs, entropy, part in parts:
            metrics.add(outputs, inputs, entropy, self._tensor(part.sampler_logprobs, inputs.old_logprobs))
        return torch.cat([inputs.old_logprobs for _, inputs, _, _ in parts])

    def _backward_part(
        self, batch: Batch, old: Tensor | None, done: set[str]
    ) -> tuple[LossOutputs, LossInputs, Tensor]:
        """One forward and backward pass; `done` names parameters whose gradient is not to be added any more."""
        with saving(self.policy.model.parameters(), self.config):
            logprobs, entropy = self._logprobs(self.policy, batch, entropy=True)
        held = logprobs.detach()
        inputs = LossInputs(
            logprobs=logprobs,
            old_logprobs=held if old is None else old,
            reference_logprobs=self._reference_logprobs(batch) if self.objective.kl_beta > 0 else None,
            advantages=self._tensor(batch.advantages, held),
            clip_low=self._tensor(batch.clip_low, held),
            clip_high=self._tensor(batch.clip_high, held),
            weights=self._tensor(batch.weights, held),
        )
        outputs: LossOutputs = grpo_loss(inputs, kl_beta=self.objective.kl_beta)
        with self.optimizer.gradients.attempt(done):
            outputs.loss.backward()
        return outputs, inputs, entropy

    def gradient(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """The gradient of the objective over these batches by parameter name, without a step."""
        for batch in batches:
            self._backward(batch, None, TokenMetrics())
        return self.optimizer.take_gradients()

    @torch.no_grad()
    def score(self, batch: Batch) -> Tensor:
        """[N] log-probs of the trained tokens under the present weights."""
        parts = self.scoring.run(batch, lambda part, _: self._logprobs(self.policy, part, entropy=False)[0])
        return torch.cat(parts)

    @torch.no_grad()
    def _reference_logprobs(self, batch: Batch) -> Tensor:
        if self.reference is not None:
            return self._logprobs(self.reference, batch, entropy=False)[0]
        with self.policy.without_adapters():
            return self._logprobs(self.policy, batch, entropy=False)[0]

    def _logprobs(self, policy: Policy, batch: Batch, *, entropy: bool) -> tuple[Tensor, Tensor]:
        device = policy.device
        layout = packed_layout(batch.segments, device, self.kernel)
        tokens = torch.from_numpy(batch.tokens).to(device)[None]
        positions = torch.from_numpy(batch.positions).to(device)[None]
        hidden = policy.hidden(*pad_row(tokens, positions, layout), layout)[0]
        states = hidden.index_select(0, torch.from_numpy(batch.sources).to(device))
        targets = torch.from_numpy(batch.targets).to(device)
        head = policy.head
        return chunked_logprobs(states, head.weight, head.bias, targets, temperature=self.temperature, entropy=entropy)

    @staticmethod
    def _tensor(values: np.ndarray, like: Tensor) -> Tensor:
        return torch.from_numpy(values).to(device=like.device, dtype=like.dtype)

    def save(self, folder: Path) -> None:
        """Write the optimizer and its masters into `folder`."""
        save_file(
            {name: tensor.contiguous() for name, tensor in self.optimizer.state().items()},
            folder / STATE_FILE,
        )

    def counters(self) -> dict[str, int]:
        """The part of the state that is not tensors, for the checkpoint's JSON."""
        return {
            "steps_taken": self.steps_taken,
            "skipped_in_a_row": self.skipped_in_a_row,
            "row_limit": self.fitting.limit or 0,
        }

    def load(self, folder: Path, counters: Mapping[str, int]) -> None:
        """Restore what `save` wrote.

        Raises:
            CheckpointError: the file does not open or belongs to another model.
        """
        try:
            tensors = load_file(folder / STATE_FILE)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot read {folder / STATE_FILE}: {error}") from error
        self.optimizer.load(tensors)
        self.steps_taken = counters["steps_taken"]
        self.skipped_in_a_row = counters["skipped_in_a_row"]
        self.fitting.limit = counters.get("row_limit") or self.fitting.limit
