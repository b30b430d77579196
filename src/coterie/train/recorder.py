"""Where a running loop puts what it knows: rollouts, metrics, evaluations, events, checkpoints, and the callback."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coterie.algo.estimators import Predictions
from coterie.callbacks import Callback
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
from coterie.train.stop_rules import StopMonitor, StopRule
from coterie.types import PASS, REWARD, Credit, Prompt, Rollout

EVALS = "evals"
"""Folder of the held-out rollouts, one file per evaluation."""
PROMPTS = "prompts"
"""Folder of the training prompts, a file for each step that met new ones."""


class Recorder:
    """Writes one run.

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
        self.guard = StopMonitor(stops, self.db, run.checkpoints)
        self.log: RunLog = run.open_log()
        self.history = PromptStatsTable(criterion)
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

    def step(
        self,
        step: int,
        metrics: Mapping[str, float],
        experience: Experience,
        credits: Sequence[Credit],
        logprobs: Mapping[str, np.ndarray],
        foresight: Predictions | None = None,
    ) -> None:
        """One training step: rollouts first, then the metrics that say the step is whole."""
        experience, met = self.history.stamp(step, experience, foresight or Predictions())
        rows = self._rows(experience, {credit.rollout_id: credit for credit in credits}, logprobs)
        rollouts.write_step(self.run.rollouts, step, rows)
        prompts.write_step(self.prompts, step, met)
        self.db.record(step, metrics)
        self.log.line("step", " ".join(f"{name}={value:.6g}" for name, value in metrics.items()))
        self.history.learn(step, experience.rollouts)
        self.callback.on_step(step, metrics, _sample(experience))

    def evaluation(self, step: int, found: Evaluation) -> None:
        """One held-out evaluation with its rollouts."""
        if found.experience is None:
            return
        # A kill between the two writes leaves the file alone: only the database says that an evaluation is whole.
        parquet.truncate_after(self.evals, step - 1)
        rollouts.write_step(self.evals, step, self._rows(found.experience, {}, {}))
        self.db.record_evals(found.results, found.items)
        for result in found.results:
            for name in (PASS, REWARD):
                if (estimate := result.metric(name)) is not None:
                    interval = f"[{estimate.low:.4f}, {estimate.high:.4f}]"
                    self.log.line("eval", f"{result.task} {name}={estimate.value:.4f} {interval}")
        self.callback.on_evaluate(found.results)
        lost = len(found.experience.errors)
        if lost:
            first = found.experience.errors[0]
            completions = counted(lost, "held-out completion")
            self.note(
                step,
                "warning",
                f"{completions} ended in an error, counted as wrong in pass@k and left out of the mean reward: "
                f"{first.error}",
            )
        if found.experience.late:
            self.note(step, "warning", late(found.experience))

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
        """The newest step of which a checkpoint was recorded, whether or not it is still there."""
        return max((event.step or 0 for event in self.db.events("checkpoint")), default=None)

    def has_evaluation(self, step: int) -> bool:
        """Whether the held-out prompts were measured at this step."""
        return any(result.step == step for result in self.db.evals())

    def checkpoint(
        self,
        step: int,
        parts: Sequence[Callable[[Path], None]],
        counters: Mapping[str, float],
        state: Mapping[str, Any],
    ) -> None:
        """Everything a resume needs, verified before older ones go.

        Args:
            parts: each writes its files into the folder it is given.
            counters: the learner's.
        """
        held: dict[str, Any] = dict(state)
        held |= {"learner": dict(counters), "data_hash": self.data_hash, "reward_sources": self.reward_sources}

        def write(folder: Path) -> None:
            for part in (*parts, self.history.save):
                part(folder)
            (folder / "model").mkdir()
            self.save_model(folder / "model")

        path = checkpoint.save(
            self.run.checkpoints,
            step,
            write,
            held,
            keep=self.keep,
            run_id=self.run.name,
            config_hash=self.config_hash,
            spare=self.guard.good_checkpoint(step),
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

    def obey_stop_rules(self, step: int) -> None:
        """End a run that collapses: keep the last good checkpoint, drop later ones, say why.

        Raises:
            CollapseError: a rule fired.
        """
        for warning in self.guard.idle(step):
            self.note(step, "warning", warning)
        collapse = self.guard.check(step)
        if collapse is None:
            return
        dropped = [] if collapse.good is None else checkpoint.remove_after(self.run.checkpoints, collapse.good)
        message = collapse.message(self.run.path, dropped)
        self.db.event(COLLAPSE, message, step, {"rule": collapse.verdict.rule.name, "good": collapse.good})
        self.log.line(COLLAPSE, message)
        raise CollapseError(message)

    def note(self, step: int | None, kind: str, message: str) -> None:
        """An event: recorded, logged and told."""
        self.record_event(step, kind, message)
        self.log.line(kind, message)
        self.callback.on_event(kind, message)

    def record_event(self, step: int | None, kind: str, message: str) -> None:
        """An event that the callback knows already."""
        self.db.event(kind, message, step)

    def last_facts(self, kind: str) -> dict[str, str]:
        """The newest `facts` of a kind; empty when there are none."""
        found = self.db.events(kind)
        return {str(name): str(value) for name, value in found[-1].data.items()} if found else {}

    def facts(self, kind: str, step: int, data: Mapping[str, str]) -> None:
        """What a later reader needs to know about this attempt; recorded and logged, not told."""
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


def late(experience: Experience) -> str:
    """What to say when the deadline cut completions."""
    return (
        f"{counted(experience.late, 'completion')} truncated by sampling.timeout_s, which depends on this machine's "
        "speed and will not repeat; raise it"
    )


def _sample(experience: Experience) -> tuple[Prompt, Rollout] | None:
    """One rollout worth reading: the first usable one of the step."""
    usable = [rollout for rollout in experience.rollouts if rollout.outcome.usable]
    return (experience.prompt_of(usable[0]), usable[0]) if usable else None


# What reward functions and environments print, in the run's log.

MOST = 1 << 24
"""Characters of one process's prints that the log takes; the rest is counted."""


class Prints:
    """A listener for `printing_to`: writes into the log, and tells the callback of the first print of each function.

    Args:
        log: of the run.
    """

    def __init__(self, log: RunLog, callback: Callback) -> None:
        self._log, self._callback = log, callback
        self._sources: set[str] = set()
        self._left = MOST

    def __call__(self, source: str, text: str) -> None:
        if source not in self._sources:
            self._sources.add(source)
            self._callback.on_event("printed", f'{source} prints; see the lines "printed" in {self._log.path}')
        if self._left <= 0:
            return
        self._left -= len(text)
        self._log.line("printed", f"{source}: {text}")
        if self._left <= 0:
            self._log.line("printed", f"{MOST:,} characters were printed; no more are kept in this log")
