"""The environment seam: an episode yields messages and receives completions, so one body serves every engine."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

from coterie.types import Message, Prompt

State = str | int | float | tuple["State", ...]
"""What may name a state: text, a number, or a tuple of those."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What the model is shown before a turn."""

    messages: tuple[Message, ...]
    """Of the first one: the whole opening; later only what is new since the model's last turn."""
    state: State | None = None
    """Names what the environment is in now, as far as it matters for what comes: attempts at a prompt that came to
    equal states are compared there. None stands for all that was said so far."""
    reward: float = 0.0
    """What the model's last turn earned; 0 of the first observation."""


Shown = Observation | tuple[Message, ...]
"""An episode may yield the messages alone."""
Episode = Generator[Shown, str, float | None]
"""Yields what the model is to answer, receives the completion's text, and returns when the episode is over: what the
last turn earned, or None for nothing."""


class Environment(Protocol):
    """Turns a prompt into an episode. An instance holds no state of an episode: each one is its own generator, and a
    function of its prompt and the completions alone, so that a resumed run sees the same."""

    def episode(self, prompt: Prompt) -> Episode: ...


class EpisodeError(Exception):
    """An environment yielded or returned what no episode can hold."""


def observed(found: Any) -> Observation:
    """What an episode yielded, checked; a list or tuple of messages is an observation without reward.

    Raises:
        EpisodeError: says what was yielded, what was expected and what to do.
    """
    if isinstance(found, list | tuple):
        found = Observation(messages=tuple(found))
    if not isinstance(found, Observation):
        raise EpisodeError(
            f"the environment yielded {_named(found)}; expected an Observation, or a tuple of messages: yield "
            'Observation(messages=({"role": "user", "content": …},))'
        )
    sound = isinstance(found.messages, list | tuple) and all(map(_is_message, found.messages))
    if not sound or not found.messages:
        raise EpisodeError(
            f"the environment yielded the messages {_named(found.messages)}; expected one or more of the form "
            '{"role": "user", "content": …}, both text'
        )
    earned(found.reward)
    state_key(found.state)
    return found


def earned(value: Any) -> float:
    """What a turn earned; None is nothing.

    Raises:
        EpisodeError: it is no finite number.
    """
    if value is None:
        return 0.0
    if not isinstance(value, Real) or not math.isfinite(float(value)):
        raise EpisodeError(f"the environment gave the reward {_named(value)}; expected a finite number, or None")
    return float(value)


def state_key(state: Any) -> str | None:
    """A state as text, equal for equal states on any day; None stays None.

    >>> state_key("lost"), state_key((2, 17)), state_key(None)
    ('lost', '(2, 17)', None)

    Raises:
        EpisodeError: it is not made of text and numbers, whose spelling is the same tomorrow.
    """
    if state is None or isinstance(state, str):
        return state
    if not _is_plain(state):
        raise EpisodeError(
            f"the environment named the state {_named(state)}; expected text, a number, or a tuple of those: other "
            "objects may be spelled differently in a resumed run"
        )
    return repr(state)


def digest(messages: Sequence[Message]) -> str:
    """Names the state of an episode by all that was said in it: 16 hex digits."""
    said = json.dumps([[message["role"], message["content"]] for message in messages])
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def _is_plain(state: Any) -> bool:
    if isinstance(state, tuple):
        return all(map(_is_plain, state))
    return type(state) in (str, int, float, bool)


def _named(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:
        text = "…"
    return f"{text[:80]}{'…' if len(text) > 80 else ''} (a {type(value).__name__})"


UNLIMITED = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Where an episode ends, whether its environment would go on or not."""

    turns: int = 1
    """Most turns of the model."""
    tokens: int = UNLIMITED
    """Longest sequence, first prompt included; a turn that might outgrow it is not begun."""
