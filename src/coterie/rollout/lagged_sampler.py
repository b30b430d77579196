"""Sampling with a fixed lag: the batch of step b is sampled by policy version b - lag, while the learner updates.

The lag is fixed, not "at most k" as in prime-rl or in AReaL: which version samples a batch depends on its number alone,
never on time, so a run with a lag is a function of its seed like any other. The first lag + 1 batches are sampled by
the starting policy. Before a checkpoint and an evaluation all batches that were begun are finished; a checkpoint holds
them, so that a resumed run trains on the same rollouts.

One thread samples, scores and groups; the learner's thread alone decides what it samples, so that no decision depends
on which of them is faster.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from coterie.cluster.engine_pool import EnginePool
from coterie.engines.base import check_version
from coterie.errors import CheckpointError
from coterie.rollout import lagged_batches
from coterie.rollout.sampler import SequentialSampler, StepBatch

if TYPE_CHECKING:
    from torch import Tensor

_POLL_S = 0.1
"""Seconds between two looks at what the other thread has to tell."""
_POLITE_S = 5.0
"""Seconds for the other thread to notice that it is to end."""


class _ClosedError(Exception):
    """The run ends while a batch is sampled."""


class LaggedSampler:
    """Sampler of batches ahead of their update.

    Args:
        sampler: of one batch. Its progress is told by this object, in the learner's thread.
        engine: used by nobody else between `take` and `settle`.
        lag: versions between the policy that samples a batch and the one that is updated by it; at least 1.
        steps: of the run; no batch is sampled beyond them.
    """

    def __init__(self, sampler: SequentialSampler, engine: EnginePool, *, lag: int, steps: int) -> None:
        self.sampler, self.engine, self.lag, self.steps = sampler, engine, lag, steps
        self._progress, sampler.sampling = sampler.sampling.progress, replace(sampler.sampling, progress=self._count)
        self._tell, engine.report = engine.report, self._note
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lagged-sampler")
        self._batches: deque[Future[StepBatch]] = deque()
        """Begun and not taken, the oldest first."""
        self._place: tuple[int, Sequence[str]] = (0, ())
        """Cursor and pending prompts after the newest batch; of the sampling thread while it works."""
        self._done: tuple[int, int] | None = None
        self._notes: deque[str] = deque()
        self._learner = threading.get_ident()
        self._closed = threading.Event()

    def take(self, version: int, cursor: int, pending: Sequence[str]) -> StepBatch:
        """The batch of the step that updates this policy version; batches up to `lag` steps ahead are begun first.

        Args:
            cursor: training prompts consumed before it.
            pending: prompts that come first in it.

        Raises:
            EngineError, RewardError: sampling failed.
        """
        if not self._batches:
            self._place = cursor, pending
        first = version + len(self._batches)
        count = min(version + self.lag, self.steps - 1) - first + 1
        if count > 0:
            weights = self._serve(version)
            for repeat in range(count):
                self._batches.append(
                    self._thread.submit(self._sample, version, repeat, weights if not repeat else None)
                )
        batch = self._result(self._batches[0])
        self._batches.popleft()
        return batch

    def settle(self, version: int) -> None:
        """Finish all that was begun, and have the engine serve the present weights of the learner.

        Args:
            version: of the learner.

        Raises:
            EngineError, RewardError: sampling failed.
        """
        for batch in self._batches:
            self._result(batch)
        if self.engine.version != version:
            self.engine.commit(version)

    def save(self, folder: Path, step: int) -> None:
        """Write the batches of the steps after `step` into a checkpoint's folder.

        Raises:
            EngineError, RewardError: sampling failed.
        """
        lagged_batches.write(folder, step, [self._result(batch) for batch in self._batches])

    def load(self, folder: Path) -> str:
        """Continue with the batches that `save` wrote; returns a warning where the run goes on beyond its former end,
        or nothing.

        Raises:
            CheckpointError: they cannot be read.
        """
        step, batches = lagged_batches.read(folder, self.sampler.by_id)
        if len(batches) > self.lag:
            raise CheckpointError(
                f"{folder} holds {len(batches)} batches sampled ahead, but engine.lag = {self.lag} allows {self.lag}; "
                "put the settings back"
            )
        self._batches.clear()
        for batch in batches[: max(0, self.steps - step)]:
            self._batches.append(_finished(batch))
            self._place = batch.cursor, batch.pending
        missing = min(self.lag, self.steps - step) - len(self._batches)
        if missing <= 0:
            return ""
        return (
            f"the run was to end sooner, so the next {missing} batches were not sampled ahead: they are sampled by the "
            f"policy of step {step}, and this run is no longer that of an uninterrupted one"
        )

    def close(self) -> None:
        """End the other thread, whatever it does; its batches are lost."""
        self._closed.set()
        for batch in self._batches:
            batch.cancel()
        wait(self._batches, timeout=_POLITE_S)
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._batches.clear()
        self._flush()

    def _serve(self, version: int) -> Mapping[str, Tensor] | None:
        """Have the engine sample from the learner's present weights; where it is busy, a copy that it will get."""
        if all(batch.done() for batch in self._batches):
            self.engine.commit(version)
            self.engine.publish()
            return None
        return self.engine.copy_weights()

    def _sample(self, version: int, repeat: int, weights: Mapping[str, Tensor] | None) -> StepBatch:
        """One batch, in the thread of this object."""
        if self._closed.is_set():
            raise _ClosedError
        if weights is not None:
            self.engine.commit(version)
            self.engine.publish(weights)
        check_version(self.engine.version, version)
        batch = self.sampler.collect(*self._place, repeat=repeat)
        self._place = batch.cursor, batch.pending
        return batch

    def _result(self, batch: Future[StepBatch]) -> StepBatch:
        """What was sampled; waits for it."""
        while not wait([batch], timeout=_POLL_S).done:
            self._flush()
            if self._progress is not None and self._done is not None:
                self._progress(*self._done)
        self._flush()
        return batch.result()

    def _count(self, done: int, total: int) -> None:
        """Note the progress of a batch; ends it when the run ends. In the thread of this object."""
        if self._closed.is_set():
            raise _ClosedError
        self._done = done, total

    def _note(self, text: str) -> None:
        """Pass on a report of the engine, in the learner's thread: it alone writes the records."""
        if threading.get_ident() == self._learner:
            self._tell(text)
        else:
            self._notes.append(text)

    def _flush(self) -> None:
        while self._notes:
            self._tell(self._notes.popleft())


def _finished(batch: StepBatch) -> Future[StepBatch]:
    future: Future[StepBatch] = Future()
    future.set_result(batch)
    return future
