"""What a script or notebook is told while a run goes on."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from coterie.callbacks import NullObserver, Observer, RunInfo
from coterie.types import EvalResult

if TYPE_CHECKING:
    from coterie.types import Prompt, Rollout


class Callback:
    """Methods that are called, in order and from the training thread, while a run goes on; override those of interest.

    An exception that a method raises ends the run; it can be resumed from its newest checkpoint.
    """

    def on_start(self, info: RunInfo) -> None:
        """Before the first step: the run's folder, its model, how many prompts and steps there are."""

    def on_step(self, step: int, metrics: Mapping[str, float], sample: tuple[Prompt, Rollout] | None) -> None:
        """After each step.

        Args:
            metrics: by name, e.g. `reward/mean` (docs/runs.md lists them).
            sample: one rollout of the step with its prompt; None where none is usable.
        """

    def on_evaluate(self, results: Sequence[EvalResult]) -> None:
        """After each held-out evaluation: one result for each task, then `all` where there are several tasks."""

    def on_event(self, kind: str, message: str) -> None:
        """An event worth a line, e.g. `checkpoint` or `warning`."""

    def on_end(self, run: Path, message: str) -> None:
        """After the last step, or after an interrupted one: the run's folder."""


class Relay:
    """An observer that passes everything on to another one, and what callbacks have a method for to these."""

    def __init__(self, observer: Observer, callbacks: Sequence[Callback]) -> None:
        self.observer = observer
        self.callbacks = callbacks

    def started(self, info: RunInfo) -> None:
        self.observer.started(info)
        for callback in self.callbacks:
            callback.on_start(info)

    def stepped(self, step: int, metrics: Mapping[str, float], sample: tuple[Prompt, Rollout] | None) -> None:
        self.observer.stepped(step, metrics, sample)
        for callback in self.callbacks:
            callback.on_step(step, metrics, sample)

    def evaluated(self, results: Sequence[EvalResult]) -> None:
        self.observer.evaluated(results)
        for callback in self.callbacks:
            callback.on_evaluate(results)

    def noted(self, kind: str, message: str) -> None:
        self.observer.noted(kind, message)
        for callback in self.callbacks:
            callback.on_event(kind, message)

    def progressed(self, activity: str, done: int = 0, total: int = 0, unit: str = "") -> None:
        self.observer.progressed(activity, done, total, unit)

    def finished(self, run: Path, message: str) -> None:
        self.observer.finished(run, message)
        for callback in self.callbacks:
            callback.on_end(run, message)


@contextmanager
def observing(callback: Callback | Sequence[Callback] | None, quiet: bool) -> Generator[Observer]:
    """The observer of one call: the console's, or none, and the callbacks.

    Raises:
        TypeError: something given is not a `Callback`.
    """
    callbacks = [callback] if isinstance(callback, Callback) else list(callback or ())
    for given in callbacks:
        if not isinstance(given, Callback):
            raise TypeError(f"callback = {given!r}; expected an object of a subclass of coterie.Callback, or a list")
    if quiet:
        yield Relay(NullObserver(), callbacks)
        return
    from coterie.console import watcher

    with watcher() as watch:
        watch.progressed("loading PyTorch and transformers")
        yield Relay(watch, callbacks)
