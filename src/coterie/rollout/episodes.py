"""Episodes as coroutines over the engine: when a turn ends its environment goes on at once, and the others never stop.

Tokens in, tokens out: what a turn is shown is, token for token, what the turn before was shown, what the model said,
and what the chat template puts between there and the next turn. What the model said is never encoded again.

Which turns share a pass depends on tokens alone: the next turn of one that ended in pass p is submitted for pass
p + `Limits.delay`, and waited for if its environment is late. So a resumed run repeats every pass.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from coterie.engines.base import Call, Engine, Quorum, Request, Sampling
from coterie.envs.base import (
    AsyncEpisode,
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
from coterie.rollout.episode_workers import Answer, EpisodeWorkers
from coterie.text import before_stop
from coterie.types import Message, Prompt, SampleKey, StopReason, Turn

_GRACE_S = 1.0  # for the answer to a turn that the deadline cut: its reward may come with it


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
    episode: Episode | AsyncEpisode
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
    request: int | None = None
    """The engine's id of the newest turn, for which it may keep something."""

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
    """Open episodes, each stepped as soon as it can be, until all have ended.

    Args:
        seed: of the run; the draws of a turn derive from it and from (version, prompt, sample, turn).
    """

    def __init__(
        self, engine: Engine, environment: Environment, chat: ChatTemplate, *, seed: int, limits: Limits
    ) -> None:
        self.engine, self.environment, self.chat = engine, environment, chat
        self.seed, self.limits = seed, limits
        self.instant = bool(getattr(environment, "instant", False))
        """The environment answers without work worth a thread."""
        self.opening = getattr(chat, "opening", "")
        """Text that the chat template puts in front of each turn, which the environment sees too."""
        self.busy_seconds = 0.0
        """That environments worked."""
        self.waited_seconds = 0.0
        """That sampling stood still for them."""

    def run(
        self, pairs: Sequence[tuple[Prompt, int]], sampling: Sampling, quorum: Quorum | None = None
    ) -> list[Attempt]:
        """One finished attempt for each (prompt, sample). `sampling.timeout_s` is for all turns together.

        Raises:
            EngineError: sampling failed.
            ConfigError: a quorum was asked for, and an environment wants a second turn.
        """
        attempts = [
            Attempt(prompt=prompt, sample=sample, episode=self.environment.episode(prompt)) for prompt, sample in pairs
        ]

        def progress(*_: int) -> None:
            if sampling.progress is not None:
                sampling.progress(sum(not attempt.open for attempt in attempts), len(attempts))

        workers = EpisodeWorkers(threads=self.limits.workers, timeout_s=self.limits.timeout_s)
        with workers, Call(self.engine, replace(sampling, progress=progress), quorum) as call:
            try:
                _Play(self, workers, call, attempts).run()
            finally:
                self.busy_seconds, self.waited_seconds = workers.busy_seconds, workers.waited_seconds
        if self.limits.turns > 1:  # else there are no states to come back to
            for attempt in attempts:
                attempt.finished()
        return attempts


