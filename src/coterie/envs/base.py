"""Environment protocol: an episode yields messages and receives completions."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import AsyncGenerator, Generator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

from coterie.types import Message, Prompt

State = str | int | float | tuple["State", ...]
"""Key of a state: text, a number, or a tuple of those."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Messages shown to the model before a turn, with the state and the last turn's reward."""

    messages: tuple[Message, ...]
    """Of the first one: the whole opening; later only what is new since the model's last turn."""
    state: State | None = None
    """Key of the environment's state, as far as it matters for the future: attempts at a prompt that came to equal
    states are compared there. None stands for all messages so far."""
    reward: float = 0.0
    """Reward of the model's last turn; 0 of the first observation."""
    calls: tuple[dict[str, Any], ...] = ()
    """Calls that the environment read in the last turn, for the record: `tool_calls` of its message."""


Shown = Observation | tuple[Message, ...]
"""An episode may yield the messages alone."""
Episode = Generator[Shown, str, float | None]
"""Generator that yields observations, receives the completion's text, and returns at the end of the episode: the reward
of the last turn, or None for 0."""
AsyncEpisode = AsyncGenerator[Shown | float, str]
"""The same as an async generator, which cannot return a value: it yields that reward last."""


class Environment(Protocol):
    """Turns a prompt into an episode. An instance holds no state of an episode: each one is its own generator, and a
    function of its prompt and the completions alone, so that a resumed run sees the same.

    Episodes answer in threads, several at once, or, as async generators, in an event loop; those of a class with
    `instant = True` answer where they are asked, between two tokens."""

    def episode(self, prompt: Prompt) -> Episode | AsyncEpisode: ...


class EpisodeError(Exception):
    """An invalid observation, reward or state of an environment."""


def check_observation(yielded: Any) -> Observation:
    """Checked observation; a list or tuple of messages is one without reward."""
    if isinstance(yielded, list | tuple):
        yielded = Observation(messages=tuple(yielded))
    if not isinstance(yielded, Observation):
        raise EpisodeError(
            f"the environment yielded {_describe(yielded)}; expected an Observation, or a tuple of messages: yield "
            'Observation(messages=({"role": "user", "content": …},))'
        )
    sound = isinstance(yielded.messages, list | tuple) and all(map(_is_message, yielded.messages))
    if not sound or not yielded.messages:
        raise EpisodeError(
            f"the environment yielded the messages {_describe(yielded.messages)}; expected one or more of the form "
            '{"role": "user", "content": …}, both text'
        )
    check_reward(yielded.reward)
    state_key(yielded.state)
    return yielded


def check_reward(value: Any) -> float:
    """Checked reward of a turn; None is 0."""
    if value is None:
        return 0.0
    if not isinstance(value, Real) or not math.isfinite(float(value)):
        raise EpisodeError(f"the environment gave the reward {_describe(value)}; expected a finite number, or None")
    return float(value)


def state_key(state: Any) -> str | None:
    """A state as text, equal for equal states on any day; None stays None.

    >>> state_key("lost"), state_key((2, 17)), state_key(None)
    ('lost', '(2, 17)', None)
    """
    if state is None or isinstance(state, str):
        return state
    if not _is_plain(state):
        raise EpisodeError(
            f"the environment named the state {_describe(state)}; expected text, a number, or a tuple of those: other "
            "objects may be spelled differently in a resumed run"
        )
    return repr(state)


def digest(messages: Sequence[Message]) -> str:
    """State key of an episode by all its messages: 16 hex digits."""
    text = json.dumps([[message["role"], message["content"]] for message in messages])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def _is_plain(state: Any) -> bool:
    if isinstance(state, tuple):
        return all(map(_is_plain, state))
    return type(state) in (str, int, float, bool)


def _describe(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:
        text = "…"
    return f"{text[:80]}{'…' if len(text) > 80 else ''} (a {type(value).__name__})"


UNLIMITED = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of an episode, whether its environment would go on or not."""

    turns: int = 1
    """Most turns of the model."""
    tokens: int = UNLIMITED
    """Longest sequence, first prompt included; a turn that might outgrow it is not begun."""
    delay: int = 1
    """Passes of the engine from the one in which a turn ends to the one for which the next turn is submitted."""
    timeout_s: float = 120.0
    """Deadline of the environment's answer to a turn."""
    workers: int = 16
    """Most episodes that answer at once in threads."""
