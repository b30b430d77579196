"""The thread in which an engine runs: calls come and go between its passes, and their tokens go out as they come."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from coterie.engines.base import Engine, Request, Sampling
from coterie.errors import EngineError
from coterie.serve.refusals import RefusalError
from coterie.types import StopReason, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What the engine added to one completion of a call."""

    index: int
    """Of the completion within its call."""
    tokens: Sequence[int]
    logprobs: Sequence[float]
    turn: Turn | None = None
    """All of it, at its end."""


@dataclass(slots=True, kw_only=True, eq=False)
class EngineCall:
    """Completions that one client asked for together. `pieces` is read by the event loop that made the call."""

    requests: Sequence[Request]
    sampling: Sampling
    stream: bool = True
    """Pieces come with every pass; else each completion is one piece, at its end."""
    pieces: asyncio.Queue[Piece | RefusalError] = field(default_factory=asyncio.Queue)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    deadline: float = 0.0
    """By `time.monotonic()`."""
    ids: dict[int, int] = field(default_factory=dict)
    """Index of each open completion, by the engine's id. Of the engine's thread."""
    counts: dict[int, int] = field(default_factory=dict)
    """Tokens that were given out, by index. Of the engine's thread."""


class EngineThread:
    """An engine in a thread of its own; nothing else touches it until `stop`.

    Args:
        timeout_s: of one call, from its arrival.
        max_queue: most completions that wait or are decoded at once.
    """

    def __init__(self, engine: Engine, *, timeout_s: float = 600.0, max_queue: int = 1024) -> None:
        self.engine, self.timeout_s, self.max_queue = engine, timeout_s, max_queue
        self.waiting = 0
        """Completions of open calls."""
        self.fingerprint = new_fingerprint()
        """Names the weights that are served; another one after each change of them."""
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._calls: list[EngineCall] = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="coterie-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, requests: Sequence[Request], sampling: Sampling, *, stream: bool = True) -> EngineCall:
        """Begin a call; from the thread of an event loop, which gets its pieces.

        Args:
            stream: pieces come with every pass; else each completion is one piece, at its end, and the passes between
                do not wake the event loop.

        Raises:
            RefusalError: too much waits already, or the engine has ended.
        """
        if not self.alive:
            raise RefusalError(503, "the engine has ended; start the server anew")
        with self._lock:
            if self.waiting + len(requests) > self.max_queue:
                raise RefusalError(
                    429,
                    f"{self.waiting} completions wait or are sampled, and with {len(requests)} more the limit of "
                    f"{self.max_queue} would be passed; ask again later, or for fewer at once",
                )
            self.waiting += len(requests)
        deadline = time.monotonic() + self.timeout_s
        call = EngineCall(requests=requests, sampling=sampling, stream=stream, deadline=deadline)
        self._work.put(lambda: self._begin(call))
        return call

    def cancel(self, call: EngineCall) -> None:
        """End a call whose client is gone; nothing where it has ended."""
        self._work.put(lambda: self._end(call))

    async def between_passes(self, change: Callable[[], Any], *, alone: bool = False) -> Any:
        """What `change` returns, called in the engine's thread.

        Args:
            alone: only while no call is open.

        Raises:
            RefusalError: calls are open, or the engine has ended.
            Exception: what `change` raised.
        """
        if not self.alive:
            raise RefusalError(503, "the engine has ended; start the server anew")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def work() -> None:
            try:
                if alone and self._calls:
                    raise RefusalError(
                        409, f"{len(self._calls)} requests are open; end them first", code="requests_are_open"
                    )
                result = change()
            except Exception as error:
                problem = error
                _in_loop(loop, lambda: future.cancelled() or future.set_exception(problem))
            else:
                _in_loop(loop, lambda: future.cancelled() or future.set_result(result))

        self._work.put(work)
        return await future

    def stop(self) -> None:
        """End every open call with a refusal, and the thread."""
        self._work.put(None)
        self._thread.join(timeout=30)

    def _run(self) -> None:
        try:
            while self._take(wait=not self._calls):
                if self._calls:
                    self._pass()
        finally:
            for call in list(self._calls):
                self._end(call, RefusalError(503, "the server is stopping; ask again when it is back"))
            self.engine.close()

    def _take(self, *, wait: bool) -> bool:
        """Do what was asked for meanwhile; False at the end."""
        while True:
            try:
                work = self._work.get(block=wait)
            except Empty:
                return True
            if work is None:
                return False
            work()
            wait = not self._calls

    def _begin(self, call: EngineCall) -> None:
        self._calls.append(call)
        version = self.engine.version
        asked = next((request.key.version for request in call.requests if request.key.version != version), version)
        if asked != version:
            message = f"asked for weight version {asked}, but the server has {version}; update its weights, or ask anew"
            return self._end(call, RefusalError(409, message, code="weight_version_mismatch"))
        try:
            for index, request in enumerate(call.requests):
                call.ids[self.engine.submit(request, call.sampling)] = index
                call.counts[index] = 0
        except EngineError as error:
            self._end(call, RefusalError(400, str(error)))
        return None

    def _pass(self) -> None:
        try:
            ended = dict(self.engine.step())
        except Exception as error:  # the engine has nothing open now, and serves the next call
            if not isinstance(error, EngineError):
                traceback.print_exception(error)
            problem = RefusalError(500, f"the engine failed: {error if isinstance(error, EngineError) else 'a bug'}")
            for call in list(self._calls):
                call.ids.clear()
                self._end(call, problem)
            return
        news: dict[asyncio.AbstractEventLoop, deque[tuple[EngineCall, Piece]]] = {}
        for call in list(self._calls):
            pieces = self._pieces(call, ended)
            if pieces:
                news.setdefault(call.loop, deque()).extend((call, piece) for piece in pieces)
        for loop, pairs in news.items():
            _in_loop(loop, lambda pairs=pairs: [call.pieces.put_nowait(piece) for call, piece in pairs])
        now = time.monotonic()
        for call in [call for call in self._calls if not call.ids or call.deadline < now]:
            late = f"the answer took longer than the {self.timeout_s:g} s that a request may take; ask for fewer tokens"
            self._end(call, RefusalError(504, late) if call.ids else None)

    def _pieces(self, call: EngineCall, ended: dict[int, Turn]) -> list[Piece]:
        """What the pass added to a call."""
        pieces = []
        for number, index in list(call.ids.items()):
            start, turn = call.counts[index], ended.get(number)
            if turn is not None:
                del call.ids[number]
                tokens, logprobs = turn.tokens[start:], turn.sampler_logprobs[start:]
                pieces.append(Piece(index=index, tokens=tokens, logprobs=logprobs, turn=turn))
                continue
            if not call.stream:
                continue
            new = self.engine.sampled(number, start)
            if new is not None and new[0]:
                call.counts[index] += len(new[0])
                pieces.append(Piece(index=index, tokens=new[0], logprobs=new[1]))
        return pieces

    def _end(self, call: EngineCall, problem: RefusalError | None = None) -> None:
        """Take a call out, with what is open of it."""
        if call not in self._calls:
            return
        self._calls.remove(call)
        for number in call.ids:
            self.engine.abort(number, StopReason.ABANDONED)
        call.ids.clear()
        with self._lock:
            self.waiting -= len(call.requests)
        if problem is not None:
            _in_loop(call.loop, lambda: call.pieces.put_nowait(problem))


def new_fingerprint() -> str:
    """OpenAI's `system_fingerprint`: two answers with the same one are of the same weights in the same process."""
    return f"fp_{secrets.token_hex(8)}"


def _in_loop(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    """Do something in an event loop, unless it has ended."""
    try:
        loop.call_soon_threadsafe(function)
    except RuntimeError:  # closed: its server was stopped
        return
