"""Engine interface: tokens in, tokens out, with log-probs and policy version. Its contract and the quorum, too."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from coterie.errors import EngineError
from coterie.types import SampleKey, StopReason, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One turn to sample."""

    key: SampleKey
    """Names the random stream; `key.version` is the policy version the caller expects."""
    prompt_tokens: tuple[int, ...]
    """[P]"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Sampling parameters of one call."""

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int
    stop: tuple[str, ...] = ()
    """Strings that end a turn; the token that completes one is kept."""
    timeout_s: float = 600.0
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
    """Samples turns from the policy."""

    @property
    def vocabulary(self) -> int:
        """Every token id is below this."""
        ...

    @property
    def version(self) -> int:
        """Policy version that the engine serves."""
        ...

    def generate(self, requests: Sequence[Request], sampling: Sampling, quorum: Quorum | None = None) -> list[Turn]:
        """One turn per request, in the order of the requests; with a quorum, turns that were not waited for end as
        `StopReason.ABANDONED`.

        Raises:
            EngineError: a request does not fit the model's context, asks for another version than is served, or the
                model returned logits that are not finite.
        """
        ...

    def commit(self, version: int) -> None:
        """Serve policy version `version` from now on."""
        ...

    def close(self) -> None: ...


class TextCodec(Protocol):
    """The part of the chat that an engine needs."""

    @property
    def stop_ids(self) -> frozenset[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


# The contract of an engine. Its turns are checked: a wrong log-prob trains a wrong policy in silence.

ABOVE_ZERO = 1e-3
"""A log-probability may exceed 0 by rounding, not by more."""


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


def check_turns(
    requests: Sequence[Request],
    turns: Sequence[Turn],
    *,
    vocabulary: int,
    sampling: Sampling,
    quorum: Quorum | None = None,
) -> None:
    """Raise EngineError if the turns do not fit the requests.

    Args:
        vocabulary: token ids are below this.
        sampling: of the call.
        quorum: of the call; without one, every turn is waited for.
    """
    if not isinstance(turns, list | tuple):
        raise EngineError(f"the engine answered with {turns!r:.60}, expected a list of one turn for each request")
    if len(turns) != len(requests):
        raise EngineError(f"the engine answered {len(turns)} of {len(requests)} requests; expected one turn each")
    for request, turn in zip(requests, turns, strict=True):
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

    def __init__(self, quorum: Quorum | None, requests: Sequence[Request]) -> None:
        self.quorum = quorum
        self.missing = Counter(request.key.prompt for request in requests)
        self.whole: set[str] = set()

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
