"""Environments with Gymnasium's interface that speak text, such as GEM's: `reset(seed)`, `step(action)`.

[environment]
name = "gymnasium"
params = { make = "gem:make", id = "game:GuessTheNumber-v0-easy" }
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from coterie.config.user_functions import user_function
from coterie.envs.base import Episode, EpisodeError, Observation
from coterie.errors import ConfigError
from coterie.rng import generator
from coterie.types import Message, Prompt


class GymnasiumText:
    """Plays an environment of its own in each episode: the model's text is the action, an observation its next message.

    The first observation stands below the prompt's last message. Rewards are those of the steps.

    Args:
        id: of the environment.
        make: function that makes it of its id, `module:function`.
        options: keyword arguments of that function.
        seed: column of the data with the seed of `reset`; a row without it has a seed of its own, made of its id.
    """

    def __init__(
        self, id: str, make: str = "gymnasium:make", options: Mapping[str, Any] | None = None, seed: str = "seed"
    ) -> None:
        self.id, self.options, self.seed = id, dict(options or {}), seed
        self.make: Callable[..., Any] = user_function(make)
        try:
            probe = self.make(id, **self.options)
        except Exception as error:
            raise ConfigError(
                f"environment.params: {make}({id!r}) raised {type(error).__name__}: {error}; expected the id of an "
                "environment, and options that it takes"
            ) from error
        _close(probe)

    def episode(self, prompt: Prompt) -> Episode:
        environment = self.make(self.id, **self.options)
        try:
            seed = prompt.attributes.get(self.seed)
            if seed is None:
                seed = int(generator("gymnasium", prompt.id).integers(1 << 31))
            text, _ = environment.reset(seed=int(seed))
            *before, last = prompt.messages
            opening = Message(role=last["role"], content=f"{last['content']}\n\n{self._text(text)}".strip())
            action = yield Observation(messages=(*before, opening))
            while True:
                text, reward, terminated, truncated, _ = environment.step(action)
                if terminated or truncated:
                    return float(reward)
                shown = Message(role="user", content=self._text(text))
                action = yield Observation(messages=(shown,), reward=float(reward))
        finally:
            _close(environment)

    def _text(self, observation: Any) -> str:
        if not isinstance(observation, str):
            raise EpisodeError(
                f"{self.id} observed {observation!r:.80}, a {type(observation).__name__}; expected text: wrap it in a "
                "gymnasium.ObservationWrapper that writes what the model should read, and name a function that does"
            )
        return observation


def _close(environment: Any) -> None:
    """Close an environment that can be closed; not all of GEM's can."""
    close = getattr(environment, "close", None)
    if callable(close):
        close()
