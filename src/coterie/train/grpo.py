"""GRPO's loop: collect, group, advantage, update.

prompts  → rollouts                     1 collect     (sampler, engine, environment, rewards)
rollouts → groups                       2 group       (attempts at the same prompt)
groups   → advantages                   3 advantage   (reward relative to the group, or to a critic: PPO)
advantages → new weights                4 update      (clipped objective, KL to the reference; past groups may join)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from coterie.algo.advantages import informative
from coterie.algo.estimators import Estimator
from coterie.algo.subsample import subsample_prompts
from coterie.batches.pack import pack, plan_scoring, without_truncated
from coterie.engines.attempt_history import AttemptHistory
from coterie.engines.base import check_version
from coterie.phases import PHASES, Seconds
from coterie.policy.memory import peak
from coterie.policy.waiting import WAIT_POLICY, processor_wait, waited_since
from coterie.rollout.lagged_sampler import LaggedSampler
from coterie.rollout.replay import ReplayBuffer
from coterie.rollout.sampler import PromptSampler, StepBatch
from coterie.train.loop import Loop
from coterie.train.metrics import step_metrics
from coterie.train.schedules import Schedules
from coterie.train.step import StepResult
from coterie.train.warnings import step_events
from coterie.types import Rollout, RolloutScores


@dataclass(slots=True, kw_only=True)
class Trainer(Loop):
    """The loop over the parts of a run, which `coterie.build` puts together."""

    sampler: PromptSampler
    """Which prompts, how many attempts; waits for their rollouts."""
    estimator: Estimator
    """Groups → advantages."""
    replay: ReplayBuffer
    """Past groups that may join an update."""
    schedules: Schedules
    """KL and entropy weights, renewal of the reference."""
    history: AttemptHistory | None = None
    """Attempts from which the engine drafts; None where it does not."""
    lagged: LaggedSampler | None = None
    """Samples by earlier versions while the learner updates; None: in turn."""

    def advance(self) -> None:
        """One step, recorded."""
        self.record(self.step())

    def step(self) -> StepResult:
        """One step: the four phases.

        Raises:
            EngineError: the engine serves another policy version than the learner has, or sampling failed.
        """
        version, started, waited = self.progress.step, Seconds.now(), processor_wait()
        phases, switches, slept = PHASES.read(), WAIT_POLICY.switches, WAIT_POLICY.sleeps
        batch = self._collect(version)  # 1 collect, 2 group
        rollouts, collected = batch.rollouts, Seconds.now()

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
        packed = Seconds.now()
        update = self.learner.update(minibatches, self.schedules.objective, past.merge(advantages.scores))  # 4 update
        updated = Seconds.now()

        self.progress = self.progress.after(batch)
        self.replay.keep(self.progress.step, batch.groups, rollouts, fresh)
        if self.history is not None:
            self.history.remember(rollouts.values())
        if self.lagged is None:
            self.engine.commit(self.progress.step)
            check_version(self.engine.version, self.progress.step)  # before a checkpoint says that it serves this one
        spent = PHASES.since(phases) | {
            "step": updated.since(started),
            "collect": collected.since(started),
            "update": updated.since(collected),
            "advantage": packed.since(collected),
        }
        return StepResult(
            step=self.progress.step,
            batch=batch,
            advantages=advantages,
            credits=tuple(fresh),
            update=update,
            seconds={
                **{part: seconds.wall for part, seconds in spent.items()},
                "processor_wait": waited_since(waited),
            },
            cpu_seconds={part: seconds.cpu for part, seconds in spent.items()},
            threads_slept=slept or WAIT_POLICY.switches > switches,
            replayed=past,
            subsampled=subsampled,
            weights=self.schedules.advance(self.progress.step, update.metrics, len(fresh)),
            memory=peak(self.learner.policy.device),
        )

    def _collect(self, version: int) -> StepBatch:
        if self.lagged is not None:
            return self.lagged.take(version, self.progress.cursor, self.progress.pending)
        check_version(self.engine.version, version)
        batch = self.sampler.collect(self.progress.cursor, self.progress.pending)
        self.engine.sleep()
        return batch

    def settle(self) -> None:
        if self.lagged is not None:
            self.lagged.settle(self.progress.step)
        Loop.settle(self)

    def close(self) -> None:
        if self.lagged is not None:
            self.lagged.close()
        Loop.close(self)

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
        self.recorder.diverging_parts(result.step)

    def writers(self) -> Sequence[Callable[[Path], None]]:
        drafts = [] if self.history is None else [self.history.save]
        lagged = [] if self.lagged is None else [partial(self.lagged.save, step=self.progress.step)]
        return self.estimator.save, self.replay.save, *drafts, *lagged

    def state(self) -> dict[str, Any]:
        return {"schedules": self.schedules.state()}

    def load(self, folder: Path) -> str:
        self.estimator.load(folder)
        if self.history is not None:
            self.history.load(folder)
        notes = [self.replay.load(folder), "" if self.lagged is None else self.lagged.load(folder)]
        return "; ".join(filter(None, notes))

    def restore(self, state: dict[str, Any]) -> None:
        Loop.restore(self, state)
        self.schedules.restore(state["schedules"])
