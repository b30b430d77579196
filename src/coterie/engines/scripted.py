"""A scripted engine for tests, docs and loops of the user's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from coterie.engines.base import Quorum, QuorumTracker, Request, Sampling
from coterie.errors import EngineError
from coterie.types import StopReason, Turn

Script = Callable[[Request], Sequence[int]]


class ScriptedEngine:
    """Engine that replays token ids.

    Args:
        script: maps a request to token ids; what exceeds `sampling.max_tokens` is cut.
        logprob: log-probability reported for every token.
        version: policy version served at the start.
        vocabulary: ids of the script are below this.
    """

    def __init__(
        self, script: Script, *, logprob: float = math.log(0.5), version: int = 0, vocabulary: int = 1 << 31
    ) -> None:
        self.vocabulary = vocabulary
        self._script = script
        self._logprob = logprob
        self._version = version

    @property
    def version(self) -> int:
        return self._version

    def generate(self, requests: Sequence[Request], sampling: Sampling, quorum: Quorum | None = None) -> list[Turn]:
        """One turn per request, decoded as if side by side, token by token; a quorum abandons the longest."""
        turns = [self._turn(request, sampling) for request in requests]
        tracker = QuorumTracker(quorum, requests)
        for index in sorted(range(len(turns)), key=lambda k: len(turns[k].tokens)):
            if tracker.reached:
                turns[index] = replace(turns[index], stop_reason=StopReason.ABANDONED)
            tracker.finished(requests[index])
        return turns

    def _turn(self, request: Request, sampling: Sampling) -> Turn:
        if request.key.version != self._version:
            raise EngineError(f"asked for policy version {request.key.version}, but the engine serves {self._version}")
        script_tokens = tuple(self._script(request))
        tokens = script_tokens[: sampling.max_tokens]
        return Turn(
            prompt_tokens=request.prompt_tokens,
            tokens=tokens,
            sampler_logprobs=(self._logprob,) * len(tokens),
            temperature=sampling.temperature,
            stop_reason=StopReason.STOP if len(script_tokens) <= sampling.max_tokens else StopReason.LENGTH,
            version=self._version,
        )

    def commit(self, version: int) -> None:
        self._version = version

    def close(self) -> None:
        pass
