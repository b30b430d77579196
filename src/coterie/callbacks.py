"""What a training loop tells the outside while it runs. The console is one observer, a test's list another."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from coterie.types import EvalResult, Prompt, Rollout


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """Known before the first step."""

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
    group_size: int


class Observer(Protocol):
    """Callbacks of a run, all from the training thread, in order; none may change anything."""

    def started(self, info: RunInfo) -> None: ...

    def stepped(self, step: int, metrics: Mapping[str, float], sample: tuple[Prompt, Rollout] | None) -> None:
        """After each step; `sample` is one usable rollout of it with its prompt."""
        ...

    def evaluated(self, results: Sequence[EvalResult]) -> None:
        """After each held-out evaluation; one result per task, then `all` where there are several tasks."""
        ...

    def noted(self, kind: str, message: str) -> None:
        """An event worth a line: `checkpoint`, `warning`, `stop`, `skipped_update`, `asset` …"""
        ...

    def progressed(self, activity: str, done: int = 0, total: int = 0, unit: str = "") -> None:
        """What is being done now, of which nothing remains to be read once it is over.

        Called often, also before `started`.

        Args:
            activity: e.g. `loading the model`.
            done: of `total`; a total of 0 means that it cannot be counted.
            unit: of both, in the plural; empty for a count of nothing in particular.
        """
        ...

    def finished(self, run: Path, message: str) -> None: ...


class NullObserver:
    """Observes nothing."""

    def started(self, info: RunInfo) -> None:
        pass

    def stepped(self, step: int, metrics: Mapping[str, float], sample: tuple[Prompt, Rollout] | None) -> None:
        pass

    def evaluated(self, results: Sequence[EvalResult]) -> None:
        pass

    def noted(self, kind: str, message: str) -> None:
        pass

    def progressed(self, activity: str, done: int = 0, total: int = 0, unit: str = "") -> None:
        pass

    def finished(self, run: Path, message: str) -> None:
        pass


Listener = Callable[[str, str], None]
_listeners: list[Listener] = []
_unheard: deque[tuple[str, str]] = deque(maxlen=1000)


def printed(source: str, text: str) -> None:
    """Pass on what a function of the user's printed: to the innermost `printing_to`, or to the next one.

    Args:
        source: the function as the settings name it.
    """
    if _listeners:
        _listeners[-1](source, text)
    else:
        _unheard.append((source, text))


@contextmanager
def printing_to(tell: Listener) -> Generator[None]:
    """Have `tell(source, text)` called with all that functions of the user's print meanwhile, and with what they
    printed before while nobody listened."""
    while _unheard:
        tell(*_unheard.popleft())
    _listeners.append(tell)
    try:
        yield
    finally:
        _listeners.remove(tell)


def prints_are_logged() -> bool:
    """Whether the innermost listener is other than a `ToStderr`."""
    return bool(_listeners) and not isinstance(_listeners[-1], ToStderr)


class ToStderr:
    """A listener for people, where there is no log.

    Args:
        most: lines that are shown.
    """

    def __init__(self, most: int = 40) -> None:
        self._left = most

    def __call__(self, source: str, text: str) -> None:
        from coterie.text import safe_text

        for line in text.splitlines():
            self._left -= 1
            if self._left < 0:
                return
            more = " (what is printed after this is left out)" if self._left == 0 else ""
            print(f"{source} printed: {safe_text(line)}{more}", file=sys.stderr)
