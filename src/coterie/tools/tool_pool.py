"""Worker processes of users' tools: a tool that hangs or dies costs its own call, no more."""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
    before: list[tuple[str, Mapping[str, Any]]]
    """Earlier calls of the class in this episode, to which this one is added, unless it hangs or dies: it would do so
    again when the state is made anew."""


@dataclass(slots=True)
class _Slot:
    worker: Worker | None = None
    episodes: set[str] = field(default_factory=set)
    """Whose instances the worker has."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def drop(self) -> None:
        """End the worker; the next call starts another."""
        if self.worker is not None:
            self.worker.kill()
        self.worker = None
        self.episodes.clear()


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
        self._turns = itertools.count()
        self._folder, self._folders = os.getcwd(), search_path()
        weakref.finalize(self, _end, self._slots)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [slot.worker.pid for slot in self._slots if slot.worker is not None]

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """Results of calls, which run at once where there are workers; those of one instance run in their order.

        Raises:
            ConfigError: a tool cannot be imported in a worker.
        """
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(request.target if request.method else str(number), []).append(number)
        results: dict[int, Result] = {}

        def run_group(numbers: Sequence[int]) -> None:
            for number in numbers:
                results[number] = self._result(requests[number])

        if len(groups) == 1:
            run_group(range(len(requests)))
        else:
            with ThreadPoolExecutor(max_workers=len(self._slots)) as executor:
                list(executor.map(run_group, groups.values()))
        return [results[number] for number in range(len(requests))]

    def forget(self, episode: str) -> None:
        """End an episode: its instances are dropped."""
        for slot in self._slots:
            if episode not in slot.episodes:
                continue
            with slot.lock:
                slot.episodes.discard(episode)
                if slot.worker is not None:
                    try:
                        _exchange(slot.worker, {"forget": episode}, self.timeout_s)
                    except WorkerDiedError:
                        slot.drop()

    def close(self) -> None:
        """End every worker and all processes that tools started."""
        for slot in self._slots:
            with slot.lock:
                slot.drop()

    def _acquired(self, request: Request) -> _Slot:
        """A slot with its lock taken: of an instance the one in which it lives, else a free one where there is one."""
        if request.method:
            slot = self._slots[sum(request.episode.encode()) % len(self._slots)]
        else:
            slot = next((slot for slot in self._slots if slot.lock.acquire(blocking=False)), None)
            if slot is not None:
                return slot
            slot = self._slots[next(self._turns) % len(self._slots)]
        slot.lock.acquire()
        return slot

    def _result(self, request: Request) -> Result:
        slot = self._acquired(request)
        try:
            worker = slot.worker = slot.worker or self._started()
            fresh = request.episode not in slot.episodes
            message = {
                "target": request.target,
                "method": request.method,
                "arguments": dict(request.arguments),
                "episode": request.episode,
                "limit": self.limit,
                "row": dict(request.row) if fresh else {},
                "before": list(request.before) if fresh else [],
            }
            if request.method:
                slot.episodes.add(request.episode)
            reply = _exchange(worker, message, self.timeout_s)
        except WorkerDiedError as error:
            slot.drop()
            kind = "timeout" if "within" in str(error) else "crashed"
            return Result(content=f"Error: the tool {error}", error=kind)
        except BaseException:
            slot.drop()  # a late reply would be taken for that of the next request
            raise
        finally:
            slot.lock.release()
        _log(worker)
        if request.method:
            request.before.append((request.method, request.arguments))
        return Result(content=reply["content"], error=reply["error"])

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
