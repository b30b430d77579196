"""Workers in which environments answer beside the decoding: threads, and an event loop for async ones, with a deadline.

A generator is advanced by one thread at a time, not always by the same one.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import suppress
from dataclasses import dataclass, field
from numbers import Real
from queue import SimpleQueue
from typing import Self

from coterie.envs.base import AsyncEpisode, Episode, EpisodeError

_TICK_S = 0.1  # between two looks at the deadline and at what may end the wait


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What an environment did with a turn."""

    yielded: object = None
    """Observation before the next turn, unchecked."""
    ended: bool = False
    """It returned instead."""
    reward: object = None
    """What it returned, unchecked."""


@dataclass(slots=True, kw_only=True, eq=False)
class Answer:
    """A reply that may still be computed."""

    episode: Episode | AsyncEpisode
    text: str | None
    """What the model said; None asks for the opening."""
    future: Future[Reply] = field(default_factory=Future)
    started: float | None = None
    """`time.monotonic()` at which the environment began with it."""
    seconds: float = 0.0
    """That it took."""
    expired: bool = False
    """The deadline came before it."""

    def settle(self, reply: Reply | BaseException) -> None:
        """Keep the reply, unless the deadline has come before it."""
        if self.started is not None:
            self.seconds = time.monotonic() - self.started
        with suppress(InvalidStateError):
            if isinstance(reply, BaseException):
                self.future.set_exception(reply)
            else:
                self.future.set_result(reply)

    def overdue(self, timeout_s: float) -> bool:
        """True if the environment has been at it for longer than the deadline."""
        return not self.future.done() and self.started is not None and time.monotonic() - self.started > timeout_s


def advance(episode: Episode, text: str | None) -> Reply:
    """Advance a generator by one turn."""
    try:
        return Reply(yielded=next(episode) if text is None else episode.send(text))
    except StopIteration as ending:
        return Reply(ended=True, reward=ending.value)


async def advance_async(episode: AsyncEpisode, text: str | None) -> Reply:
    """Advance an async generator by one turn; it cannot return a value, so a number that it yields ends the episode."""
    try:
        yielded = await (anext(episode) if text is None else episode.asend(text))
    except StopAsyncIteration:
        return Reply(ended=True)
    if isinstance(yielded, Real) and not isinstance(yielded, bool):
        await episode.aclose()
        return Reply(ended=True, reward=yielded)
    return Reply(yielded=yielded)


class EpisodeWorkers:
    """Threads and an event loop, as many as are asked for and not before; leaving it ends them.

    An answer that misses its deadline fails, whatever comes of it later. An async one is cancelled; a thread cannot be,
    so another one takes its place.

    Args:
        threads: most environments that answer at once in threads; async ones all do.
        timeout_s: deadline of an answer, from when the environment begins with it.
    """

    def __init__(self, *, threads: int, timeout_s: float) -> None:
        self.threads, self.timeout_s = threads, timeout_s
        self.busy_seconds = 0.0
        """That environments worked, laid end to end."""
        self.waited_seconds = 0.0
        """That the caller waited for them."""
        self._queue: SimpleQueue[Answer | Episode | None] = SimpleQueue()
        self._pending: set[Answer] = set()
        self._alive = 0
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: dict[Answer, Future[None]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        for _number in range(self._alive):
            self._queue.put(None)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)

    def ask(self, episode: Episode | AsyncEpisode, text: str | None, *, instant: bool = False) -> Answer:
        """Have an environment answer what the model said; an `instant` one answers before this returns."""
        answer = Answer(episode=episode, text=text)
        if isinstance(episode, AsyncGenerator):
            self._pending.add(answer)
            self._tasks[answer] = asyncio.run_coroutine_threadsafe(_answer_async(answer), self._running_loop())
        elif instant:
            _answer(answer)
            self._count(answer)
        else:
            self._pending.add(answer)
            self._queue.put(answer)
            if self._alive < self.threads:
                self._start_thread()
        return answer

    def wait(self, answer: Answer, until: float, tick: Callable[[], object]) -> Reply | None:
        """The reply; None if `until`, a `time.monotonic()`, comes first.

        Args:
            tick: called now and then meanwhile; what it raises ends the wait.

        Raises:
            EpisodeError: the deadline has passed.
            Exception: what the environment raised.
        """
        began = time.monotonic()
        try:
            while not answer.future.done():
                if time.monotonic() > until:
                    return None
                wait([answer.future], timeout=min(_TICK_S, self.timeout_s))
                self._expire()
                tick()
        finally:
            self.waited_seconds += time.monotonic() - began
        self._count(answer)
        return answer.future.result()

    def close(self, episode: Episode | AsyncEpisode) -> None:
        """Close an episode whose environment would have gone on: nobody asks it anything any more."""
        if isinstance(episode, AsyncGenerator):
            asyncio.run_coroutine_threadsafe(_close_async(episode), self._running_loop())
        elif self._alive:
            self._queue.put(episode)
        else:
            _close(episode)

    def _count(self, answer: Answer) -> None:
        self._pending.discard(answer)
        self._tasks.pop(answer, None)
        self.busy_seconds += answer.seconds

    def _expire(self) -> None:
        """Fail the answers whose deadline has passed, also those that nobody waits for yet: they hold a thread."""
        for answer in [answer for answer in self._pending if answer.overdue(self.timeout_s)]:
            answer.expired = True
            answer.settle(
                EpisodeError(f"the environment has not answered within environment.timeout_s = {self.timeout_s:g} s")
            )
            self._pending.discard(answer)
            task = self._tasks.pop(answer, None)
            if task is not None:
                task.cancel()
            else:
                self._alive -= 1
                self._start_thread()

    def _start_thread(self) -> None:
        self._alive += 1
        threading.Thread(target=self._serve, name="environment", daemon=True).start()

    def _serve(self) -> None:
        while (work := self._queue.get()) is not None:
            if not isinstance(work, Answer):
                _close(work)
                continue
            if self._closed:  # by an error or Ctrl-C: nobody waits for it
                continue
            _answer(work)
            if work.expired:
                return  # another thread has taken this one's place

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=_run, args=(self._loop,), name="environments", daemon=True).start()
        return self._loop


def _answer(answer: Answer) -> None:
    answer.started = time.monotonic()
    assert isinstance(answer.episode, Generator)
    try:
        answer.settle(advance(answer.episode, answer.text))
    except BaseException as error:
        answer.settle(error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}"))


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """Run a loop until it is stopped, then cancel what is left in it."""
    try:
        loop.run_forever()
    finally:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks, timeout=1.0))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _answer_async(answer: Answer) -> None:
    answer.started = time.monotonic()
    assert isinstance(answer.episode, AsyncGenerator)
    try:
        answer.settle(await advance_async(answer.episode, answer.text))
    except Exception as error:
        answer.settle(error)


def _close(episode: Episode) -> None:
    with suppress(Exception):
        episode.close()


async def _close_async(episode: AsyncEpisode) -> None:
    with suppress(Exception):
        await episode.aclose()
