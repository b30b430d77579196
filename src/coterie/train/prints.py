"""What reward functions and environments print, in the run's log."""

from __future__ import annotations

from coterie.observer import Observer
from coterie.runs.log import RunLog

MOST = 1 << 24
"""Characters of one process's prints that the log takes; the rest is counted."""


class Prints:
    """A listener for `printing_to`: writes into the log, and tells the observer of the first print of each function.

    Args:
        log: of the run.
    """

    def __init__(self, log: RunLog, observer: Observer) -> None:
        self._log, self._observer = log, observer
        self._sources: set[str] = set()
        self._left = MOST

    def __call__(self, source: str, text: str) -> None:
        if source not in self._sources:
            self._sources.add(source)
            self._observer.noted("printed", f'{source} prints; see the lines "printed" in {self._log.path}')
        if self._left <= 0:
            return
        self._left -= len(text)
        self._log.line("printed", f"{source}: {text}")
        if self._left <= 0:
            self._log.line("printed", f"{MOST:,} characters were printed; no more are kept in this log")
