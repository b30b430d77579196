"""GRPO's loop: collect, group, advantage, update.

prompts  → rollouts                     1 collect     (sampler, engine, environment, rewards)
rollouts → groups                       2 group       (attempts at the same prompt)
groups   → advantages                   3 advantage   (reward relative to the group, or to a critic: PPO)
advantages → new weights                4 update      (clipped objective, KL to the reference; past groups may join)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from coterie.algo.advantages import informative
from coterie.algo.estimators import Estimator
from coterie.algo.subsample import subsample_prompts
from coterie.batches.pack import pack, plan_scoring, without_truncated
from coterie.engines.base import Engine, check_version
from coterie.policy.learner import Learner
from coterie.policy.memory import peak
from coterie.policy.waiting import WAIT_POLICY, processor_wait, waited_since
from coterie.rollout.replay import ReplayBuffer
from coterie.rollout.sampler import PromptSampler
from coterie.train.evaluate import EVALUATING, Evaluator
from coterie.train.metrics import step_metrics
from coterie.train.recorder import Recorder
from coterie.train.schedules import Schedules
from coterie.train.step import LoopSettings, Progress, StepResult
from coterie.train.stop_rules import AbandonedError, StopSignal
from coterie.train.warnings import step_events
from coterie.types import Rollout, RolloutScores


@dataclass(slots=True, kw_only=True)
class Trainer:
    """The loop over the parts of a run, which `coterie.build` puts together."""

    sampler: PromptSampler
    """Which prompts, how many attempts; waits for their rollouts."""
    estimator: Estimator
    """Groups → advantages."""
    replay: ReplayBuffer
    """Past groups that may join an update."""
    learner: Learner
    """Advantages → weights."""
    engine: Engine
    schedules: Schedules
    """KL and entropy weights, renewal of the reference."""
    evaluator: Evaluator
    recorder: Recorder
    """Rollouts, metrics, events, checkpoints, callbacks."""
    settings: LoopSettings
    progress: Progress = field(default_factory=Progress)
    evaluating: bool = False
    """An evaluation is going on."""

    def run(self, stop: StopSignal) -> bool:
        """Train to the last step; True when it got there, False when it was asked to stop before.

        Raises:
            CollapseError: a stop rule fired.
        """
        while True:
            if self.settings.evaluates(self.progress) and not stop.requested:
                self.evaluate(stop)
            if self.progress.step and (stop.requested or self.settings.saves(self.progress)):
                self.checkpoint()
            if self.settings.finished(self.progress) or stop.requested:
                return self.settings.finished(self.progress) and not self.settings.evaluates(self.progress)
            self.record(self.step())
            self.recorder.apply_stop_rules(self.progress.step)

    def step(self) -> StepResult:
        """One step: the four phases.

        Raises:
            EngineError: the engine serves another policy version than the learner has, or sampling failed.
        """
        version, started, waited = self.progress.step, time.perf_counter(), processor_wait()
        switches, slept = WAIT_POLICY.switches, WAIT_POLICY.sleeps
        check_version(self.engine.version, version)
        batch = self.sampler.collect(self.progress.cursor, self.progress.pending)  # 1 collect, 2 group
        rollouts, collected = batch.rollouts, time.perf_counter()

        advantages = self.estimator(batch.groups, rollouts, self.score)  # 3 advantage
        fresh = list(advantages.credits)
        if self.settings.mask_truncated:
            fresh = without_truncated(fresh, rollouts)

        # Past groups join the fresh ones, and rollouts with small advantages are left out at random.
        past = self.replay.draw(version, partial(self.score, with_reference=advantages.scores is not None))
        joined = {**rollouts, **past.rollouts}
        credits = informative(batch.groups, fresh) if self.settings.drop_zero_variance else fresh
        subsampled = subsample_prompts(
            [*credits, *past.credits], joined, self.settings.subsample, seed=self.settings.seed, step=version
        )
        minibatches = pack(joined, subsampled.credits, self.settings.packing, version)
        update = self.learner.update(minibatches, self.schedules.objective, past.merge(advantages.scores))  # 4 update
        updated = time.perf_counter()

        self.progress = self.progress.after(batch)
        self.replay.keep(self.progress.step, batch.groups, rollouts, fresh)
        self.engine.commit(self.progress.step)
        check_version(self.engine.version, self.progress.step)  # before a checkpoint says that it serves this one
        return StepResult(
            step=self.progress.step,
            batch=batch,
            advantages=advantages,
            credits=tuple(fresh),
            update=update,
            seconds={
                "step": updated - started,
                "collect": collected - started,
                "update": updated - collected,
                "processor_wait": waited_since(waited),
            },
            threads_slept=slept or WAIT_POLICY.switches > switches,
            replayed=past,
            subsampled=subsampled,
            weights=self.schedules.advance(self.progress.step, update.metrics, len(fresh)),
            memory=peak(self.learner.policy.device),
        )

    def score(self, rollouts: Sequence[Rollout], *, with_reference: bool = True) -> dict[str, RolloutScores]:
        """Token scores of rollouts before the update; see `Learner.score`."""
        batches = plan_scoring(rollouts, max_tokens_per_microbatch=self.settings.packing.max_tokens_per_microbatch)
        return self.learner.score(batches, with_reference=with_reference)

    def record(self, result: StepResult) -> None:
        """Write the step's rollouts and metrics, and report its events."""
        metrics = step_metrics(result, self.evaluator.criterion)
        self.recorder.step(result, metrics)
        events = step_events(result, metrics, dtype=self.learner.policy.dtype, eval_part=self.evaluator.criterion.part)
        self.recorder.step_events(result.step, events)

    def evaluate(self, stop: StopSignal) -> None:
        """Measure the held-out prompts with the weights as they are; a request to stop abandons it."""
        step = self.progress.step
        check_version(self.engine.version, step)

        def progress(done: int, total: int) -> None:
            if stop.requested:
                raise AbandonedError
            self.recorder.callback.on_progress(EVALUATING, done, total, "completions")

        self.evaluating = True
        try:
            evaluation = self.evaluator.evaluate(step, progress)
        except AbandonedError:
            return
        finally:
            self.evaluating = False
        self.recorder.evaluation(step, evaluation)
        self.progress = replace(self.progress, evaluated=step)

    def plan(self) -> str:
        """Consequence of a request to stop at this moment, as a line of text."""
        save = "saving a checkpoint, then stopping"
        if self.evaluating:
            return f"abandoning the evaluation, {save if self.progress.step else 'then stopping'}"
        return f"finishing the current step, {save}"

    def losses(self, run: Path) -> str:
        """Steps that would be lost if the process ended now, and the way to go on, as a line of text."""
        step = self.progress.step
        if not step:
            return "no step was finished; start again with the same command"
        last = max(self.progress.saved, 0)
        if last == step:
            return f"step {last} is saved; continue with: coterie resume {run}"
        steps = f"step {step}" if last == step - 1 else f"steps {last + 1} to {step}"
        again = f"trains {steps} again, which no checkpoint holds"
        start = f"continues from the checkpoint of step {last} and" if last else "starts over and"
        return f"coterie resume {run} {start} {again}"

    def checkpoint(self) -> None:
        """Make this step the one that a resume continues from."""
        step = self.progress.step
        if self.progress.saved != step:
            writers = [self.learner.save, self.estimator.save, self.replay.save]
            self.recorder.checkpoint(step, writers, self.learner.counters(), self._state())
            self.progress = replace(self.progress, saved=step)

    def _state(self) -> dict[str, Any]:
        return {
            **self.progress.state(),
            "version": self.engine.version,
            "schedules": self.schedules.state(),
            "scale": self.evaluator.criterion.scale.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state; the learner's tensors are loaded beside this."""
        self.progress = Progress.restored(state, evaluated=self.recorder.has_evaluation(int(state["step"])))
        self.schedules.restore(state["schedules"])
        self.evaluator.criterion.scale.restore(state["scale"])
        self.engine.commit(int(state["version"]))
