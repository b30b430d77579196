"""A scripted engine for tests, docs and loops of the user's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from coterie.engines.base import Engine, Request, Sampling, check_idle
from coterie.errors import EngineError
from coterie.types import StopReason, Turn

Script = Callable[[Request], Sequence[int]]


@dataclass(slots=True)
class _Recital:
    """A turn that is being said, a token a pass."""

    turn: Turn
    passes: int = 0


class ScriptedEngine(Engine):
    """Engine that replays token ids, a token of every open request in each pass.

    Args:
        script: maps a request to token ids; what exceeds `sampling.max_tokens` is cut.
        logprob: log-probability reported for every token.
        version: policy version served at the start.
        vocabulary: ids of the script are below this.
    """

    def __init__(
        self, script: Script, *, logprob: float = math.log(0.5), version: int = 0, vocabulary: int = 1 << 31
    ) -> None:
        self._script = script
        self._logprob = logprob
        self._version = version
        self._vocabulary = vocabulary
        self._open: dict[int, _Recital] = {}
        self._submitted = 0

    @property
    def vocabulary(self) -> int:
        return self._vocabulary

    @property
    def version(self) -> int:
        return self._version

    @property
    def unfinished(self) -> int:
        return len(self._open)

    def submit(self, request: Request, sampling: Sampling) -> int:
        if request.key.version != self._version:
            raise EngineError(f"asked for policy version {request.key.version}, but the engine serves {self._version}")
        script_tokens = tuple(self._script(request))
        tokens = script_tokens[: sampling.max_tokens]
        turn = Turn(
            prompt_tokens=request.prompt_tokens,
            tokens=tokens,
            sampler_logprobs=(self._logprob,) * len(tokens),
            temperature=sampling.temperature,
            stop_reason=StopReason.STOP if len(script_tokens) <= sampling.max_tokens else StopReason.LENGTH,
            version=self._version,
        )
        self._submitted += 1
        self._open[self._submitted] = _Recital(turn)
        return self._submitted

    def step(self) -> list[tuple[int, Turn]]:
        for recital in self._open.values():
            recital.passes += 1
        ended = [(number, recital.turn) for number, recital in self._open.items() if self._is_whole(recital)]
        for number, _ in ended:
            del self._open[number]
        return ended

    def _is_whole(self, recital: _Recital) -> bool:
        return recital.passes >= len(recital.turn.tokens)

    def sampled(self, request: int, start: int) -> tuple[list[int], list[float]]:
        recital = self._open[request]
        new = slice(start, recital.passes)
        return list(recital.turn.tokens[new]), list(recital.turn.sampler_logprobs[new])

    def abort(self, request: int, reason: StopReason = StopReason.ABANDONED) -> Turn | None:
        recital = self._open.pop(request, None)
        if recital is None:
            return None
        turn, count = recital.turn, recital.passes
        logprobs = turn.sampler_logprobs[:count]
        return replace(turn, tokens=turn.tokens[:count], sampler_logprobs=logprobs, stop_reason=reason)

    def commit(self, version: int) -> None:
        check_idle(self, version)
        self._version = version

    def close(self) -> None:
        self._open.clear()
