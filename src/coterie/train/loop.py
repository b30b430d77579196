"""The loop of a run around its steps: evaluations, checkpoints, stops, and where a resume goes on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from coterie.engines.base import Engine, check_version
from coterie.policy.learner import Learner
from coterie.train.evaluate import EVALUATING, Evaluator
from coterie.train.recorder import Recorder
from coterie.train.step import LoopSettings, Progress
from coterie.train.stop_rules import AbandonedError, StopSignal


@dataclass(slots=True, kw_only=True)
class Loop(ABC):
    """A run's loop; a kind of training adds its step."""

    learner: Learner
    engine: Engine
    evaluator: Evaluator
    recorder: Recorder
    """Rollouts, metrics, events, checkpoints, callbacks."""
    settings: LoopSettings
    progress: Progress = field(default_factory=Progress)
    evaluating: bool = False
    """An evaluation is going on."""

    @abstractmethod
    def advance(self) -> None:
        """Make and record one step."""

    @abstractmethod
    def writers(self) -> Sequence[Callable[[Path], None]]:
        """What writes files of its own into a checkpoint's folder."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """The rest of a checkpoint's state, JSON-able."""

    @abstractmethod
    def load(self, folder: Path) -> str:
        """Read what `writers` wrote; returns a warning of what could not be kept, or nothing."""

    def run(self, stop: StopSignal) -> bool:
        """Train to the last step; True when it got there, False when it was asked to stop before.

        Raises:
            CollapseError: a stop rule fired.
        """
        while True:
            if self.settings.evaluates(self.progress) and not stop.requested:
                self.evaluate(stop)
            if self.progress.step and (stop.requested or self.saves()):
                self.checkpoint()
            if self.settings.finished(self.progress) or stop.requested:
                return self.settings.finished(self.progress) and not self.settings.evaluates(self.progress)
            self.advance()
            self.recorder.apply_stop_rules(self.progress.step)

    def saves(self) -> bool:
        """True if a checkpoint is to be saved now."""
        return self.settings.saves(self.progress)

    def settle(self) -> None:
        """Have the engine serve the present weights, with nothing begun that is not finished.

        Raises:
            EngineError: it serves others.
        """
        check_version(self.engine.version, self.progress.step)

    def close(self) -> None:
        """End what the engine and the learner run."""
        self.engine.close()
        self.learner.close()

    def best(self) -> int | None:
        """Step of the checkpoint that is kept as the best so far; None where no step counts as such."""
        return None

    def evaluate(self, stop: StopSignal) -> None:
        """Measure the held-out prompts with the weights as they are; a request to stop abandons it."""
        step = self.progress.step
        self.settle()

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
            self.settle()
            state = {**self.progress.state(), "version": self.engine.version, **self.state()}
            state["scale"] = self.evaluator.criterion.scale.state()
            writers = [self.learner.save, *self.writers()]
            self.recorder.checkpoint(step, writers, self.learner.counters(), state, best=self.best())
            self.progress = replace(self.progress, saved=step)

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state; the learner's tensors are loaded beside this."""
        self.progress = Progress.restored(state, evaluated=self.recorder.has_evaluation(int(state["step"])))
        self.evaluator.criterion.scale.restore(state["scale"])
        self.engine.commit(int(state["version"]))
