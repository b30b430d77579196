"""The loop: collect → group → credit → update, then record, evaluate, checkpoint.

for step:                                   README of the whole method
    prompts  → rollouts                     collect   (engine, environment, rewards)
    rollouts → groups                       group     (attempts at the same prompt)
    groups   → advantages                   credit    (reward relative to the group, or to a critic: PPO)
    advantages → new weights                update    (clipped objective, KL to the reference; past groups may join)
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from coterie.algo.advantages import informative
from coterie.algo.estimators import BIASED, NEWS, Estimator, Predictions
from coterie.algo.subsample import Subsampled, subsample
from coterie.batches.batch import Batch
from coterie.batches.pack import plan, plan_scoring, step_head
from coterie.config.schema import RunConfig
from coterie.engines.base import Engine, check_version
from coterie.policy.learner import Learner, UpdateReport
from coterie.policy.memory import peak
from coterie.rng import generator
from coterie.rollout.replay import NEWS as REPLAYED
from coterie.rollout.replay import ReplayBuffer, Replayed
from coterie.rollout.sampler import PromptSampler, StepBatch
from coterie.text import counted
from coterie.train.evaluate import EVALUATING, Evaluator
from coterie.train.metrics import step_metrics
from coterie.train.recorder import Recorder, late
from coterie.train.schedules import Schedules
from coterie.train.stop_rules import AbandonedError, StopSignal
from coterie.train.warnings import disagreement
from coterie.types import Credit, Rollout, RolloutScores


@dataclass(slots=True, kw_only=True)
class Trainer:
    """The parts of a run, put together by `assemble`, and the loop over them."""

    config: RunConfig
    sampler: PromptSampler
    judge: Estimator
    engine: Engine
    learner: Learner
    schedules: Schedules
    replay: ReplayBuffer
    evaluator: Evaluator
    recorder: Recorder
    step: int = 0
    """Steps done."""
    cursor: int = 0
    """Training prompts consumed."""
    waiting: tuple[str, ...] = ()
    """Prompts that were drawn and come first in the next step."""
    evaluated: int = -1
    """The last step that was evaluated."""
    saved: int = -1
    """The last step that has a checkpoint."""
    evaluating: bool = False
    """An evaluation is going on."""
    disagreed: bool = False
    """The last step's sampler and learner disagreed; it is said once, not in every step."""

    def run(self, stop: StopSignal) -> bool:
        """Train up to `config.steps`; True when it got there, False when it was asked to stop before.

        Raises:
            CollapseError: a stop rule of `config.stop` fired.
        """
        while True:
            if self._evaluation_due() and not stop.requested:
                self.evaluate(stop)
            if self.step and (stop.requested or self._due(self.config.checkpoint.every)):
                self.checkpoint()
            if self._done() or stop.requested:
                return self._done() and not self._evaluation_due()
            self.train_step()
            self.recorder.obey_stop_rules(self.step)

    def train_step(self) -> None:
        """One step: the four phases, then the record.

        Raises:
            EngineError: the engine serves another policy version than the learner has, or sampling failed.
        """
        started = time.perf_counter()
        check_version(self.engine.version, self.step)
        gathered = self.sampler.gather(self.cursor, self.waiting)
        rollouts = {rollout.id: rollout for rollout in gathered.experience.rollouts}
        collected = time.perf_counter()
        foresight = self.judge.foresee(gathered.groups, rollouts)
        members = [rollouts[name] for group in gathered.groups for name in group.members]
        scores = self._score(members) if self.judge.needs_scores else None
        credits = self._trained(self.judge(gathered.groups, rollouts, scores or {}), rollouts)
        past = self.replay.draw(self.step, partial(self._score, companions=scores is not None))
        counted = informative(gathered.groups, credits) if self.config.objective.drop_zero_variance else credits
        joined = {**rollouts, **past.rollouts}
        played = self._play(joined, [*counted, *past.credits])
        minibatches = self._minibatches(joined, played.credits)
        report = self.learner.update(minibatches, past.beside(scores))
        self.judge.updated(report.metrics)
        updated = time.perf_counter()
        self.step += 1
        self.replay.keep(self.step, gathered.groups, rollouts, credits)
        self.cursor, self.waiting = gathered.cursor, gathered.waiting
        self.engine.commit(self.step)
        check_version(self.engine.version, self.step)  # before a checkpoint says that it serves this one
        adapted = self.schedules.after(self.step, report.metrics, len(credits), self.learner)
        seconds = {"step": updated - started, "collect": collected - started, "update": updated - collected}
        metrics = self._record(
            gathered, credits, report, seconds, {**adapted, **past.metrics, **played.metrics}, foresight
        )
        self._tell(gathered, report, past, metrics)

    def _score(self, rollouts: Sequence[Rollout], *, companions: bool = True) -> dict[str, RolloutScores]:
        """What the learner says of these rollouts' tokens before the update; see `Learner.score`."""
        batches = plan_scoring(rollouts, max_tokens_per_microbatch=self.config.optim.max_tokens_per_microbatch)
        return self.learner.score(batches, companions=companions)

    def _trained(self, credits: Sequence[Credit], rollouts: Mapping[str, Rollout]) -> list[Credit]:
        """Without those of rollouts that were cut off, where the settings say so."""
        if not self.config.objective.mask_truncated:
            return list(credits)
        return [credit for credit in credits if not rollouts[credit.rollout_id].stop_reason.truncated]

    def _play(self, rollouts: Mapping[str, Rollout], credits: Sequence[Credit]) -> Subsampled:
        """The credits that the update gets: without those that Russian roulette leaves out, a prompt's together."""
        if not self.config.optim.subsample:
            return Subsampled(credits=tuple(credits))
        contexts = {credit.rollout_id: rollouts[credit.rollout_id].context for credit in credits}
        draws = {
            name: float(generator("roulette", self.config.seed, self.step, one.prompt_id, one.version).random())
            for name, one in contexts.items()
        }
        return subsample(credits, draws, self.config.optim.subsample)

    def _minibatches(self, rollouts: Mapping[str, Rollout], credits: Sequence[Credit]) -> list[list[Batch]]:
        """The packed batches of each optimizer step; several steps split the rollouts at random, as R1 does."""
        optim = self.config.optim
        known, head = {credit.rollout_id for credit in credits}, step_head(rollouts.values())
        usable = [rollout for name, rollout in rollouts.items() if name in known]
        plans = []
        for epoch in range(optim.epochs):
            if optim.minibatches == 1:
                parts = [usable]
            else:
                order = generator("minibatch", self.config.seed, self.step, epoch).permutation(len(usable))
                parts = [[usable[k] for k in order[part :: optim.minibatches]] for part in range(optim.minibatches)]
            plans += [self._plan(part, credits, head) for part in parts]
        return plans

    def _plan(self, rollouts: Sequence[Rollout], credits: Sequence[Credit], head: int) -> list[Batch]:
        return plan(
            rollouts,
            credits,
            loss_agg_mode=self.config.objective.loss_agg_mode,
            max_tokens_per_microbatch=self.config.optim.max_tokens_per_microbatch,
            skip_zero=self.config.advantages_alone,
            max_tokens=self.config.sampling.max_tokens,
            head=head,
        )

    def _record(
        self,
        gathered: StepBatch,
        credits: Sequence[Credit],
        report: UpdateReport,
        seconds: dict[str, float],
        extra: Mapping[str, float],
        foresight: Predictions,
    ) -> dict[str, float]:
        """The step's rollouts and metrics."""
        experience = gathered.experience
        metrics = step_metrics(
            experience,
            gathered.groups,
            report,
            seconds,
            criterion=self.evaluator.criterion,
            credits=credits,
            version=self.step - 1,
        )
        metrics |= {
            **gathered.metrics,
            **self.judge.metrics(),
            **extra,
            "memory/peak": float(peak(self.learner.policy.device)),
        }
        self.recorder.step(self.step, metrics, experience, credits, report.logprobs, foresight)
        return metrics

    def _tell(self, gathered: StepBatch, report: UpdateReport, past: Replayed, metrics: Mapping[str, float]) -> None:
        """What a reader should know of the step beside its numbers."""
        if gathered.metrics.get("dynamic_sampling/missing"):
            self.recorder.note(self.step, "warning", self._shortage(gathered))
        for text in self.judge.warnings():
            self.recorder.note(self.step, BIASED, text)
        for text in self.judge.news():
            self.recorder.record_event(self.step, NEWS, text)
        if past.news:
            self.recorder.record_event(self.step, REPLAYED, past.news)
        if gathered.experience.late:
            self.recorder.note(self.step, "warning", late(gathered.experience))
        different = disagreement(metrics, self.learner.policy.dtype)
        if different is not None and not self.disagreed:
            self.recorder.note(self.step, "warning", different)
        self.disagreed = different is not None
        if report.splits:
            rows = "1 packed row was" if report.splits == 1 else f"{report.splits} packed rows were"
            message = f"{rows} cut in two: their memory was refused"
            self.recorder.note(self.step, "memory", message)
        if report.skipped:
            self.recorder.note(
                self.step,
                "skipped_update",
                f"{counted(report.skipped, 'optimizer step')} skipped: the gradient is not finite",
            )

    def _shortage(self, gathered: StepBatch) -> str:
        """Dynamic sampling found too few groups with variance."""
        rounds, dropped = (
            int(gathered.metrics["dynamic_sampling/rounds"]),
            int(gathered.metrics["dynamic_sampling/dropped"]),
        )
        kept = len(gathered.groups)
        trains = f"this step trains on {kept}" if kept else "this step trains on nothing"
        return (
            f"collect.dynamic_sampling found {kept} of {self.config.collect.prompts_per_step} groups with variance "
            f"after {counted(rounds, 'round')} and dropped {dropped}, in each of which all attempts have the same "
            f"{self.evaluator.criterion.part!r} (eval.reward); {trains}"
        )

    def evaluate(self, stop: StopSignal) -> None:
        """Measure the held-out prompts with the weights as they are; a request to stop abandons it."""
        check_version(self.engine.version, self.step)

        def progress(done: int, total: int) -> None:
            if stop.requested:
                raise AbandonedError
            self.recorder.callback.on_progress(EVALUATING, done, total, "completions")

        self.evaluating = True
        try:
            evaluation = self.evaluator.evaluate(self.step, progress)
        except AbandonedError:
            return
        finally:
            self.evaluating = False
        self.recorder.evaluation(self.step, evaluation)
        self.evaluated = self.step

    def plan(self) -> str:
        """What follows a request to stop that comes now."""
        save = "saving a checkpoint, then stopping"
        if self.evaluating:
            return f"abandoning the evaluation, {save if self.step else 'then stopping'}"
        return f"finishing the current step, {save}"

    def losses(self, run: Path) -> str:
        """What is lost when the process ends now, and how to go on."""
        if not self.step:
            return "no step was finished; start again with the same command"
        last = max(self.saved, 0)
        if last == self.step:
            return f"step {last} is saved; continue with: coterie resume {run}"
        steps = f"step {self.step}" if last == self.step - 1 else f"steps {last + 1} to {self.step}"
        again = f"trains {steps} again, which no checkpoint holds"
        start = f"continues from the checkpoint of step {last} and" if last else "starts over and"
        return f"coterie resume {run} {start} {again}"

    def checkpoint(self) -> None:
        """Make this step the one that a resume continues from."""
        if self.saved != self.step:
            parts = [self.learner.save, self.judge.save, self.replay.save]
            self.recorder.checkpoint(self.step, parts, self.learner.counters(), self._state())
            self.saved = self.step

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "cursor": self.cursor,
            "waiting": list(self.waiting),
            "version": self.engine.version,
            "coefficients": self.schedules.state(),
            "scale": self.evaluator.criterion.scale.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state; the learner's tensors are loaded beside this."""
        self.step, self.cursor = int(state["step"]), int(state["cursor"])
        self.waiting = tuple(state["waiting"])
        self.schedules.restore(state["coefficients"])
        self.evaluator.criterion.scale.restore(state.get("scale", {}))  # checkpoints of before have none
        self.saved = self.step
        self.evaluated = self.step if self.recorder.has_evaluation(self.step) else -1
        self.engine.commit(int(state["version"]))

    def _done(self) -> bool:
        return self.step >= self.config.steps

    def _due(self, every: int) -> bool:
        return self._done() or (every > 0 and self.step % every == 0)

    def _evaluation_due(self) -> bool:
        return self.evaluated != self.step and (self.step == 0 or self._due(self.config.eval.every))
