"""The process in which an engine lives: `python -m coterie.cluster.engine_service FD PARENT`.

It reads messages and writes answers on the inherited socket FD (frames.py). PARENT is the process to die with, or 0.
"""

from __future__ import annotations

import importlib
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from coterie.cluster.frames import BrokenStreamError, Frames, packed_turn, request_of, sampling_of
from coterie.engines.base import Engine
from coterie.errors import CoterieError
from coterie.rewards.worker import isolate
from coterie.types import StopReason


@dataclass(kw_only=True)
class ServedEngine:
    """An engine, with the numbers of the requests at the other end.

    Args:
        engine: made by the function that the order names.
        load: has the engine sample from the weights that are in the shared memory now, and wakes it where it sleeps.
        rest: gives the memory back that only sampling needs, weights included.
    """

    engine: Engine
    load: Callable[[], None]
    rest: Callable[[], None] = lambda: None
    _commits: int = 0
    """Number of the last commit."""
    _loaded: int | None = None
    """That of the commit whose weights the engine has; None: it sleeps, or has read none."""
    _ids: dict[int, int] = field(default_factory=dict)
    """Number at the other end → id of the engine, of each request since the last commit."""
    _numbers: dict[int, int] = field(default_factory=dict)

    def answer(self, calls: Sequence[Sequence[Any]]) -> dict[str, Any]:
        """Make calls in order; returns the turns that ended, and the value of the last call."""
        ended, value = [], None
        for verb, *arguments in calls:
            value = getattr(self, f"_{verb}")(*arguments)
            if verb == "step":
                ended += value
        return {"ended": ended, "value": value}

    def _commit(self, version: int, commits: int) -> None:
        """Free what is open or kept, and serve a version; its weights are read once.

        Args:
            commits: number of the commit at the other end.
        """
        self._free()
        self._commits = commits
        self._wake()
        self.engine.commit(version)

    def _free(self) -> None:
        """End what is open or kept."""
        for request in list(self._numbers):
            self.engine.abort(request)
        self._ids.clear()
        self._numbers.clear()

    def _wake(self) -> None:
        """Read the weights of the last commit, unless the engine has them."""
        if self._loaded != self._commits:
            self._loaded = None
            self.load()
            self._loaded = self._commits

    def _sleep(self) -> None:
        self._free()
        self._loaded = None
        self.rest()

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()

    def _submit(self, number: int, request: Mapping[str, Any], sampling: Mapping[str, Any]) -> None:
        self._wake()
        identity = self.engine.submit(request_of(request), sampling_of(sampling))
        self._ids[number], self._numbers[identity] = identity, number

    def _step(self) -> list[tuple[int, dict[str, Any]]]:
        return [(self._numbers[request], packed_turn(turn)) for request, turn in self.engine.step()]

    def _abort(self, number: int, reason: str) -> dict[str, Any] | None:
        turn = self.engine.abort(self._ids[number], StopReason(reason))
        return None if turn is None else packed_turn(turn)

    def _sampled(self, number: int, start: int) -> tuple[list[int], list[float]] | None:
        return self.engine.sampled(self._ids[number], start)


class Served(Protocol):
    """What a service serves: an engine, or a learner rank."""

    def answer(self, calls: Sequence[Sequence[Any]]) -> dict[str, Any]:
        """Make calls, each a verb and its arguments, in order."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


def serve(frames: Frames) -> None:
    """Build what the first message orders, then answer messages until the other end closes."""
    order = frames.receive()
    served = guarded(0, lambda: built(order))
    frames.send({"id": 0, "error": served["error"]} if "error" in served else {"id": 0})
    if "error" in served:
        return
    service: Served = served["built"]
    try:
        while True:
            message = frames.receive()
            frames.send(guarded(message["id"], lambda calls=message["calls"]: service.answer(calls)))
    finally:
        service.close()


def built(order: Mapping[str, Any]) -> dict[str, Any]:
    """What an order says, as `built`."""
    module, _, name = order["target"].partition(":")
    return {"built": getattr(importlib.import_module(module), name)(**order["arguments"])}


def guarded(number: int, deed: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the deed returns; errors are told, a bug with its place."""
    try:
        return {"id": number, **deed()}
    except CoterieError as error:
        return {"id": number, "error": str(error)}
    except Exception as error:
        traceback.print_exc()
        return {"id": number, "error": f"a bug: {type(error).__name__}: {error} (the service's log has its place)"}


def main(channel: int, parent: int) -> None:
    """Serve the process at the other end of a socket."""
    isolate(channel, parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the run's, which closes the stream
    try:
        serve(Frames(socket.socket(fileno=channel)))
    except BrokenStreamError:
        return  # the run is over


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
