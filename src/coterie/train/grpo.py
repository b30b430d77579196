"""The GRPO loop: collect → group → credit → update, then record, evaluate, checkpoint.

for step:                                   README of the whole method
    prompts  → rollouts                     collect   (engine, environment, rewards)
    rollouts → groups                       group     (attempts at the same prompt)
    groups   → advantages                   credit    (reward relative to the group)
    advantages → new weights                update    (clipped objective, KL to the reference)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coterie.algo.advantages import credit_groups
from coterie.algo.groups import by_prompt
from coterie.algo.streams import generator
from coterie.batches import Batch, plan
from coterie.collect import Collector, Experience
from coterie.config.schema import RunConfig
from coterie.data.order import PromptOrder
from coterie.engines.base import Engine, Sampling
from coterie.policy.learner import Learner, UpdateReport
from coterie.train.evaluation import Evaluator
from coterie.train.measures import step_metrics
from coterie.train.recorder import Recorder, late
from coterie.train.stopping import StopSignal
from coterie.types import Credit, Group, Rollout


@dataclass(slots=True, kw_only=True)
class Trainer:
    """The parts of a run, put together by `assemble`, and the loop over them."""

    config: RunConfig
    order: PromptOrder
    collector: Collector
    engine: Engine
    learner: Learner
    evaluator: Evaluator
    recorder: Recorder
    sampling: Sampling
    step: int = 0
    """Steps done."""
    cursor: int = 0
    """Training prompts consumed."""
    evaluated: int = -1
    """The last step that was evaluated."""
    saved: int = -1
    """The last step that has a checkpoint."""

    def run(self, stop: StopSignal) -> bool:
        """Train up to `config.steps`; True when it got there, False when it was asked to stop before."""
        while True:
            if self._evaluation_due() and not stop.requested:
                self.evaluate()
            if self.step and (stop.requested or self._due(self.config.checkpoint.every)):
                self.checkpoint()
            if self._done() or stop.requested:
                return self._done() and not self._evaluation_due()
            self.train_step()

    def train_step(self) -> None:
        """One step: the four phases, then the record."""
        started = time.perf_counter()
        size = self.config.collect.group_size
        prompts = self.order.draw(self.cursor, self.config.collect.prompts)
        experience = self.collector.collect(prompts, samples=size, sampling=self.sampling)
        groups = self._whole(by_prompt(experience.rollouts), experience)
        objective = self.config.objective
        credits = credit_groups(
            groups,
            scale=objective.scale_advantage,
            clip_low=objective.clip_low,
            clip_high=objective.clip_high,
        )
        collected = time.perf_counter()
        report = self.learner.update(self._minibatches(experience.rollouts, credits))
        updated = time.perf_counter()
        self.step += 1
        self.cursor += len(prompts)
        self.engine.commit(self.step)
        seconds = {"step": updated - started, "collect": collected - started, "update": updated - collected}
        self._record(experience, groups, credits, report, seconds)

    def _whole(self, groups: Sequence[Group], experience: Experience) -> list[Group]:
        """Groups of which no member ended in an error: failures correlate with length and task, so leaving out only
        the failed members would bias the baseline. A group is whole or takes no part."""
        broken = {f"{rollout.context.prompt_id}@{rollout.context.version}" for rollout in experience.errors}
        return [group for group in groups if group.key not in broken and len(group.members) >= 2]

    def _minibatches(self, rollouts: Sequence[Rollout], credits: Sequence[Credit]) -> list[list[Batch]]:
        """The packed batches of each optimizer step; several steps split the rollouts at random, as R1 does."""
        optim = self.config.optim
        known = {credit.rollout_id for credit in credits}
        usable = [rollout for rollout in rollouts if rollout.id in known]
        plans = []
        for epoch in range(optim.epochs):
            if optim.minibatches == 1:
                parts = [usable]
            else:
                order = generator("minibatch", self.config.seed, self.step, epoch).permutation(len(usable))
                parts = [[usable[k] for k in order[part :: optim.minibatches]] for part in range(optim.minibatches)]
            plans += [self._plan(part, credits) for part in parts]
        return plans

    def _plan(self, rollouts: Sequence[Rollout], credits: Sequence[Credit]) -> list[Batch]:
        return plan(
            rollouts,
            credits,
            normalize=self.config.objective.normalize,
            token_budget=self.config.optim.token_budget,
            skip_zero=self.config.objective.kl_beta == 0,
        )

    def _record(
        self,
        experience: Experience,
        groups: Sequence[Group],
        credits: Sequence[Credit],
        report: UpdateReport,
        seconds: dict[str, float],
    ) -> None:
        metrics = step_metrics(experience, groups, report, seconds, part=self.evaluator.part)
        self.recorder.step(self.step, metrics, experience, credits, report.logprobs)
        if experience.late:
            self.recorder.note(self.step, "warning", late(experience))
        if report.splits:
            message = f"{report.splits} packed rows were cut in two: their memory was refused"
            self.recorder.note(self.step, "memory", message)
        if report.skipped:
            self.recorder.note(
                self.step,
                "skipped_update",
                f"{report.skipped} optimizer steps had a gradient that is not finite",
            )

    def evaluate(self) -> None:
        """Measure the held-out prompts with the weights as they are."""
        self.recorder.evaluation(self.step, self.evaluator.evaluate(self.step))
        self.evaluated = self.step

    def checkpoint(self) -> None:
        """Make this step the one that a resume continues from."""
        if self.saved != self.step:
            self.recorder.checkpoint(self.step, self.learner, self._state())
            self.saved = self.step

    def _state(self) -> dict[str, Any]:
        return {"step": self.step, "cursor": self.cursor, "version": self.engine.version}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state; the learner's tensors are loaded beside this."""
        self.step, self.cursor = int(state["step"]), int(state["cursor"])
        self.saved = self.step
        self.evaluated = self.step if self.recorder.has_evaluation(self.step) else -1
        self.engine.commit(int(state["version"]))

    def _done(self) -> bool:
        return self.step >= self.config.steps

    def _due(self, every: int) -> bool:
        return self._done() or (every > 0 and self.step % every == 0)

    def _evaluation_due(self) -> bool:
        return self.evaluated != self.step and (self.step == 0 or self._due(self.config.eval.every))
