"""Ctrl-C once: finish the step (or abandon the evaluation), checkpoint, stop. Twice: stop now. SIGTERM counts as the
first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self


class AbandonedError(Exception):
    """An evaluation was given up because the run was asked to stop."""


class StopSignal:
    """While entered, turns the first interrupt into `requested = True`; the second raises KeyboardInterrupt.

    Outside the main thread no handler can be set, and `requested` is simply what the caller makes it.

    Args:
        announce: told once, when the first interrupt comes, what will happen now.
        plan: what the loop will do before it stops, e.g. `finishing the current step`.
    """

    def __init__(
        self, announce: Callable[[str], None] = lambda _: None, plan: Callable[[], str] = lambda: "stopping"
    ) -> None:
        self.requested = False
        self.name = ""
        """Of the signal that asked, e.g. `SIGTERM`."""
        self._announce, self._plan = announce, plan
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._first)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _first(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested, self.name = True, signal.Signals(number).name
        self._announce(f"interrupted by {self.name}: {self._plan()}; press Ctrl-C again to quit now")
