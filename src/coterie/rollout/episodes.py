"""Episodes in rounds: the next turns of all open ones in one call of the engine.

Tokens in, tokens out: what a turn is shown is, token for token, what the turn before was shown, what the model said,
and what the chat template puts between there and the next turn. What the model said is never encoded again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

from coterie.engines.base import Engine, Quorum, Request, Sampling, check_turns
from coterie.envs.base import (
    Environment,
    Episode,
    EpisodeError,
    Limits,
    check_observation,
    check_reward,
    digest,
    state_key,
)
from coterie.errors import ConfigError, DataError
from coterie.text import before_stop
from coterie.types import Message, Prompt, SampleKey, StopReason, Turn


class ChatTemplate(Protocol):
    """The part of the chat that episodes need; an attribute `opening` is taken where there is one."""

    def render(self, messages: Sequence[Message]) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def render_continuation(
        self, messages: Sequence[Message], turn_ids: Sequence[int], *, stop: Sequence[str] = ()
    ) -> list[int]: ...


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One attempt at a prompt, from its first turn to its end."""

    prompt: Prompt
    sample: int
    episode: Episode
    """Of its environment."""
    turns: list[Turn] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    """Of each turn."""
    messages: list[Message] = field(default_factory=list)
    """The conversation so far."""
    tokens: tuple[int, ...] = ()
    """Prompt tokens of the next turn."""
    states: list[str | None] = field(default_factory=list)
    """Before each turn, as the environment named it."""
    shown: list[int] = field(default_factory=list)
    """Number of messages before each turn."""
    error: str | None = None
    """The environment's failure; None without one."""
    open: bool = True

    def show(self, yielded: object) -> tuple[Message, ...]:
        """Add the observation that the environment yielded before a turn, and return its messages.

        Raises:
            EpisodeError: it is no observation.
        """
        observation = check_observation(yielded)
        if self.turns:
            self._earn(observation.reward)
            if observation.calls:
                self.messages[-1]["tool_calls"] = list(observation.calls)
        elif observation.reward:
            raise EpisodeError(
                f"the environment gave the reward {observation.reward} with its opening; expected 0: nothing was said "
                "yet"
            )
        self.messages += observation.messages
        self.states.append(state_key(observation.state))
        self.shown.append(len(self.messages))
        return tuple(observation.messages)

    def hear(self, turn: Turn, text: str) -> None:
        """Add the model's turn."""
        self.turns.append(turn)
        self.texts.append(text)
        self.messages.append(Message(role="assistant", content=text))

    def end(self, reward: float = 0.0) -> None:
        """End the episode, as its environment returned."""
        self.open = False
        self._earn(reward)

    def fail(self, cause: str) -> None:
        """End the episode as failed."""
        self.open, self.error = False, cause

    def cut(self, reason: StopReason) -> None:
        """End the episode at a limit, where its environment would have gone on."""
        self.open = False
        self.turns[-1] = replace(self.turns[-1], stop_reason=reason)
        with suppress(Exception):  # the environment's own clean-up; nobody asks it anything any more
            self.episode.close()

    def finished(self) -> None:
        """Stamp the turns with their states: those that the environment did not name are all that was said so far.

        An episode of one turn is stamped as well: attempts are compared by state, and which of them are must not
        depend on how many turns they took."""
        for number, turn in enumerate(self.turns[: len(self.states)]):
            named = self.states[number]
            state = digest(self.messages[: self.shown[number]]) if named is None else named
            self.turns[number] = replace(turn, state=state)

    @property
    def transcript(self) -> tuple[Message, ...]:
        """All messages of the episode; empty where the model answered its prompt once."""
        plain = len(self.turns) == 1 and tuple(self.messages[:-1]) == tuple(self.prompt.messages)
        return () if plain or not self.shown else tuple(self.messages)

    def _earn(self, reward: float) -> None:
        if reward:
            self.turns[-1] = replace(self.turns[-1], reward=self.turns[-1].reward + reward)


