"""Engine interface: tokens in, tokens out, with log-probs and policy version. Its contract, and the loop over it."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from coterie.errors import EngineError
from coterie.types import SampleKey, StopReason, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One turn to sample."""

    key: SampleKey
    """Names the random stream; `key.version` is the policy version the caller expects."""
    prompt_tokens: tuple[int, ...]
    """[P]"""
    may_continue: bool = False
    """Another turn may follow: the engine may keep what it computed of this one, until the next turn of the attempt is
    submitted or `Engine.abort` says that there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Sampling parameters."""

    temperature: float
    """0 takes the likeliest token, and gives its log-probability at temperature 1."""
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int
    stop: tuple[str, ...] = ()
    """Strings that end a turn; the token that completes one is kept."""
    timeout_s: float = 600.0
    """Of a whole call; this and the next are not the engine's, but those of the loop over it."""
    progress: Callable[[int, int], None] | None = field(default=None, compare=False, repr=False)
    """Told (finished, all) sequences of a call, often; what it raises ends the call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quorum:
    """Condition under which a call stops before every turn has ended."""

    prompts: int
    """Number of prompts that must be whole."""
    required: frozenset[str] = frozenset()
    """Prompt ids that must be among them."""


class Engine(Protocol):
    """Samples turns from the policy: requests come and go while others are decoded.

    The verbs are vLLM's (add_request, step, abort_request); a class that inherits from this has `generate` too.
    """

    @property
    def vocabulary(self) -> int:
        """Every token id is below this."""
        ...

    @property
    def version(self) -> int:
        """Policy version that the engine serves."""
        ...

    @property
    def unfinished(self) -> int:
        """Number of requests that were submitted and have not ended."""
        ...

    def submit(self, request: Request, sampling: Sampling) -> int:
        """Queue a request; returns its id, by which `step` gives its turn back.

        Raises:
            EngineError: the request does not fit the model's context, or asks for another version than is served.
        """
        ...

    def step(self) -> list[tuple[int, Turn]]:
        """Advance what is open by one pass, usually a token each, and return the turns that ended in it, by id.

        Raises:
            EngineError: the model returned logits that are not finite, or memory was refused. Nothing is open then.
        """
        ...

    def abort(self, request: int, reason: StopReason = StopReason.ABANDONED) -> Turn | None:
        """End a request at its present token, and free all that is kept of it; None if it had ended before."""
        ...

    def sampled(self, request: int, start: int) -> tuple[list[int], list[float]] | None:
        """Tokens and log-probs of an open request from token `start` on, as far as it has come; None where the engine
        cannot tell, and turns come whole."""
        return None

    def commit(self, version: int) -> None:
        """Serve policy version `version` from now on; what is kept of turns of before is freed.

        Raises:
            EngineError: requests are open.
        """
        ...

    def sleep(self) -> None:
        """Give back memory that only sampling needs, until the next request; by default an engine holds none."""
        return None

    def close(self) -> None: ...

    def generate(self, requests: Sequence[Request], sampling: Sampling, quorum: Quorum | None = None) -> list[Turn]:
        """One turn per request, in the order of the requests; with a quorum, turns that were not waited for end as
        `StopReason.ABANDONED`.

        Raises:
            EngineError: as `submit` and `step` do, or an answer breaks the contract.
        """
        with Call(self, sampling, quorum) as call:
            ids = [call.submit(request) for request in requests]
            turns: dict[int, Turn] = {}
            while call.open:
                turns.update(call.step())
        return [turns[request] for request in ids]


class TextCodec(Protocol):
    """The part of the chat that an engine needs."""

    @property
    def stop_ids(self) -> frozenset[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


# The contract of an engine. Its turns are checked: a wrong log-prob trains a wrong policy in silence.

ABOVE_ZERO = 1e-3
"""A log-probability may exceed 0 by rounding, and an entropy fall below it, not by more."""


def check_version(served: int, expected: int) -> None:
    """Raise EngineError if the engine serves another policy version than the learner's.

    Args:
        served: policy version of the engine.
        expected: of the learner.
    """
    if served != expected:
        raise EngineError(
            f"the engine serves policy version {served}, but the learner is at {expected}: the last commit did not "
            "reach it, or one came out of order. Nothing is sampled; `coterie resume` starts the engine anew from the "
            "last checkpoint"
        )


def check_idle(engine: Engine, version: int) -> None:
    """Raise EngineError if requests are open when policy version `version` is to be served."""
    if engine.unfinished:
        raise EngineError(
            f"{engine.unfinished} requests are open; end or abort them before policy version {version} is served"
        )


def check_request(request: Request, sampling: Sampling, *, version: int, context: int) -> None:
    """Raise EngineError if a request has no tokens, does not fit the model, or asks for another policy version.

    Args:
        version: that the engine serves.
        context: most tokens of a prompt and its turn.
    """
    length = len(request.prompt_tokens)
    if not length:
        raise EngineError(f"prompt {request.key.prompt!r} has no tokens")
    if length + sampling.max_tokens > context:
        raise EngineError(
            f"prompt {request.key.prompt!r} has {length} tokens, which with sampling.max_tokens = "
            f"{sampling.max_tokens} is more than the model's context of {context}; lower either"
        )
    if request.key.version != version:
        raise EngineError(f"asked for policy version {request.key.version}, but the engine serves {version}")


def check_turn(
    request: Request, turn: Any, *, vocabulary: int, sampling: Sampling, quorum: Quorum | None = None
) -> None:
    """Raise EngineError if a turn does not fit its request.

    Args:
        vocabulary: token ids are below this.
        sampling: of the call.
        quorum: of the call; without one, every turn is waited for.
    """
    problem = _turn_problem(request, turn, vocabulary) or _sampling_problem(turn, sampling, quorum)
    if problem is not None:
        raise EngineError(
            f"the engine's answer to prompt {request.key.prompt!r}, sample {request.key.sample}, {problem}; "
            "nothing of this call is used. The engine and the policy do not fit together, or the engine is broken"
        )


def _turn_problem(request: Request, turn: Any, vocabulary: int) -> str | None:
    if not isinstance(turn, Turn):
        return f"is {turn!r:.60}, expected a turn"
    if turn.prompt_tokens != request.prompt_tokens:
        return "belongs to another prompt: its prompt tokens are not those that were asked"
    if turn.version != request.key.version:
        return f"was sampled by policy version {turn.version}, expected {request.key.version}"
    if len(turn.sampler_logprobs) != len(turn.tokens):
        return f"has {len(turn.sampler_logprobs)} log-probs for {len(turn.tokens)} tokens"
    for place, (token, logprob) in enumerate(zip(turn.tokens, turn.sampler_logprobs, strict=True)):
        if not _is_token(token, vocabulary):
            return f"has the token {token!r} at {place}, expected a whole number from 0 to {vocabulary - 1}"
        if not _is_logprob(logprob):
            return f"has the log-prob {logprob!r} at {place}, expected a finite number of at most 0"
    return _entropy_problem(turn)


def _entropy_problem(turn: Turn) -> str | None:
    entropies = turn.sampler_entropies
    if entropies is None:
        return None
    if len(entropies) != len(turn.tokens):
        return f"has {len(entropies)} entropies for {len(turn.tokens)} tokens"
    for place, entropy in enumerate(entropies):
        if not (isinstance(entropy, float) and -ABOVE_ZERO <= entropy < math.inf):
            return f"has the entropy {entropy!r} at {place}, expected a finite number of at least 0"
    return None


def _sampling_problem(turn: Turn, sampling: Sampling, quorum: Quorum | None) -> str | None:
    if turn.temperature != sampling.temperature:
        return f"was sampled at temperature {turn.temperature}, expected {sampling.temperature}"
    if len(turn.tokens) > sampling.max_tokens:
        return f"has {len(turn.tokens)} tokens, more than the {sampling.max_tokens} that were allowed"
    if turn.stop_reason is StopReason.ABANDONED and quorum is None:
        return "was abandoned, though every answer is waited for"
    if not turn.tokens and turn.stop_reason in (StopReason.STOP, StopReason.LENGTH):
        return f"is empty, though it ended by {turn.stop_reason.value!r}: what ends an answer is its last token"
    return None


def _is_token(value: Any, vocabulary: int) -> bool:
    return type(value) is int and 0 <= value < vocabulary


def _is_logprob(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value <= ABOVE_ZERO


class QuorumTracker:
    """Counter of whole prompts against a quorum; without one it is never reached.

    Progress depends on tokens alone, never on time, so a re-run stops at the same token.
    """

    def __init__(self, quorum: Quorum | None) -> None:
        self.quorum = quorum
        self.missing: Counter[str] = Counter()
        self.whole: set[str] = set()

    def submitted(self, request: Request) -> None:
        """Expect one more turn of the request's prompt."""
        self.missing[request.key.prompt] += 1

    def finished(self, request: Request) -> None:
        """Count a turn of the request's prompt as ended."""
        name = request.key.prompt
        self.missing[name] -= 1
        if not self.missing[name]:
            self.whole.add(name)

    @property
    def reached(self) -> bool:
        if self.quorum is None:
            return False
        return len(self.whole) >= self.quorum.prompts and self.quorum.required <= self.whole


