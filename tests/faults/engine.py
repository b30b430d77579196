"""An engine that lies, fails, hangs, loses a commit or reads old weights, in the third step of a whole run.

What it says must be refused by name before anything of the step is stored, and the run must go on as if nothing had
been. Weights that are not this step's cannot be refused by what they say, so they must be noticed in the same step.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from coterie import launch
from coterie.engines.embedded import EmbeddedEngine
from coterie.engines.runner import PackedRunner
from coterie.engines.sequence import SampledSequence
from coterie.runs import parquet
from coterie.runs.metrics import MetricsDB
from coterie.types import StopReason, Turn
from faults.cases import Case
from faults.child import REFUSED, Prepare, log_of
from faults.harness import Harness
from faults.world import NAME, settings

STEP = 3
VERSION = STEP - 1
"""What the engine serves in that step; no evaluation is made with it."""
Turns = list[Turn]
Pairs = list[tuple[int, Turn]]


def _last(**changed: Any) -> Callable[[Turns], Turns]:
    """The last answer with something changed."""
    return lambda turns: [*turns[:-1], replace(turns[-1], **changed)]


def _logprob(value: Any) -> Callable[[Turns], Turns]:
    return lambda turns: _last(sampler_logprobs=(value, *turns[-1].sampler_logprobs[1:]))(turns)


LIES: dict[str, tuple[Callable[[Turns], Any], str]] = {
    "nothing": (lambda turns: None, "expected a list of (id, turn)"),
    "an answer too few": (lambda turns: turns[:-1], "answered 5 of 6 requests"),
    "an answer twice": (lambda turns: [*turns, turns[0]], "which is not open"),
    "answers in another order": (lambda turns: turns[::-1], "belongs to another prompt"),
    "no turn": (lambda turns: [*turns[:-1], "HTTP 429"], "expected a turn"),
    "a log-prob of NaN": (_logprob(float("nan")), "log-prob nan at 0"),
    "a log-prob of None": (_logprob(None), "log-prob None at 0"),
    "a log-prob of +0.3": (_logprob(0.3), "log-prob 0.3 at 0"),
    "too few log-probs": (
        lambda turns: _last(sampler_logprobs=turns[-1].sampler_logprobs[:-1])(turns),
        "log-probs for",
    ),
    "a token beyond the vocabulary": (
        lambda turns: _last(tokens=(10**6, *turns[-1].tokens[1:]))(turns),
        "has the token 1000000 at 0",
    ),
    "tokens beyond the budget": (
        _last(tokens=(1,) * 9, sampler_logprobs=(-1.0,) * 9),
        "has 9 tokens, more than the 4 that were allowed",
    ),
    "an empty text": (_last(tokens=(), sampler_logprobs=(), stop_reason=StopReason.STOP), "is empty"),
    "another policy version": (_last(version=VERSION - 1), "sampled by policy version 1, expected 2"),
    "another temperature": (_last(temperature=0.5), "sampled at temperature 0.5"),
    "an answer given up": (_last(stop_reason=StopReason.ABANDONED), "was abandoned"),
}
"""What the engine answers → how it is refused."""
COMMITS: dict[str, tuple[tuple[int, ...], str | None]] = {
    "a commit that is lost": ((), "serves policy version 1, but the learner is at 2"),
    "a commit that comes twice": ((2, 2), None),
    "a commit out of order": ((2, 1), "serves policy version 1, but the learner is at 2"),
    "a commit too early": ((2, 3), "serves policy version 3, but the learner is at 2"),
}
"""The commits that the engine gets instead of that of version 2 → how it is refused; None: nothing is wrong."""


def answers(harness: Harness, few: int = 1) -> Iterator[Case]:
    """What an engine says that is wrong, and commits that went wrong."""
    for name, (change, message) in list(LIES.items())[::few]:
        yield _refused(harness, name, _lying(change), message)
    for name, (versions, message) in list(COMMITS.items())[::few]:
        yield _refused(harness, name, _committing(versions), message, stored=VERSION - 1)


def failures(harness: Harness) -> Iterator[Case]:
    """An engine that raises, runs out of memory, computes NaN, is slow, or never returns."""
    yield _refused(harness, "logits that are not finite", _spoiling(), "are not finite")
    memory = RuntimeError("DefaultCPUAllocator: can't allocate memory")
    yield _refused(harness, "memory refused between two tokens", _raising(memory), "lower engine.max_num_seqs")
    bug = RuntimeError("an illegal memory access was encountered")
    yield _refused(harness, "a bug between two tokens", _raising(bug), "illegal memory access", code=70)
    yield _refused(harness, "slow", _before_decode(lambda: time.sleep(0.05)), None)
    yield _hung(harness)


def old_weights(harness: Harness, scales: tuple[float, ...], few: int = 1) -> Iterator[Case]:
    """An engine that samples from weights which are not those of the step. One matrix that is off by a percent is lost
    in bfloat16's rounding, so that is tried in float32."""
    for name, share in (("the weights of the step before", 1.0), ("half of the weights of the step before", 0.5)):
        yield _noticed(harness, name, _stale(share))
    for scale in scales:
        for matrix in ("q_proj", "down_proj", "lm_head")[::few]:
            name = f"{matrix} times {scale}"
            yield _noticed(harness, name, _scaled(matrix, scale), full=True, must=scale >= 1.01)