class _Play:
    """One run of open episodes: those whose turn is sampled, and those whose environment answers."""

    def __init__(self, episodes: Episodes, workers: EpisodeWorkers, call: Call, attempts: Sequence[Attempt]) -> None:
        self.episodes, self.workers, self.call, self.attempts = episodes, workers, call, attempts
        self.engine, self.chat, self.limits = episodes.engine, episodes.chat, episodes.limits
        self.sampling = call.sampling
        self.version = self.engine.version
        """Of all turns: the engine refuses to go on with another one."""
        self.speaking: dict[int, Attempt] = {}
        """By id of the request."""
        self.answers: dict[int, list[tuple[Attempt, Answer]]] = {}
        """By the pass before which the next turn is submitted."""
        self.passes = 0

    def run(self) -> None:
        """Play until all episodes have ended."""
        try:
            self._open()
            while self.speaking or self.answers:
                self._admit()
                if self.speaking:
                    for number, turn in self.call.step():
                        self._hear(self.speaking.pop(number), turn)
                    self.passes += 1
                elif self.answers:  # nothing to decode until the next answer is due
                    self.passes = max(self.passes, min(self.answers))
        finally:
            for attempt in self.attempts:
                self._free(attempt)

    def _open(self) -> None:
        """Show each episode's first observation; then all that are open are submitted together."""
        rendered: dict[tuple[tuple[str, str], ...], tuple[int, ...]] = {}

        def tokens_of(messages: Sequence[Message]) -> tuple[int, ...]:
            key = tuple((message["role"], message["content"]) for message in messages)
            if key not in rendered:
                rendered[key] = tuple(self.chat.render(messages))
            return rendered[key]

        answers = [self._ask(attempt, None) for attempt in self.attempts]
        for attempt, answer in zip(self.attempts, answers, strict=True):
            try:
                reply = self.workers.wait(answer, self.call.deadline, self._tick)
                if reply is None:
                    raise EpisodeError("the environment had not opened the episode when sampling.timeout_s was over")
                if reply.ended:
                    raise EpisodeError("the environment ended the episode before the model's first turn")
                attempt.tokens = tokens_of(attempt.show(reply.yielded))
                self._require_room(attempt)
            except Exception as error:
                attempt.fail(_error_text(error))
                attempt.turns.append(_unsaid(tokens_of(attempt.prompt.messages), self.sampling, self.version))
                attempt.texts.append("")
        for attempt in self.attempts:
            if attempt.open:
                self._submit(attempt)

    def _ask(self, attempt: Attempt, text: str | None) -> Answer:
        return self.workers.ask(attempt.episode, text, instant=self.episodes.instant)

    def _tick(self) -> None:
        if self.sampling.progress is not None:
            self.sampling.progress(0, 0)

    def _require_room(self, attempt: Attempt) -> None:
        count = len(attempt.tokens)
        if count + self.sampling.max_tokens > self.limits.tokens:
            raise EpisodeError(
                f"the environment's opening has {count} tokens, which with sampling.max_tokens = "
                f"{self.sampling.max_tokens} is more than environment.max_tokens = {self.limits.tokens}; raise that, "
                "or open with less"
            )

    def _submit(self, attempt: Attempt) -> None:
        key = SampleKey(
            seed=self.episodes.seed,
            version=self.version,
            prompt=attempt.prompt.id,
            sample=attempt.sample,
            turn=len(attempt.turns),
        )
        may_continue = len(attempt.turns) + 1 < self.limits.turns
        request = Request(key=key, prompt_tokens=attempt.tokens, may_continue=may_continue)
        attempt.request = self.call.submit(request)
        self.speaking[attempt.request] = attempt

    def _hear(self, attempt: Attempt, turn: Turn) -> None:
        """A turn has ended: its environment begins to answer."""
        if turn.stop_reason is StopReason.ABANDONED:
            attempt.hear(turn, "")
            attempt.open = False
        elif not turn.tokens and attempt.turns:  # the deadline came before this turn's first token
            self._cut(attempt, turn.stop_reason)
        else:
            attempt.hear(turn, spoken_text(turn, self.chat, self.sampling.stop))
            answer = self._ask(attempt, self.episodes.opening + attempt.texts[-1])
            self.answers.setdefault(self.passes + self.limits.delay, []).append((attempt, answer))

    def _admit(self) -> None:
        """Submit the next turns that are due, in the order in which the turns before them ended."""
        for due in sorted(due for due in self.answers if due <= self.passes):
            for attempt, answer in self.answers.pop(due):
                self._answered(attempt, answer)
                if attempt.open and self.call.quorum is not None:
                    raise ConfigError(
                        "the environment asked for a second turn while only a quorum of the prompts is waited for; set "
                        "collect.oversample = 1"
                    )
                if attempt.open:
                    self._submit(attempt)
                else:
                    self._free(attempt)

    def _answered(self, attempt: Attempt, answer: Answer) -> None:
        """Take the environment's answer to the newest turn, and prepare the next one if there is one."""
        turn, stop = attempt.turns[-1], self.sampling.stop
        try:
            until = max(self.call.deadline, time.monotonic() + _GRACE_S)
            reply = self.workers.wait(answer, until, self._tick)
            if reply is None:
                return self._cut(attempt, StopReason.DEADLINE)
            if reply.ended:
                return attempt.end(check_reward(reply.reward))
            shown = attempt.show(reply.yielded)
        except Exception as error:
            return attempt.fail(_error_text(error))
        more = len(attempt.turns) < self.limits.turns and turn.stop_reason is not StopReason.DEADLINE
        try:
            between = self.chat.render_continuation(shown, turn.tokens, stop=stop) if more else []
        except DataError as error:
            return attempt.fail(_error_text(error))
        attempt.tokens = (*turn.prompt_tokens, *turn.tokens, *between)
        if turn.stop_reason is StopReason.DEADLINE or self.call.seconds_left < 0:
            self._cut(attempt, StopReason.DEADLINE)
        elif not more or len(attempt.tokens) + self.sampling.max_tokens > self.limits.tokens:
            self._cut(attempt, StopReason.EPISODE)
        return None

    def _cut(self, attempt: Attempt, reason: StopReason) -> None:
        attempt.cut(reason)
        self.workers.close(attempt.episode)

    def _free(self, attempt: Attempt) -> None:
        """Tell the engine that the attempt's last turn has no next one."""
        if attempt.request is not None:
            self.engine.abort(attempt.request)
            attempt.request = None


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
        sampler_entropies=(),
    )


def _error_text(error: Exception) -> str:
    """The error as one line; of an exception of the environment's own with its type."""
    if isinstance(error, EpisodeError):
        return str(error)
    return f"the environment raised {type(error).__name__}: {error}"
