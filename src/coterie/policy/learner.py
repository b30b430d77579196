"""The learner: scores packed batches and moves the policy along the gradient of the objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from coterie.algo.entropy import COVARIANCE_LOSSES, covariant_tokens, token_covariances, top_entropy_threshold
from coterie.algo.losses import policy_loss
from coterie.algo.objective import Objective
from coterie.batches.batch import Batch
from coterie.config.optim import OptimConfig
from coterie.errors import NonFiniteError
from coterie.phases import PHASES
from coterie.policy.activations import OomSplitter, WholeRows, arrange, saving
from coterie.policy.critic import FILE as CRITIC_FILE
from coterie.policy.critic import Critic
from coterie.policy.forward import ForwardPass, Scores, UpdateContext, has_reference, loss_inputs
from coterie.policy.gradients import GradientSum
from coterie.policy.kernels import choose_kernel, compile_layers
from coterie.policy.logprobs import OutputFlags
from coterie.policy.model import Policy
from coterie.policy.optim import MasterAdamW, learning_rate
from coterie.policy.ranks import Ranks
from coterie.policy.reference import FILE as REFERENCE_FILE
from coterie.policy.reference import Reference
from coterie.policy.sharding import Sharding
from coterie.policy.update_report import UpdatePass, UpdateReport, UpdateSums
from coterie.runs import state_files
from coterie.types import RolloutScores

STATE_FILE = "optimizer.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OptimizerStep:
    """Packed rows of one optimizer step, and what is known of the whole step before it."""

    batches: Sequence[Batch]
    context: UpdateContext


class Learner:
    """Owns the weights and the optimizer.

    Args:
        policy: trained in place.
        objective: of `gradient`, and of updates that are not handed another one.
        reference: for the KL; None when there is none.
        critic: for PPO; None for GRPO.
        temperature: of the sampler; the learner divides the logits by it too.
        total_steps: optimizer steps of the whole run, for the schedule.
        entropy_share: share of tokens, those of highest entropy in an optimizer step, whose policy term counts.
        warmup: optimizer steps in which only the critic learns.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        optim: OptimConfig,
        objective: Objective,
        temperature: float,
        total_steps: int,
        reference: Reference | None = None,
        critic: Critic | None = None,
        entropy_share: float = 1.0,
        warmup: int = 0,
    ) -> None:
        self.policy = policy
        self.reference = reference
        self.critic = critic
        self.config = optim
        self.objective = objective
        self.temperature = temperature
        self.total_steps = total_steps
        self.entropy_share = entropy_share
        self.warmup = warmup
        self.steps_taken = 0
        self.skipped_in_a_row = 0
        policy.require_trainable()
        parameters = policy.parameters()
        arrange(policy.model, policy.device, optim)
        kernel = choose_kernel(policy, optim.attention)
        if optim.compile_layers:
            compile_layers(policy)
        self.passes = ForwardPass(policy, kernel, temperature=temperature, reference=reference, critic=critic)
        self.optimizer = MasterAdamW(parameters, optim)
        # A pass without gradient fits where one with does not.
        self.fitting, self.scoring = OomSplitter(), OomSplitter()
        self.gather: Callable[[GradientSum], None] | None = None
        """Makes a gradient that of all ranks before an optimizer step; None where this process has all of it."""
        self.sharding: Sharding | None = None
        """The shards of policy, reference and critic; None where this process has whole weights."""

    def attach(self, ranks: Ranks, sharding: Sharding | None = None) -> None:
        """Take optimizer steps with other ranks from here on.

        Args:
            sharding: that has cut policy, reference and critic; None: every rank has whole weights.
        """
        self.gather, self.sharding = ranks.gather, sharding
        if sharding is not None:
            self.fitting, self.scoring = WholeRows(), WholeRows()
            for optimizer in [self.optimizer] + ([] if self.critic is None else [self.critic.optimizer]):
                optimizer.gradients.measure = sharding.norm

    def update(
        self,
        minibatches: Sequence[Sequence[Batch]],
        objective: Objective | None = None,
        scores: Scores | None = None,
    ) -> UpdateReport:
        """One optimizer step per minibatch, each the sum over its packed batches.

        With a single minibatch the policy that sampled is the policy that learns, so the ratio is exactly 1 and no
        scoring pass is made; with more, or where tokens are chosen by their entropy, the batches are scored before
        the first step, unless `scores` has it already, or the objective takes the sampler's log-probs instead
        (`bypass_mode`).

        The ratio of a replayed token is π_θ / π_sampler in every optimizer step: its old log-probs are those recorded
        when it was sampled, because the surrogate's expectation is over the policy that sampled. So what is clipped is
        how far the policy has moved since then, not since this update began, and a token that has moved beyond the
        bounds already stands still. Its mismatch weight π_old / π_sampler is exactly 1, whatever the correction: the
        ratio holds that factor. KL and entropy terms are as for any token.

        Args:
            minibatches: the packed rows of each optimizer step.
            objective: what is maximised; None takes the learner's own.
            scores: token scores of the rollouts from before the update, where they are known.

        Raises:
            NonFiniteError: more than `optim.max_skipped` gradients in a row were not finite.
        """
        objective = objective or self.objective
        before = self.splits
        return self.take(self.plan(minibatches, objective, scores), objective, before).report()

    @property
    def splits(self) -> int:
        """Number of packed batches cut in two so far, with a gradient and without."""
        return self.fitting.splits + self.scoring.splits

    def plan(
        self, minibatches: Sequence[Sequence[Batch]], objective: Objective, scores: Scores | None
    ) -> list[OptimizerStep]:
        """The optimizer steps of an update, with the scores that they need."""
        bypass = objective.correction.bypass_mode
        if scores is None and ((len(minibatches) > 1 and not bypass) or self.entropy_share < 1):
            distinct = {id(batch): batch for minibatch in minibatches for batch in minibatch}
            with PHASES.measure("score"):
                scores = self.score(list(distinct.values()))
        return [
            OptimizerStep(
                batches=minibatch,
                context=UpdateContext(
                    scores=scores,
                    moved=number > 0,
                    threshold=self._threshold(minibatch, scores),
                    # Drawn anew in each optimizer step.
                    covariant=self._covariant(minibatch, scores, objective, self.steps_taken + number),
                    tokens=sum(len(batch.targets) for batch in minibatch),
                    bypass=bypass,
                    lacks_reference=objective.kl_beta > 0 and _lacks_reference(minibatch, scores),
                ),
            )
            for number, minibatch in enumerate(minibatches)
        ]

    def take(self, steps: Sequence[OptimizerStep], objective: Objective, before: int | None = None) -> UpdateSums:
        """Take optimizer steps; `plan` has them.

        Args:
            before: `splits` at the start of the update, which may have scored batches for its plan; None: as now.

        Raises:
            NonFiniteError: more than `optim.max_skipped` gradients in a row were not finite.
        """
        sums, before = UpdateSums(), self.splits if before is None else before
        for step in steps:
            with PHASES.measure("gradient"):
                for batch in step.batches:
                    for part in self._backward(batch, step.context, objective):
                        sums.add(part, step.context)
            with PHASES.measure("optimizer"):
                rate, norm = self._step()
            sums.rates.append(rate)
            sums.norms.append(norm)
        sums.splits = self.splits - before
        return sums

    def _threshold(self, batches: Sequence[Batch], scores: Scores | None) -> float:
        """The entropy that a token of this optimizer step needs to count."""
        if self.entropy_share == 1 or scores is None:
            return -math.inf
        rollout_entropies = [scores[name].entropy for batch in batches for name in batch.spans]
        entropies = np.concatenate([entropy for entropy in rollout_entropies if entropy is not None] or [np.zeros(0)])
        return top_entropy_threshold(torch.from_numpy(entropies), self.entropy_share)

    def _covariant(
        self, batches: Sequence[Batch], scores: Scores | None, objective: Objective, number: int = 0
    ) -> dict[str, np.ndarray] | None:
        """rollout id → [n] bool: tokens of this optimizer step that the objective chooses by their covariance.

        Log-probs are those before the update, where they are known, else the sampler's: verl takes those of the present
        weights, which are the same in the first optimizer step of a batch, and of each micro-batch alone.
        """
        if objective.settings.loss not in COVARIANCE_LOSSES:
            return None
        columns = {
            name: _covariance_columns(batch, low, high, None if scores is None else scores[name].logprobs)
            for batch in batches
            for name, (low, high) in batch.spans.items()
        }
        names = sorted(columns)  # the choice does not depend on how rollouts were packed
        if not names:
            return None
        logprobs, advantages, counted = (
            np.concatenate(parts) for parts in zip(*(columns[name] for name in names), strict=True)
        )
        chosen = np.zeros(len(logprobs), dtype=bool)
        covariances = token_covariances(logprobs[counted], advantages[counted])
        rng = np.random.default_rng(number)
        chosen[counted] = covariant_tokens(covariances, objective.settings, rng)
        ends = np.cumsum([len(columns[name][0]) for name in names])
        return dict(zip(names, np.split(chosen, ends[:-1]), strict=True))

    def _step(self) -> tuple[float, float]:
        """One optimizer step, refused when the gradient is not finite."""
        self.steps_taken += 1
        if self.gather is not None:
            self.gather(self.optimizer.gradients)
            if self.critic is not None:
                self.gather(self.critic.optimizer.gradients)
        done, total = self.steps_taken - self.warmup, self.total_steps - self.warmup
        rate = learning_rate(self.config, max(1, done), max(1, total))
        norm = self.optimizer.step(rate) if self.critic is None else self._step_both(self.critic, rate)
        self.policy.runner.settle()  # while only the critic learns, nothing else gives its weights back
        self.skipped_in_a_row = 0 if math.isfinite(norm) else self.skipped_in_a_row + 1
        if self.skipped_in_a_row > self.config.max_skipped:
            raise NonFiniteError(
                f"the gradient norm was {norm} for {self.skipped_in_a_row} optimizer steps in a row (allowed: "
                f"optim.max_skipped = {self.config.max_skipped}); the weights are still those before; lower optim.lr"
            )
        return rate, norm

    def _step_both(self, critic: Critic, rate: float) -> float:
        """Policy and critic, neither without the other; the policy's gradient norm, or what is not finite."""
        norms = self.optimizer.gradients.norm(), critic.optimizer.gradients.norm()
        if not math.isfinite(sum(norms)):
            self.optimizer.gradients.drop()
            critic.optimizer.gradients.drop()
            return sum(norms)
        critic.step(self.steps_taken, norms[1])
        if self._warming:
            self.optimizer.gradients.drop()
            return norms[0]
        return self.optimizer.step(rate, norms[0])

    @property
    def _warming(self) -> bool:
        """The critic learns alone: in optimizer steps 1 to `warmup`."""
        return self.critic is not None and self.steps_taken <= self.warmup

    def _backward(self, batch: Batch, context: UpdateContext, objective: Objective) -> list[UpdatePass]:
        """Add this batch's part of the gradient, cut where memory asks for it."""
        if not batch.spans:
            self._accompany(batch, context, objective)
            return []
        return self.fitting.run(batch, lambda part, done: self._backward_part(part, context, objective, done))

    def _backward_part(self, batch: Batch, context: UpdateContext, objective: Objective, done: set[str]) -> UpdatePass:
        """One forward and backward pass; `done` names parameters whose gradient is not to be added any more."""
        flags = OutputFlags(entropy=True, entropy_gradient=objective.entropy_bonus != 0)
        # Before the activations of the pass with a gradient take their memory.
        lacks = context.lacks_reference and not (context.scores and has_reference(batch, context.scores))
        reference = self.passes.reference_logprobs(batch) if lacks else None
        with saving(self.policy.model.parameters(), self.config):
            states, token_outputs = self.passes.forward(self.policy, batch, flags)
        inputs = loss_inputs(batch, token_outputs, context, reference)
        outputs = policy_loss(inputs, objective)
        loss, values, value_loss = outputs.loss, None, None
        if self.critic is not None:
            value_loss, values = self.critic.loss(batch, states, inputs.weights)
            loss = value_loss if self.steps_taken < self.warmup else loss + value_loss
        with ExitStack() as stack:
            stack.enter_context(self.optimizer.gradients.attempt(done))
            if self.critic is not None:
                stack.enter_context(self.critic.optimizer.gradients.attempt(done))
            loss.backward()
        return UpdatePass(
            inputs=inputs,
            outputs=outputs,
            entropy=token_outputs.entropies.detach(),
            values=values,
            value_loss=value_loss,
            batch=batch,
        )

    def _accompany(self, batch: Batch, context: UpdateContext, objective: Objective) -> None:
        """The passes of a row on a rank that has none left, where ranks need each other's parts of the weights."""
        flags = OutputFlags(entropy=True, entropy_gradient=objective.entropy_bonus != 0)
        if context.lacks_reference:
            self.passes.reference_logprobs(batch)
        states, outputs = self.passes.forward(self.policy, batch, flags)
        nothing = outputs.logprobs.sum()
        if self.critic is not None:
            value_loss = self.critic.loss(batch, states, outputs.logprobs.detach())[0]
            nothing = value_loss if self.steps_taken < self.warmup else nothing + value_loss
        nothing.backward()

    def gradient(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """The gradient of the objective over these batches by parameter name, without a step."""
        covariant = self._covariant(batches, None, self.objective)
        context = UpdateContext(covariant=covariant, lacks_reference=self.objective.kl_beta > 0)
        for batch in batches:
            self._backward(batch, context, self.objective)
        if self.critic is not None:
            self.critic.optimizer.gradients.drop()
        return self.optimizer.take_gradients()

    def score(self, batches: Sequence[Batch], *, with_reference: bool = True) -> dict[str, RolloutScores]:
        """Scores of every trained token under the present weights, with all that advantages and update need.

        Args:
            with_reference: False computes the policy's log-probs alone.
        """
        entropy = with_reference and self.entropy_share < 1
        scores: dict[str, RolloutScores] = {}

        def attempt(part: Batch, _: set[str]) -> dict[str, RolloutScores]:
            return self.passes.score(part, entropy=entropy, with_reference=with_reference)

        for batch in batches:
            for part in self.scoring.run(batch, attempt):
                scores |= part
        return scores

    def files(self) -> dict[str, dict[str, Tensor]]:
        """What `save` writes: file → its tensors by name, of shards this process's part."""
        files = {STATE_FILE: self.optimizer.state()}
        if self.critic is not None:
            files[CRITIC_FILE] = self.critic.optimizer.state()
        if self.reference is not None and (reference := self.reference.state()):
            files[REFERENCE_FILE] = reference
        return files

    def save(self, folder: Path) -> None:
        """Write the optimizer with its master weights into `folder`, and the state of critic and reference."""
        for file, tensors in self.files().items():
            state_files.write(folder / file, tensors)

    def close(self) -> None:
        """Free what is not this process's own; nothing, of a learner of one process."""

    def counters(self) -> dict[str, float]:
        """The part of the state that is not tensors, for the checkpoint's JSON."""
        return {
            "steps_taken": self.steps_taken,
            "skipped_in_a_row": self.skipped_in_a_row,
            "row_limit": self.fitting.limit or 0,
            "score_limit": self.scoring.limit or 0,
        }

    def load(self, folder: Path, counters: Mapping[str, float]) -> None:
        """Restore the state that `save` wrote."""
        read: Callable[[Path, Mapping[str, Tensor]], Mapping[str, Tensor]]
        read = self.sharding.read if self.sharding is not None else lambda file, _: state_files.read(file)
        self.optimizer.load(read(folder / STATE_FILE, self.optimizer.parameters))
        if self.critic is not None:
            self.critic.optimizer.load(read(folder / CRITIC_FILE, self.critic.optimizer.parameters))
        if self.reference is not None and self.reference.state():
            self.reference.load(read(folder / REFERENCE_FILE, dict(self.policy.model.named_parameters())))
        self.steps_taken = int(counters["steps_taken"])
        self.skipped_in_a_row = int(counters["skipped_in_a_row"])
        self.fitting.limit = int(counters.get("row_limit") or 0) or self.fitting.limit
        self.scoring.limit = int(counters.get("score_limit") or 0) or self.scoring.limit


def _lacks_reference(batches: Sequence[Batch], scores: Scores | None) -> bool:
    return scores is None or not all(has_reference(batch, scores) for batch in batches)


def _covariance_columns(
    batch: Batch, low: int, high: int, logprobs: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-probs and advantages of a rollout's tokens in a batch, and which of them count."""
    sampled = batch.sampler_logprobs[low:high]
    return sampled if logprobs is None else logprobs, batch.advantages[low:high], batch.weights[low:high] != 0