def _refused(
    harness: Harness, name: str, trap: Prepare, message: str | None, *, code: int = REFUSED, stored: int = VERSION
) -> Case:
    """The run ends by what is `said`, with `stored` as its last step; None: it is golden."""
    runs = harness.folder(f"engine {name}")
    first = harness.wait(harness.start(runs, trap))
    log = log_of(runs) if first.code else ""
    problem = None
    if first.code != (0 if message is None else code) or (message or "") not in log:
        problem = f"exit code {first.code}, expected {message!r}: {log}"
    elif message is not None:
        problem = _stored(runs / NAME, stored)
    return Case(section="engine", name=name, problem=problem or harness.goes_on(runs))


def _stored(run: Path, expected: int) -> str | None:
    """Whether a later step left anything."""
    with closing(MetricsDB.reader(run / "metrics.sqlite")) as database:
        last = database.last_step()
    if last != expected or parquet.steps(run / "rollouts")[-1] != expected:
        return f"the last step stored is {last}, expected {expected}"
    return None


def _hung(harness: Harness) -> Case:
    """It never returns, and holds the interpreter's main thread: the second Ctrl-C ends the run."""
    runs = harness.folder("engine hangs")
    mark = runs / "hangs"

    def hang() -> None:
        mark.touch()
        time.sleep(300)

    attempt = harness.start(runs, _before_decode(hang))
    while not mark.exists() and os.waitid(os.P_PID, attempt.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.005)
    for _ in range(2):
        os.kill(attempt.pid, signal.SIGINT)
        time.sleep(0.1)
    harness.wait(attempt)
    problem = None if attempt.code == 130 else f"exit code {attempt.code}, expected 130: {log_of(runs)}"
    return Case(section="engine", name="it hangs: Ctrl-C twice", problem=problem or harness.goes_on(runs))


def _noticed(harness: Harness, name: str, trap: Prepare, *, full: bool = False, must: bool = True) -> Case:
    runs = harness.folder(f"engine {name}")
    done = harness.wait(harness.start(runs, trap, (lambda: _in_float32(harness, runs)) if full else None))
    if done.code != 0:
        return Case(section="engine", name=name, problem=f"exit code {done.code}: {log_of(runs)}")
    with closing(MetricsDB.reader(runs / NAME / "metrics.sqlite")) as database:
        steps = [event.step for event in database.events("warning") if "than the sampler did" in event.message]
        kl = database.step_metrics(STEP).get("mismatch/kl")
    problem = f"told of in steps {steps}, expected step {STEP}; KL {kl}" if must and steps[:1] != [STEP] else None
    facts = {"noticed": steps[:1] == [STEP], "kl": kl}
    return Case(section="engine", name=name, problem=problem, facts=facts)


