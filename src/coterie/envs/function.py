"""An environment that is a function of the user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from difflib import get_close_matches
from io import StringIO
from typing import Any

from coterie.envs.base import Episode, Shown
from coterie.errors import ConfigError
from coterie.observer import printed, prints_are_logged
from coterie.types import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionEnvironment:
    """Calls a generator function with the prompt and the `params` of the settings.

    Raises:
        ConfigError: it is no generator function, or does not take the prompt and these params.
    """

    name: str
    """As the settings name it."""
    function: Callable[..., Episode]
    params: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not inspect.isgeneratorfunction(self.function):
            raise ConfigError(
                f"environment.name = {self.name!r} is no generator function: an episode yields messages and receives "
                "completions, `said = yield messages`; see docs/environments.md"
            )
        signature = inspect.signature(self.function)
        if not any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values()):
            check_params(self.params, list(signature.parameters)[1:])
        try:
            signature.bind(None, **self.params)
        except TypeError as error:
            raise ConfigError(
                f"environment.name = {self.name!r} cannot be called with a prompt and environment.params = "
                f"{dict(self.params)}: {error}"
            ) from error

    def episode(self, prompt: Prompt) -> Episode:
        return _Overheard(self.name, self.function(prompt, **self.params))


class _Overheard(Generator[Shown, str, float | None]):
    """An episode whose prints go to the run's log, as long as there is one."""

    def __init__(self, name: str, episode: Episode) -> None:
        self._name, self._episode = name, episode

    def send(self, value: Any, /) -> Shown:
        with self._listening():
            return self._episode.send(value)

    def throw(self, *error: Any) -> Shown:
        with self._listening():
            return self._episode.throw(*error)

    @contextmanager
    def _listening(self) -> Generator[None]:
        if not prints_are_logged():
            yield  # to the console, where a debugger works too
            return
        copy = StringIO()
        try:
            with redirect_stdout(copy), redirect_stderr(copy):
                yield
        finally:
            text = copy.getvalue().strip("\n")
            if text:
                printed(f"environment {self._name}", text)


def check_params(params: Mapping[str, Any], known: list[str]) -> None:
    """Refuse a param that an environment does not take.

    Raises:
        ConfigError: names it, and the nearest that there is.
    """
    for name in params:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"environment.params holds {name!r}; expected of {', '.join(known) or 'none at all'}{hint}"
            )
