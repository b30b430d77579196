"""What an engine must keep to. What it answers is not trusted: a wrong log-prob trains a wrong policy in silence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from coterie.engines.base import Request
from coterie.errors import EngineError
from coterie.types import Turn

ABOVE_ZERO = 1e-3
"""A log-probability may exceed 0 by rounding, not by more."""


def check_turns(requests: Sequence[Request], turns: Sequence[Turn], *, vocabulary: int) -> None:
    """Refuse answers that do not belong to the questions.

    Args:
        vocabulary: token ids are below this.

    Raises:
        EngineError: names the prompt, what came and what was expected.
    """
    if len(turns) != len(requests):
        raise EngineError(f"the engine answered {len(turns)} of {len(requests)} requests; expected one turn each")
    for request, turn in zip(requests, turns, strict=True):
        wrong = _fault(request, turn, vocabulary)
        if wrong is not None:
            raise EngineError(
                f"the engine's answer to prompt {request.key.prompt!r}, sample {request.key.sample}, {wrong}; nothing "
                "of this call is used. The engine and the policy do not fit together, or the engine is broken"
            )


def _fault(request: Request, turn: Turn, vocabulary: int) -> str | None:
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


def _is_token(value: Any, vocabulary: int) -> bool:
    return type(value) is int and 0 <= value < vocabulary


def _is_logprob(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value <= ABOVE_ZERO