def _in_float32(harness: Harness, runs: Path) -> int:
    launch.train(settings(harness.world, runs, model={"name": str(harness.world / "model"), "dtype": "float32"}))
    return 0


def _lying(change: Callable[[Turns], Any]) -> Prepare:
    """A trap: in the third step, all turns come in one pass, changed; a turn too many has the id of the first."""
    pairs: list[tuple[int, Turn]] = []

    def deed(engine: EmbeddedEngine, sample: Callable[[], Pairs]) -> Any:
        pairs.extend(sample())
        if engine.unfinished or not pairs:
            return []
        ids = [number for number, _ in pairs]
        turns = change([turn for _, turn in pairs])
        pairs.clear()
        return turns if turns is None else list(zip([*ids, ids[0]], turns, strict=False))

    return _around_step(deed)


def _around_step(deed: Callable[[EmbeddedEngine, Callable[[], Pairs]], Any]) -> Prepare:
    """A trap: in the third step, the deed answers in the engine's place; it may ask the engine."""

    def arm() -> None:
        inner = EmbeddedEngine.step

        def step(self: EmbeddedEngine) -> Any:
            sample = lambda: inner(self)  # noqa: E731
            return deed(self, sample) if self.version == VERSION else sample()

        EmbeddedEngine.step = step

    return arm


def _committing(versions: tuple[int, ...]) -> Prepare:
    def arm() -> None:
        inner = EmbeddedEngine.commit

        def commit(self: EmbeddedEngine, version: int) -> None:
            for weights_version in versions if version == VERSION else (version,):
                inner(self, weights_version)

        EmbeddedEngine.commit = commit

    return arm


def _before_decode(deed: Callable[[], object]) -> Prepare:
    def arm() -> None:
        inner = PackedRunner.decode

        def decode(self: PackedRunner, live: Sequence[SampledSequence]) -> Any:
            if any(sequence.request.key.version == VERSION for sequence in live):
                deed()
            return inner(self, live)

        PackedRunner.decode = decode

    return arm


def _raising(error: Exception) -> Prepare:
    def fail() -> None:
        raise error

    return _before_decode(fail)


def _spoiling() -> Prepare:
    def deed(engine: EmbeddedEngine, sample: Callable[[], Pairs]) -> Pairs:
        with torch.no_grad():
            engine._policy.head.weight.fill_(float("nan"))
        return sample()

    return _around_step(deed)


def _with_weights(engine: EmbeddedEngine, weights: Mapping[str, torch.Tensor], sample: Callable[[], Pairs]) -> Pairs:
    """Sample from other weights than the learner's, which are put back."""
    parameters = dict(engine._policy.model.named_parameters())
    kept = {name: parameters[name].detach().clone() for name in weights}
    try:
        with torch.no_grad():
            for name, tensor in weights.items():
                parameters[name].copy_(tensor)
        return sample()
    finally:
        with torch.no_grad():
            for name, tensor in kept.items():
                parameters[name].copy_(tensor)


def _scaled(matrix: str, scale: float) -> Prepare:
    def deed(engine: EmbeddedEngine, sample: Callable[[], Pairs]) -> Pairs:
        weights = {name: scale * p.detach() for name, p in engine._policy.model.named_parameters() if matrix in name}
        return _with_weights(engine, weights, sample)

    return _around_step(deed)


def _stale(share: float) -> Prepare:
    """The first `share` of the tensors are those of the step before."""

    def arm() -> None:
        inner, old = EmbeddedEngine.commit, {}

        def commit(self: EmbeddedEngine, version: int) -> None:
            if version == VERSION - 1:
                old.update({name: p.detach().clone() for name, p in self._policy.model.named_parameters()})
            inner(self, version)

        def deed(engine: EmbeddedEngine, sample: Callable[[], Pairs]) -> Pairs:
            names = list(old)[: max(1, round(share * len(old)))]
            return _with_weights(engine, {name: old[name] for name in names}, sample)

        EmbeddedEngine.commit = commit
        _around_step(deed)()

    return arm
