"""Environments by name: the class of a row or of the user's, or a generator function."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

from coterie.callbacks import printed, prints_are_logged, thread_output_to
from coterie.config.environment import EnvironmentConfig
from coterie.config.parts import ENVIRONMENTS, part
from coterie.envs.base import AsyncEpisode, Environment, Episode, Limits, Shown
from coterie.errors import ConfigError
from coterie.text import did_you_mean
from coterie.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionEnvironment:
    """Environment of a generator function, async or not, called with the prompt and the `params` of the settings."""

    name: str
    """As the settings name it."""
    function: Callable[..., Episode | AsyncEpisode]
    params: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (inspect.isgeneratorfunction(self.function) or inspect.isasyncgenfunction(self.function)):
            raise ConfigError(
                f"environment.name = {self.name!r} is no generator function, nor a class with a method `episode` that "
                "is one: an episode yields messages and receives completions, `answer = yield messages`; see "
                "docs/environments.md"
            )
        signature = inspect.signature(self.function)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
            check_params(self.params, list(signature.parameters)[1:])
        try:
            signature.bind(None, **self.params)
        except TypeError as error:
            raise ConfigError(
                f"environment.name = {self.name!r} cannot be called with a prompt and environment.params = "
                f"{dict(self.params)}: {error}"
            ) from error

    def episode(self, prompt: Prompt) -> Episode | AsyncEpisode:
        episode = self.function(prompt, **self.params)
        if isinstance(episode, Generator):
            return _LoggedEpisode(self.name, episode)
        return _LoggedAsyncEpisode(self.name, episode)


class _LoggedEpisode(Generator[Shown, str, float | None]):
    """Episode whose prints go to the run's log, as long as there is one."""

    def __init__(self, name: str, episode: Episode) -> None:
        self._name, self._episode = name, episode

    def send(self, value: Any, /) -> Shown:
        with _captured(self._name):
            return self._episode.send(value)

    def throw(self, *error: Any) -> Shown:
        with _captured(self._name):
            return self._episode.throw(*error)


class _LoggedAsyncEpisode(AsyncGenerator[Shown | float, str]):
    """The same for an async generator."""

    def __init__(self, name: str, episode: AsyncEpisode) -> None:
        self._name, self._episode = name, episode

    async def asend(self, value: Any, /) -> Shown | float:
        with _captured(self._name):
            return await self._episode.asend(value)

    async def athrow(self, *error: Any) -> Shown | float:
        with _captured(self._name):
            return await self._episode.athrow(*error)


@contextmanager
def _captured(name: str) -> Generator[None]:
    """Context in which what an environment prints goes to the log, where there is one."""
    if not prints_are_logged():
        yield  # to the console, where a debugger works too
        return
    copy = StringIO()
    try:
        with thread_output_to(copy):
            yield
    finally:
        text = copy.getvalue().strip("\n")
        if text:
            printed(f"environment {name}", text)


def check_params(params: Mapping[str, Any], accepted: list[str]) -> None:
    """Refuse a param that an environment does not take."""
    for name in params:
        if name not in accepted:
            raise ConfigError(
                f"environment.params holds {name!r}; expected of {', '.join(accepted) or 'none at all'}"
                f"{did_you_mean(name, accepted)}"
            )


class SingleTurn:
    """Single-turn environment: shows the prompt and ends with the first completion."""

    instant = True

    def episode(self, prompt: Prompt) -> Episode:
        yield prompt.messages


def environment_for(config: EnvironmentConfig) -> Environment:
    """Environment of the settings.

    Raises:
        ConfigError: it cannot be had, or does not take these params.
    """
    kind = part(ENVIRONMENTS, config.name)
    if not hasattr(kind, "episode"):
        return FunctionEnvironment(name=config.name, function=kind, params=config.params)
    signature = inspect.signature(kind)
    check_params(config.params, list(signature.parameters))
    try:
        signature.bind(**config.params)
    except TypeError as error:
        raise ConfigError(
            f"environment.name = {config.name!r} does not take environment.params = {dict(config.params)}: {error}"
        ) from error
    return kind(**config.params)


def limits_of(config: EnvironmentConfig) -> Limits | None:
    """Limits of an episode; None where it has one turn."""
    if not config.talks:
        return None
    return Limits(
        turns=config.max_turns,
        tokens=config.max_tokens,
        delay=config.delay,
        timeout_s=config.timeout_s,
        workers=config.workers,
    )
