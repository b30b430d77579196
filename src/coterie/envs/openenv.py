"""Environments behind an OpenEnv server: `reset`, `step` and `state` over a websocket.

[environment]
name = "openenv"
params = { url = "http://127.0.0.1:8000", action = "message", observation = "text" }
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from coterie.envs.base import Episode, EpisodeError, Observation
from coterie.errors import ConfigError
from coterie.types import Message, Prompt


class OpenEnv:
    """Plays each episode in a session of its own at a server, with OpenEnv's `GenericEnvClient`.

    The first observation stands below the prompt's last message. Rewards are those of the steps. The state that the
    server names names that of the episode, for credit by turn, when `state` names some of its fields.

    Args:
        url: of the server.
        action: field of the action that gets the model's text.
        fixed: other fields of each action.
        observation: field of the observation that the model reads; empty shows all of it as JSON.
        reset: columns of the data that `reset` gets, by name.
        state: fields of `state` that make up the episode's state.
        timeout_s: of a message of the server.
    """

    def __init__(
        self,
        url: str,
        action: str = "message",
        fixed: Mapping[str, Any] | None = None,
        observation: str = "",
        reset: tuple[str, ...] | list[str] = ("seed",),
        state: tuple[str, ...] | list[str] = (),
        timeout_s: float = 60.0,
    ) -> None:
        try:
            from openenv.core.generic_client import GenericEnvClient  # ty: ignore[import-not-found]
        except ImportError as error:
            raise ConfigError(
                f'environment.name = "openenv" needs the package openenv ({error}): pip install openenv'
            ) from error
        self._client = GenericEnvClient
        self.url, self.action, self.fixed, self.observation = url, action, dict(fixed or {}), observation
        self.reset, self.state, self.timeout_s = tuple(reset), tuple(state), timeout_s

    def episode(self, prompt: Prompt) -> Episode:
        try:
            client = self._client(base_url=self.url, message_timeout_s=self.timeout_s).sync()
            client.connect()
        except Exception as error:
            raise EpisodeError(f"the OpenEnv server {self.url} cannot be reached: {error}; start it first") from error
        try:
            columns = {name: prompt.attributes[name] for name in self.reset if name in prompt.attributes}
            result = client.reset(**columns)
            *before, last = prompt.messages
            opening = Message(role=last["role"], content=f"{last['content']}\n\n{self._text(result)}".strip())
            text = yield Observation(messages=(*before, opening), state=self._state(client))
            while True:
                result = client.step({**self.fixed, self.action: text})
                reward = float(result.reward or 0.0)
                if result.done:
                    return reward
                shown = Message(role="user", content=self._text(result))
                text = yield Observation(messages=(shown,), reward=reward, state=self._state(client))
        finally:
            client.close()

    def _text(self, result: Any) -> str:
        """What the model reads of an observation."""
        if not self.observation:
            return json.dumps(result.observation, ensure_ascii=False, sort_keys=True)
        if self.observation not in result.observation:
            raise EpisodeError(
                f"the observation has no field {self.observation!r}; expected one of {', '.join(result.observation)} "
                "in environment.params.observation"
            )
        return str(result.observation[self.observation])

    def _state(self, client: Any) -> tuple[str, ...] | None:
        if not self.state:
            return None
        state = client.state()
        return tuple(json.dumps(state.get(name), sort_keys=True) for name in self.state)