class Call:
    """Requests of one caller while they are open: the loop over an engine, with deadline, quorum, progress and checks.

    Leaving it aborts what is still open, so that an error or Ctrl-C leaves nothing in the engine.
    """

    def __init__(self, engine: Engine, sampling: Sampling, quorum: Quorum | None = None) -> None:
        self.engine, self.sampling, self.quorum = engine, sampling, quorum
        self.open: dict[int, Request] = {}
        """Requests that have not ended, by id."""
        self.finished = 0
        """Requests that have."""
        self._tracker = QuorumTracker(quorum)
        self.deadline = time.monotonic() + sampling.timeout_s
        """By `time.monotonic()`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for request in list(self.open):
            self.engine.abort(request)

    @property
    def seconds_left(self) -> float:
        """Until the deadline."""
        return self.deadline - time.monotonic()

    def submit(self, request: Request) -> int:
        """Hand a request to the engine; returns its id."""
        number = self.engine.submit(request, self.sampling)
        self.open[number] = request
        self._tracker.submitted(request)
        return number

    def step(self) -> list[tuple[int, Turn]]:
        """One pass of the engine; when the deadline has come or the quorum is reached, all turns as far as they came.

        Raises:
            EngineError: as the engine does, or what it answers breaks the contract.
        """
        if self.sampling.progress is not None:
            self.sampling.progress(self.finished, self.finished + len(self.open))
        if self._tracker.reached:
            ended = self._cut(StopReason.ABANDONED)
        elif self.seconds_left < 0:
            ended = self._cut(StopReason.DEADLINE)
        else:
            ended = self.engine.step()
        turns = [self._checked(answer) for answer in _pairs(ended)]
        if self.open and not ended and not self.engine.unfinished:
            total = self.finished + len(self.open)
            raise EngineError(f"the engine answered {self.finished} of {total} requests; expected one turn each")
        return turns

    def _cut(self, reason: StopReason) -> list[tuple[int, Any]]:
        return [(request, self.engine.abort(request, reason)) for request in list(self.open)]

    def _checked(self, answer: tuple[int, Any]) -> tuple[int, Turn]:
        number, turn = answer
        request = self.open.get(number)
        if request is None:
            raise EngineError(
                f"the engine answered request {number!r}, which is not open: it was never submitted, or has been "
                "answered before"
            )
        check_turn(request, turn, vocabulary=self.engine.vocabulary, sampling=self.sampling, quorum=self.quorum)
        del self.open[number]
        self.finished += 1
        self._tracker.finished(request)
        return number, turn


def _pairs(ended: Any) -> list[tuple[int, Any]]:
    """What a step answered, checked to be pairs."""
    if not isinstance(ended, list) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in ended):
        raise EngineError(f"the engine answered with {ended!r:.60}, expected a list of (id, turn)")
    return ended
