"""Prefill, decode and update of coterie's own engine and learner, timed, with the work that each had to do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.peers import growth_step as step
from benchmarks.peers.growth_step import Sizes
from coterie.batches.batch import Batch
from coterie.engines.base import Request
from coterie.engines.embedded import EmbeddedEngine
from coterie.policy.learner import Learner
from coterie.policy.model import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One phase's time and work."""

    name: str
    seconds: float
    """Median over the rounds."""
    spread: tuple[float, float]
    """Shortest and longest round, in seconds."""
    rows: int
    """Tokens that enter one matrix product of the body."""
    tokens: int
    """Tokens that go through the body in `seconds`."""
    head_rows: int
    """States that go through the head in `seconds`."""
    passes: int
    """FLOPs are 2 × passes × parameters × tokens: 1 forward, 3 with the backward pass."""


class Bench:
    """The engine and the learner on one synthetic step of `sizes`."""

    def __init__(self, policy: Policy, sizes: Sizes) -> None:
        self.policy, self.sizes = policy, sizes
        self.learner: Learner = step.learner_for(policy)
        self.engine: EmbeddedEngine = step.engine_for(policy, sizes, slots=sizes.rollouts)
        self.asked: list[Request] = step.requests(sizes, policy.head.weight.shape[0])
        self.once: list[Request] = self.asked[:: sizes.group_size]

    def prefill(self) -> None:
        """Each distinct prompt once, and one token of each."""
        self.engine.generate(self.once, step.sampling(1))

    def first(self) -> None:
        """All that a call does before decoding: prefill, fan-out and the first token of every row."""
        self.engine.generate(self.asked, step.sampling(1))

    def generate(self) -> None:
        self.engine.generate(self.asked, step.sampling(self.sizes.completion))

    def batch(self) -> list[Batch]:
        """The step's update as one packed micro-batch."""
        turns = self.engine.generate(self.asked, step.sampling(self.sizes.completion))
        return step.packed(self.asked, turns, max_tokens_per_microbatch=self.sizes.tokens)


def measure(bench: Bench, rounds: int) -> list[Phase]:
    """Prefill, decode, forward and backward pass, optimizer step: `rounds` of each, after one that does not count."""
    sizes = bench.sizes
    packed = bench.batch()
    prefill = _times(bench.prefill, rounds)
    first, whole = _times(bench.first, rounds), _times(bench.generate, rounds)
    decode = [long - short for long, short in zip(whole, first, strict=True)]
    with _stopwatch(bench.learner.optimizer, "step") as steps:
        update = _times(lambda: bench.learner.update([packed]), rounds)
    backward = [whole - part for whole, part in zip(update, steps[1:], strict=True)]
    trained = sum(len(batch.targets) for batch in packed)
    prompts, count = sizes.prompts * sizes.prompt, sizes.completion - 1
    return [
        _phase("prefill", prefill, rows=prompts, tokens=prompts, head_rows=sizes.prompts, passes=1),
        _phase(
            "decode",
            decode,
            rows=sizes.rollouts,
            tokens=sizes.rollouts * count,
            head_rows=sizes.rollouts * count,
            passes=1,
        ),
        _phase("update", backward, rows=sizes.tokens, tokens=sizes.tokens, head_rows=trained, passes=3),
        _phase("optimizer step", steps[1:], rows=0, tokens=0, head_rows=0, passes=0),
    ]


def _phase(name: str, times: list[float], *, rows: int, tokens: int, head_rows: int, passes: int) -> Phase:
    return Phase(
        name=name,
        seconds=statistics.median(times),
        spread=(min(times), max(times)),
        rows=rows,
        tokens=tokens,
        head_rows=head_rows,
        passes=passes,
    )


def _times(run: Callable[[], object], rounds: int) -> list[float]:
    run()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return times


@contextmanager
def _stopwatch(owner: Any, name: str) -> Generator[list[float]]:
    """Seconds of every call of a method, in order, while the block lasts."""
    original, times = getattr(owner, name), []

    def timed(*words: Any, **settings: Any) -> Any:
        started = time.perf_counter()
        try:
            return original(*words, **settings)
        finally:
            times.append(time.perf_counter() - started)

    setattr(owner, name, timed)
    try:
        yield times
    finally:
        delattr(owner, name)
