"""Recorder of a run: rollouts, metrics, evaluations, events and checkpoints, written to its folder and told to its
callback."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coterie.callbacks import Callback
from coterie.doctor.hacking import PART, PART_STEPS, divergence_text, diverging, is_penalty
from coterie.doctor.series import Series
from coterie.errors import CollapseError, RunError
from coterie.rollout.collector import Experience
from coterie.runs import checkpoint, parquet, prompts, rollouts
from coterie.runs.directory import RunDirectory, RunLog
from coterie.runs.durable import describe, fsync, missing_room
from coterie.runs.inspect import COLLAPSE, REWARD_CHANGED
from coterie.runs.metrics import MetricsDB
from coterie.runs.rollouts import RolloutRecord
from coterie.text import counted
from coterie.train.evaluate import Criterion, Evaluation
from coterie.train.prompt_stats import PromptStatsTable
from coterie.train.step import StepResult
from coterie.train.stop_rules import StopMonitor, StopRule
from coterie.train.warnings import StepEvent, timeout_message
from coterie.types import PASS, REWARD, Credit, Prompt, Rollout

EVALS = "evals"
"""Folder of the held-out rollouts, one file per evaluation."""
PROMPTS = "prompts"
"""Folder of the training prompts, a file for each step that met new ones."""


class Recorder:
    """Recorder of one run.

    Args:
        save_model: puts a model folder that transformers opens into the folder it is given.
        keep: checkpoints kept.
        size: bytes that one takes, about.
        config_hash: names the settings a checkpoint belongs to.
        data_hash: names the prompts and the template it belongs to.
        stops: rules that may end the run.
        criterion: says which rollouts are correct; None asks the whole reward.
        reward_sources: sha256 of the module of each reward function of the user's own, by the function's name.
    """

    def __init__(
        self,
        run: RunDirectory,
        *,
        callback: Callback,
        save_model: Callable[[Path], None],
        keep: int,
        size: int,
        config_hash: str,
        data_hash: str,
        stops: Sequence[StopRule] = (),
        criterion: Criterion | None = None,
        reward_sources: Mapping[str, str] | None = None,
    ) -> None:
        self.run = run
        self.callback = callback
        self.save_model = save_model
        self.keep = keep
        self.size = size
        self.config_hash = config_hash
        self.data_hash = data_hash
        self.reward_sources = dict(reward_sources or {})
        self.db = MetricsDB(run.metrics)
        self.stops = StopMonitor(stops, self.db, run.checkpoints)
        self.log: RunLog = run.open_log()
        self.prompt_stats = PromptStatsTable(criterion)
        self._lasting: set[str] = set()
        """Lasting events of the last step, which are not told again."""
        self.evals, self.prompts = run.path / EVALS, run.path / PROMPTS
        try:
            self.evals.mkdir(exist_ok=True)
            self.prompts.mkdir(exist_ok=True)
            fsync(run.path)  # or a power cut may take the folders, and what was stored in them
        except OSError as error:
            raise RunError(f"cannot make a folder in {run.path}: {describe(error, run.path)}") from error

    def forget_after(self, step: int) -> None:
        """Drop what an interrupted run recorded after `step`: it will be made again, bit for bit. -1 drops all."""
        self.db.truncate_after(step)
        parquet.truncate_after(self.run.rollouts, step)
        parquet.truncate_after(self.prompts, step)
        parquet.truncate_after(self.evals, step)

    def step(self, result: StepResult, metrics: Mapping[str, float]) -> None:
        """One training step: rollouts first, then the metrics that say the step is whole."""
        step = result.step
        experience, new_prompts = self.prompt_stats.stamp(step, result.batch.experience, result.advantages)
        credits = {credit.rollout_id: credit for credit in result.credits}
        rollouts.write_step(self.run.rollouts, step, self._rows(experience, credits, result.update.logprobs))
        prompts.write_step(self.prompts, step, new_prompts)
        self.measured(step, metrics, _sample(experience))
        self.prompt_stats.learn(step, experience.rollouts)

    def measured(self, step: int, metrics: Mapping[str, float], sample: tuple[Prompt, Rollout] | None = None) -> None:
        """The metrics of a step, which say that it is whole; what is measured before the first is of step 0.

        Args:
            sample: one rollout of the step with its prompt, for the callback.
        """
        self.db.record(step, metrics)
        self.log.line("step", " ".join(f"{name}={value:.6g}" for name, value in metrics.items()))
        if step:
            self.callback.on_step(step, metrics, sample)

    def step_events(self, step: int, events: Sequence[StepEvent]) -> None:
        """The events of one step; one that lasts over consecutive steps is told in the first of them."""
        for event in events:
            if event.quiet:
                self.record_event(step, event.kind, event.message)
            elif not (event.lasting and event.kind in self._lasting):
                self.note(step, event.kind, event.message)
        self._lasting = {event.kind for event in events if event.lasting}

    def diverging_parts(self, step: int) -> None:
        """Warn once of each pair of reward parts of which one rises while the other falls."""
        names = [name for name in self.db.names() if name.startswith(PART)]
        if len(names) < 2 or step < PART_STEPS:
            return
        told = {event.message for event in self.db.events("warning")}
        for rising, falling in diverging({name: Series.of(name, self.db.series(name)) for name in names}):
            message = divergence_text(rising, falling)
            if message not in told and not is_penalty(falling):
                self.note(step, "warning", message)

    def evaluation(self, step: int, evaluation: Evaluation) -> None:
        """One held-out evaluation with its rollouts."""
        experience = evaluation.experience
        if experience is None:
            return
        # A kill between the two writes leaves the file alone: only the database says that an evaluation is whole.
        parquet.truncate_after(self.evals, step - 1)
        rollouts.write_step(self.evals, step, self._rows(experience, {}, {}))
        self.db.record_evals(evaluation.results, evaluation.items)
        for result in evaluation.results:
            for name in (PASS, REWARD):
                if (estimate := result.metric(name)) is not None:
                    interval = f"[{estimate.low:.4f}, {estimate.high:.4f}]"
                    self.log.line("eval", f"{result.task} {name}={estimate.value:.4f} {interval}")
        self.callback.on_evaluate(evaluation.results)
        errors = experience.errors
        if errors:
            completions = counted(len(errors), "held-out completion")
            self.note(
                step,
                "warning",
                f"{completions} ended in an error, counted as wrong in pass@k and left out of the mean reward: "
                f"{errors[0].error}",
            )
        if experience.timed_out:
            self.note(step, "warning", timeout_message(experience))

    def require_room(self) -> None:
        """Refuse to begin what the disk cannot hold: all checkpoints that are kept, and the one being written.

        Raises:
            RunError: with the bytes needed and free.
        """
        count = self.keep + 1 - min(self.keep, len(checkpoint.steps(self.run.checkpoints)))
        shortage = missing_room(self.run.path, count * self.size)
        if shortage is not None:
            raise RunError(
                f"there is no room for the checkpoints of {self.run.path} ({count} more of {self.size:,} bytes): "
                f"{shortage}; free some space, lower checkpoint.keep, or keep runs elsewhere (--runs)"
            )

    def saved_before(self) -> int | None:
        """The newest step with a recorded checkpoint, which may have been deleted since."""
        return max((event.step or 0 for event in self.db.events("checkpoint")), default=None)

    def has_evaluation(self, step: int) -> bool:
        """True if the held-out prompts were measured at this step."""
        return any(result.step == step for result in self.db.evals())

    def checkpoint(
        self,
        step: int,
        writers: Sequence[Callable[[Path], None]],
        counters: Mapping[str, float],
        state: Mapping[str, Any],
        *,
        best: int | None = None,
    ) -> None:
        """Everything a resume needs, verified before older ones go.

        Args:
            writers: each writes its files into the folder it is given.
            counters: the learner's.
            best: step of a checkpoint that stays in any case.
        """
        complete = dict(state)
        complete |= {"learner": dict(counters), "data_hash": self.data_hash, "reward_sources": self.reward_sources}

        def write(folder: Path) -> None:
            for writer in (*writers, self.prompt_stats.save):
                writer(folder)
            (folder / "model").mkdir()
            self.save_model(folder / "model")

        path = checkpoint.save(
            self.run.checkpoints,
            step,
            write,
            complete,
            keep=self.keep,
            run_id=self.run.name,
            config_hash=self.config_hash,
            spare=(self.stops.good_checkpoint(step), best),
            size=self.size,
        )
        self.note(step, "checkpoint", f"saved {path.name}")

    def changed_rewards(self, step: int, saved: Any) -> list[str]:
        """Names of the reward functions whose module reads otherwise than at a checkpoint.

        Args:
            step: of the checkpoint.
            saved: `reward_sources` of its state; None where the version that wrote it did not store them.
        """
        accepted = [event.data.get("sources") for event in self.db.events(REWARD_CHANGED) if event.step == step]
        before = accepted[-1] if accepted else saved
        if not isinstance(before, Mapping):
            return []
        now = self.reward_sources
        return [name for name in now if before.get(name) and now[name] and before[name] != now[name]]

    def reward_changed(self, step: int, names: Sequence[str]) -> None:
        """Record that these functions score otherwise from `step` on, and that evaluations until now do not count as
        those of the same reward."""
        message = (
            f"{', '.join(names)}: the source has changed since the checkpoint of step {step}; from here on the run "
            "trains on another reward, and its evaluations are not compared with those before"
        )
        evaluated = max((result.step for result in self.db.evals()), default=-1)
        data = {"sources": self.reward_sources, "evaluated": evaluated}
        self.db.event(REWARD_CHANGED, message, step, data)
        self.log.line(REWARD_CHANGED, message)
        self.callback.on_event("warning", message)

    def apply_stop_rules(self, step: int) -> None:
        """End a run that collapses: keep the last good checkpoint, drop later ones, say why.

        Raises:
            CollapseError: a rule fired.
        """
        for warning in self.stops.idle(step):
            self.note(step, "warning", warning)
        event = self.stops.check(step)
        if event is None:
            return
        dropped = [] if event.good is None else checkpoint.remove_after(self.run.checkpoints, event.good)
        message = event.message(self.run.path, dropped)
        self.db.event(COLLAPSE, message, step, {"rule": event.decision.rule.name, "good": event.good})
        self.log.line(COLLAPSE, message)
        raise CollapseError(message)

    def note(self, step: int | None, kind: str, message: str) -> None:
        """Record and log an event, and tell the callback."""
        self.record_event(step, kind, message)
        self.log.line(kind, message)
        self.callback.on_event(kind, message)

    def record_event(self, step: int | None, kind: str, message: str) -> None:
        """Record an event without telling the callback."""
        self.db.event(kind, message, step)

    def last_facts(self, kind: str) -> dict[str, str]:
        """The newest `facts` of a kind; empty when there are none."""
        events = self.db.events(kind)
        return {str(name): str(value) for name, value in events[-1].data.items()} if events else {}

    def facts(self, kind: str, step: int, data: Mapping[str, str]) -> None:
        """Record and log facts about this attempt that a later reader needs; the callback is not told."""
        text = ", ".join(f"{name} {value}" for name, value in data.items())
        self.db.event(kind, text, step, data)
        self.log.line(kind, text)

    def close(self) -> None:
        self.db.close()
        self.log.close()

    @staticmethod
    def _rows(
        experience: Experience, credits: Mapping[str, Credit], logprobs: Mapping[str, np.ndarray]
    ) -> list[RolloutRecord]:
        seconds = experience.generate_seconds + experience.reward_seconds
        prompts = {prompt.id: prompt for prompt in experience.prompts}
        return [
            RolloutRecord(
                prompt=prompts[rollout.context.prompt_id],
                rollout=rollout,
                credit=credits.get(rollout.id),
                logprobs=tuple(logprobs[rollout.id].tolist()) if rollout.id in logprobs else None,
                seconds=seconds,
            )
            for rollout in experience.rollouts
        ]


def _sample(experience: Experience) -> tuple[Prompt, Rollout] | None:
    """One rollout worth reading: the first usable one of the step."""
    usable = [rollout for rollout in experience.rollouts if rollout.outcome.usable]
    return (experience.prompt_of(usable[0]), usable[0]) if usable else None


# Prints of reward functions and environments, in the run's log.

PRINTS_LIMIT = 1 << 24
"""Characters of one process's prints that the log takes; the rest is counted."""


class Prints:
    """A listener for `printing_to`: writes into the log, and tells the callback of the first print of each function.

    Args:
        log: of the run.
    """

    def __init__(self, log: RunLog, callback: Callback) -> None:
        self._log, self._callback = log, callback
        self._sources: set[str] = set()
        self._left = PRINTS_LIMIT

    def __call__(self, source: str, text: str) -> None:
        if source not in self._sources:
            self._sources.add(source)
            self._callback.on_event("printed", f'{source} prints; see the lines "printed" in {self._log.path}')
        if self._left <= 0:
            return
        self._left -= len(text)
        self._log.line("printed", f"{source}: {text}")
        if self._left <= 0:
            self._log.line("printed", f"{PRINTS_LIMIT:,} characters were printed; no more are kept in this log")
