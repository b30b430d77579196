"""A sequence on its way through the embedded engine: its request, its random stream, and what was sampled so far."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from coterie.engines.base import Request, Sampling, TextCodec
from coterie.errors import EngineError
from coterie.rng import uniforms
from coterie.types import SampleKey, StopReason, Turn

_STOP_TAIL = 32  # tokens decoded when looking for a stop string


@dataclass(slots=True, kw_only=True, eq=False)
class SampledSequence:
    """One request from its submission to its turn."""

    id: int
    request: Request
    sampling: Sampling
    tokens: list[int] = field(default_factory=list)
    """Sampled so far."""
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    reason: StopReason | None = None
    """Reason why it ended; None while it has not."""
    _uniforms: np.ndarray | None = None  # [max_tokens], drawn when the first is asked for

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.request.prompt_tokens

    @property
    def position(self) -> int:
        """Position of the newest token in the sequence."""
        return len(self.prompt) + len(self.tokens) - 1

    @property
    def longest(self) -> int:
        """Tokens that it may have at its end, prompt included."""
        return len(self.prompt) + self.sampling.max_tokens

    @property
    def draw(self) -> float:
        """The uniform number that decides the next token: a function of the request's key and the token's index."""
        return self.draws(1)[0]

    def draws(self, count: int) -> list[float]:
        """The uniform numbers of the next `count` tokens, fewer where its limit comes first."""
        if self._uniforms is None:
            self._uniforms = uniforms(self.request.key, self.sampling.max_tokens)
        return self._uniforms[len(self.tokens) : len(self.tokens) + count].tolist()

    def append(self, token: int, logprob: float, entropy: float, codec: TextCodec) -> None:
        """Add the next token, and end where it says so.

        Raises:
            EngineError: the log-probability is not finite.
        """
        if not logprob > float("-inf"):
            raise EngineError(
                f"the model's logits for prompt {self.request.key.prompt!r} are not finite after {len(self.tokens)} "
                "tokens: the weights are damaged or the learning rate is far too high"
            )
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.entropies.append(entropy)
        if token in codec.stop_ids or self._at_stop_string(codec):
            self.reason = StopReason.STOP
        elif len(self.tokens) == self.sampling.max_tokens:
            self.reason = StopReason.LENGTH

    def _at_stop_string(self, codec: TextCodec) -> bool:
        if not self.sampling.stop:
            return False
        tail = codec.decode(self.tokens[-_STOP_TAIL:])
        last = codec.decode(self.tokens[-1:])
        # Only the part that the newest token touches: an earlier occurrence would have ended the sequence before.
        return any(stop in tail[-(len(last) + len(stop)) :] for stop in self.sampling.stop)

    def turn(self) -> Turn:
        """What was said, as far as it came."""
        return Turn(
            prompt_tokens=self.prompt,
            tokens=tuple(self.tokens),
            sampler_logprobs=tuple(self.logprobs),
            temperature=self.sampling.temperature,
            stop_reason=self.reason or StopReason.LENGTH,
            version=self.request.key.version,
            sampler_entropies=tuple(self.entropies),
        )


def attempt_of(key: SampleKey) -> SampleKey:
    """Name of the attempt that a turn belongs to, equal for all its turns."""
    return replace(key, turn=0)


def by_sampling(sequences: Iterable[SampledSequence]) -> dict[tuple[float, int, float], list[int]]:
    """Indices of the sequences by (temperature, top-k, top-p): those of one entry are sampled together."""
    groups: dict[tuple[float, int, float], list[int]] = {}
    for index, sequence in enumerate(sequences):
        limits = sequence.sampling
        groups.setdefault((limits.temperature, limits.top_k, limits.top_p), []).append(index)
    return groups