class Episodes:
    """Open episodes stepped together, one engine call a round, until all have ended.

    Args:
        seed: of the run; the draws of a turn derive from it and from (version, prompt, sample, turn).
    """

    def __init__(
        self, engine: Engine, environment: Environment, chat: ChatTemplate, *, seed: int, limits: Limits
    ) -> None:
        self.engine, self.environment, self.chat = engine, environment, chat
        self.seed, self.limits = seed, limits
        self.opening = getattr(chat, "opening", "")
        """Text that the chat template puts in front of each turn, which the environment sees too."""

    def run(
        self, pairs: Sequence[tuple[Prompt, int]], sampling: Sampling, quorum: Quorum | None = None
    ) -> list[Attempt]:
        """One finished attempt for each (prompt, sample). `sampling.timeout_s` is for all rounds together.

        Raises:
            EngineError: sampling failed.
            ConfigError: a quorum was asked for, and an environment wants a second turn.
        """
        started = time.monotonic()
        attempts = self._opened(pairs, sampling)
        while pending := [attempt for attempt in attempts if attempt.open]:
            left = sampling.timeout_s - (time.monotonic() - started)
            later = any(attempt.turns for attempt in pending)
            if later and quorum is not None:
                raise ConfigError(
                    "the environment asked for a second turn while only a quorum of the prompts is waited for; set "
                    "collect.oversample = 1"
                )
            if later and left <= 0:
                for attempt in pending:
                    attempt.cut(StopReason.DEADLINE)
                break
            self._round(pending, replace(sampling, timeout_s=left) if later else sampling, quorum)
        if self.limits.turns > 1:  # else there are no states to come back to
            for attempt in attempts:
                attempt.finished()
        return attempts

    def _opened(self, pairs: Sequence[tuple[Prompt, int]], sampling: Sampling) -> list[Attempt]:
        """Attempts with the first observation of their environments."""
        rendered: dict[tuple[tuple[str, str], ...], tuple[int, ...]] = {}

        def tokens_of(messages: Sequence[Message]) -> tuple[int, ...]:
            key = tuple((message["role"], message["content"]) for message in messages)
            if key not in rendered:
                rendered[key] = tuple(self.chat.render(messages))
            return rendered[key]

        attempts = []
        for prompt, sample in pairs:
            attempt = Attempt(prompt=prompt, sample=sample, episode=self.environment.episode(prompt))
            try:
                attempt.tokens = tokens_of(attempt.show(next(attempt.episode)))
                self._require_room(attempt, sampling)
            except StopIteration:
                attempt.fail("the environment ended the episode before the model's first turn")
            except Exception as error:
                attempt.fail(_error_text(error))
            if not attempt.open:
                attempt.turns.append(_unsaid(tokens_of(prompt.messages), sampling, self.engine.version))
                attempt.texts.append("")
            attempts.append(attempt)
        return attempts

    def _require_room(self, attempt: Attempt, sampling: Sampling) -> None:
        count = len(attempt.tokens)
        if count + sampling.max_tokens > self.limits.tokens:
            raise EpisodeError(
                f"the environment's opening has {count} tokens, which with sampling.max_tokens = "
                f"{sampling.max_tokens} is more than environment.max_tokens = {self.limits.tokens}; raise that, or "
                "open with less"
            )

    def _round(self, pending: Sequence[Attempt], sampling: Sampling, quorum: Quorum | None) -> None:
        """The next turn of each, in one call."""
        requests = [
            Request(
                key=SampleKey(
                    seed=self.seed,
                    version=self.engine.version,
                    prompt=attempt.prompt.id,
                    sample=attempt.sample,
                    turn=len(attempt.turns),
                ),
                prompt_tokens=attempt.tokens,
            )
            for attempt in pending
        ]
        turns = self.engine.generate(requests, sampling, quorum)
        check_turns(requests, turns, vocabulary=self.engine.vocabulary, sampling=sampling, quorum=quorum)
        for attempt, turn in zip(pending, turns, strict=True):
            if turn.stop_reason is StopReason.ABANDONED:
                attempt.hear(turn, "")
                attempt.open = False
            elif not turn.tokens and attempt.turns:  # the deadline came before this turn's first token
                attempt.cut(turn.stop_reason)
            else:
                attempt.hear(turn, spoken_text(turn, self.chat, sampling.stop))
                self._answer(attempt, sampling)

    def _answer(self, attempt: Attempt, sampling: Sampling) -> None:
        """Send the newest turn to the environment, and prepare the next one if there is one."""
        turn = attempt.turns[-1]
        try:
            yielded = attempt.episode.send(self.opening + attempt.texts[-1])
        except StopIteration as ending:
            try:
                attempt.end(check_reward(ending.value))
            except EpisodeError as error:
                attempt.fail(_error_text(error))
            return
        except Exception as error:
            attempt.fail(_error_text(error))
            return
        try:
            shown = attempt.show(yielded)
            more = len(attempt.turns) < self.limits.turns and turn.stop_reason is not StopReason.DEADLINE
            between = self.chat.render_continuation(shown, turn.tokens, stop=sampling.stop) if more else []
        except (EpisodeError, DataError) as error:
            attempt.fail(_error_text(error))
            return
        attempt.tokens = (*turn.prompt_tokens, *turn.tokens, *between)
        if turn.stop_reason is StopReason.DEADLINE:
            attempt.cut(StopReason.DEADLINE)
        elif not more or len(attempt.tokens) + sampling.max_tokens > self.limits.tokens:
            attempt.cut(StopReason.EPISODE)


def spoken_text(turn: Turn, chat: ChatTemplate, stop: Sequence[str]) -> str:
    """A turn's text, without the stop string that ended it; its tokens keep that."""
    text = chat.decode(turn.tokens)
    return before_stop(text, stop) if turn.stop_reason is StopReason.STOP else text


def _unsaid(prompt_tokens: tuple[int, ...], sampling: Sampling, version: int) -> Turn:
    """Placeholder of the turn that an environment which failed at once did not ask for."""
    return Turn(
        prompt_tokens=prompt_tokens,
        tokens=(),
        sampler_logprobs=(),
        temperature=sampling.temperature,
        stop_reason=StopReason.EPISODE,
        version=version,
    )


def _error_text(error: Exception) -> str:
    """The error as one line; of an exception of the environment's own with its type."""
    if isinstance(error, EpisodeError):
        return str(error)
    return f"the environment raised {type(error).__name__}: {error}"
