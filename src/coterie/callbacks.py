"""Callbacks of a run, and the output of users' functions."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from coterie.types import EvalResult, Prompt, Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """Facts of a run before its first step."""

    run: Path
    steps: int
    first_step: int
    """1, or one after the checkpoint that a resume started from."""
    model: str
    parameters: int
    trained_parameters: int
    train_prompts: int
    heldout_prompts: int
    prompts_per_step: int
    """Conversations of a step, where they are imitated."""
    group_size: int
    """0 where nothing is sampled."""


class Callback:
    """Base class of callbacks: methods that a run calls, in order and from the training thread. Override those of
    interest; each does nothing here.

    No method may change the run. An exception that one raises ends the run, which can be resumed from its newest
    checkpoint.
    """

    def on_start(self, info: RunInfo) -> None:
        """Called before the first step."""

    def on_step(self, step: int, metrics: Mapping[str, float], sample: tuple[Prompt, Rollout] | None) -> None:
        """Called after each step.

        Args:
            metrics: by name, e.g. `reward/mean` (docs/runs.md lists them).
            sample: one rollout of the step with its prompt; None where none is usable.
        """

    def on_evaluate(self, results: Sequence[EvalResult]) -> None:
        """Called after each held-out evaluation: one result for each task, then `all` where there are several tasks."""

    def on_event(self, kind: str, message: str) -> None:
        """Called for an event worth a line: `checkpoint`, `warning`, `stop`, `skipped_update`, `asset` …"""

    def on_progress(self, name: str, done: int = 0, total: int = 0, unit: str = "") -> None:
        """Called often while an activity goes on, also before `on_start`.

        Args:
            name: of the activity, e.g. `loading the model`.
            done: of `total`; a total of 0 means that it cannot be counted.
            unit: of both, in the plural; empty for a count of nothing in particular.
        """

    def on_end(self, run: Path, message: str) -> None:
        """Called after the last step, or after an interrupted one, with the run's folder."""


class CallbackList(Callback):
    """Several callbacks as one, called in order."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = callbacks

    def on_start(self, info: RunInfo) -> None:
        for callback in self.callbacks:
            callback.on_start(info)

    def on_step(self, step: int, metrics: Mapping[str, float], sample: tuple[Prompt, Rollout] | None) -> None:
        for callback in self.callbacks:
            callback.on_step(step, metrics, sample)

    def on_evaluate(self, results: Sequence[EvalResult]) -> None:
        for callback in self.callbacks:
            callback.on_evaluate(results)

    def on_event(self, kind: str, message: str) -> None:
        for callback in self.callbacks:
            callback.on_event(kind, message)

    def on_progress(self, name: str, done: int = 0, total: int = 0, unit: str = "") -> None:
        for callback in self.callbacks:
            callback.on_progress(name, done, total, unit)

    def on_end(self, run: Path, message: str) -> None:
        for callback in self.callbacks:
            callback.on_end(run, message)


Listener = Callable[[str, str], None]
_listeners: list[Listener] = []
_pending: deque[tuple[str, str]] = deque(maxlen=1000)


def printed(source: str, text: str) -> None:
    """Forward what a function of the user's printed to the innermost `printing_to`, or keep it for the next one.

    Args:
        source: the function as the settings name it.
    """
    if _listeners:
        _listeners[-1](source, text)
    else:
        _pending.append((source, text))


@contextmanager
def printing_to(listener: Listener) -> Generator[None]:
    """Context in which `listener(source, text)` gets the output of users' functions, and first what they printed while
    there was no listener."""
    while _pending:
        listener(*_pending.popleft())
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def prints_are_logged() -> bool:
    """True where the innermost listener is not a `ToStderr`."""
    return bool(_listeners) and not isinstance(_listeners[-1], ToStderr)


class _OutputByThread:
    """Stream whose text goes where the writing thread wants it, else to the stream that it stands for."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return (_output.get() or self._stream).write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_output: ContextVar[TextIO | None] = ContextVar("output", default=None)
_output_lock = threading.Lock()


@contextmanager
def thread_output_to(target: TextIO) -> Generator[None]:
    """Context in which what this thread, or this task of an event loop, prints goes to `target`; others go on."""
    with _output_lock:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if not isinstance(stream, _OutputByThread):  # stays: another thread may be about to write to it
                setattr(sys, name, _OutputByThread(stream))
    token = _output.set(target)
    try:
        yield
    finally:
        _output.reset(token)


class ToStderr:
    """Listener that prints to standard error, where there is no log.

    Args:
        max_lines: lines that are shown.
    """

    def __init__(self, max_lines: int = 40) -> None:
        self._left = max_lines

    def __call__(self, source: str, text: str) -> None:
        from coterie.text import safe_text

        for line in text.splitlines():
            self._left -= 1
            if self._left < 0:
                return
            more = " (what is printed after this is left out)" if self._left == 0 else ""
            print(f"{source} printed: {safe_text(line)}{more}", file=sys.stderr)
