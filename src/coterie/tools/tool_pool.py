"""Worker processes of users' tools: a tool that hangs or dies costs its own call, no more."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from coterie.callbacks import printed
from coterie.config.user_functions import search_path
from coterie.errors import ConfigError
from coterie.rewards.process import Worker, WorkerDiedError, wait_for_any
from coterie.tools.base import Result

LOAD_TIMEOUT_S = 120.0
"""Wall-clock limit of importing the tools; the deadline of a call begins after."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A call of a user's tool."""

    target: str
    method: str
    arguments: Mapping[str, Any]
    episode: str
    """Key of the episode, whose calls go to one worker."""
    row: Mapping[str, Any]
    """Columns of the prompt, for `reset`."""
    before: Sequence[tuple[str, Mapping[str, Any]]]
    """Earlier calls of the class in this episode."""


@dataclass(slots=True)
class _Slot:
    worker: Worker | None = None
    episodes: set[str] = field(default_factory=set)
    queue: deque[tuple[int, Request]] = field(default_factory=deque)
    job: int | None = None


class ToolPool:
    """Calls of users' tools in worker processes that can be killed. Safe to use from several threads.

    Workers start with the first call, are replaced when they hang or die, and end with this object.

    Args:
        targets: `module:function` or `module:Class` of all tools.
        workers: processes.
        timeout_s: deadline of a call.
        limit: characters of a result.
    """

    def __init__(self, targets: Sequence[str], *, workers: int, timeout_s: float, limit: int) -> None:
        self.targets, self.timeout_s, self.limit = list(targets), timeout_s, limit
        self._slots = [_Slot() for _ in range(workers)]
        self._turn = 0
        self._lock = threading.Lock()
        self._folder, self._folders = os.getcwd(), search_path()
        weakref.finalize(self, _end, self._slots)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [slot.worker.pid for slot in self._slots if slot.worker is not None]

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """Results of calls, which run at once where there are workers.

        Raises:
            ConfigError: a tool cannot be imported in a worker.
        """
        results: list[Result | None] = [None] * len(requests)
        with self._lock:
            try:
                for number, request in enumerate(requests):
                    self._slot(request).queue.append((number, request))
                while any(slot.queue or slot.job is not None for slot in self._slots):
                    self._step(results)
            except BaseException:
                self._close()  # late replies would be taken for those of the next request
                raise
        return [result for result in results if result is not None]

    def forget(self, episode: str) -> None:
        """End an episode: its instances are dropped."""
        with self._lock:
            for slot in self._slots:
                if episode in slot.episodes and slot.worker is not None:
                    slot.episodes.discard(episode)
                    try:
                        _exchange(slot.worker, {"forget": episode}, self.timeout_s)
                    except WorkerDiedError:
                        self._drop(slot)

    def close(self) -> None:
        """End every worker and all processes that tools started."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        for slot in self._slots:
            slot.queue.clear()
            slot.job = None
            self._drop(slot)

    def _drop(self, slot: _Slot) -> None:
        if slot.worker is not None:
            slot.worker.kill()
        slot.worker = None
        slot.episodes.clear()

    def _slot(self, request: Request) -> _Slot:
        if request.method:  # its instance lives in one worker
            return self._slots[sum(request.episode.encode()) % len(self._slots)]
        self._turn += 1
        return self._slots[self._turn % len(self._slots)]

    def _step(self, results: list[Result | None]) -> None:
        """Send what can be sent, and wait for a reply or the nearest deadline."""
        for slot in self._slots:
            if slot.queue and slot.job is None:
                self._send(slot)
        busy = [slot.worker for slot in self._slots if slot.job is not None and slot.worker is not None]
        wait_for_any(busy, min(worker.deadline for worker in busy) - time.monotonic())
        for slot in self._slots:
            if slot.job is None or slot.worker is None:
                continue
            try:
                reply = slot.worker.advance()
            except WorkerDiedError as error:
                kind = "timeout" if "within" in str(error) else "crashed"
                self._drop(slot)
                results[slot.job], slot.job = Result(content=f"Error: the tool {error}", error=kind), None
                continue
            if reply is not None:
                _log(slot.worker)
                results[slot.job], slot.job = Result(content=reply["content"], error=reply["error"]), None

    def _send(self, slot: _Slot) -> None:
        if slot.worker is None:
            slot.worker = self._started()
        number, request = slot.queue.popleft()
        fresh = request.episode not in slot.episodes
        line = json.dumps(
            {
                "call": number,
                "target": request.target,
                "method": request.method,
                "arguments": dict(request.arguments),
                "episode": request.episode,
                "limit": self.limit,
                "row": dict(request.row) if fresh else {},
                "before": list(request.before) if fresh else [],
            }
        )
        if request.method:
            slot.episodes.add(request.episode)
        slot.worker.send_request(line, seconds=self.timeout_s)
        slot.job = number

    def _started(self) -> Worker:
        worker = Worker(self._folder, module="coterie.tools.tool_worker")
        request = {"load": self.targets, "folders": self._folders}
        request |= {"path": [os.path.abspath(path) for path in sys.path if path]}
        try:
            reply = _exchange(worker, request, LOAD_TIMEOUT_S)
        except WorkerDiedError as error:
            worker.kill()
            raise ConfigError(f"importing the tools {', '.join(self.targets)} {error}") from error
        _log(worker)
        if "failed" in reply:
            worker.kill()
            raise ConfigError(str(reply["failed"]))
        return worker


def _exchange(worker: Worker, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    worker.send_request(json.dumps(request), seconds=seconds)
    while True:
        reply = worker.advance()
        if reply is not None:
            return reply
        wait_for_any([worker], worker.deadline - time.monotonic())


def _log(worker: Worker) -> None:
    text = worker.printed()
    if text:
        printed("tools", text)


def _end(slots: list[_Slot]) -> None:
    for slot in slots:
        if slot.worker is not None:
            slot.worker.kill()
