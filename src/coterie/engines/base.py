"""The engine seam: tokens in, tokens out, with sampler log-probs and the policy version that sampled them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from coterie.types import SampleKey, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One turn to sample."""

    key: SampleKey
    """Names the random stream; `key.version` is the policy version the caller expects."""
    prompt_tokens: tuple[int, ...]
    """[P]"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to sample; one setting for a whole call."""

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int
    stop: tuple[str, ...] = ()
    """Strings that end a turn; the token that completes one is kept."""
    deadline_s: float = 600.0
    progress: Callable[[int, int], None] | None = field(default=None, compare=False, repr=False)
    """Told (finished, all) sequences of a call, often; what it raises ends the call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quorum:
    """When a call may stop."""

    prompts: int
    """How many prompts must be whole."""
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
        """The weights now are those of `version`."""
        ...

    def close(self) -> None: ...


class TextCodec(Protocol):
    """The part of the chat that an engine needs."""

    @property
    def stop_ids(self) -> frozenset[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...
