"""Episodes of the environment `dialogue`, whose user has a script."""

from __future__ import annotations

from typing import Any

import pytest

from coterie.config.schema import EnvironmentConfig
from coterie.envs.base import Observation
from coterie.envs.registry import environment_for
from coterie.errors import ConfigError
from coterie.types import Message, Prompt

HELLO: tuple[Message, ...] = ({"role": "user", "content": "Hello."},)


def script(row: dict[str, Any], **params: Any) -> Any:
    """Episode of a row in the environment `dialogue`."""
    environment = environment_for(EnvironmentConfig(name="dialogue", params=params))
    return environment.episode(Prompt(id="talk/1", messages=HELLO, answer=None, task="talk", attributes=row))


def test_a_conversation_follows_its_script() -> None:
    episode = script({"turns": ["And then?", "Why?"]})
    assert next(episode) == Observation(messages=HELLO)
    for text in ("And then?", "Why?"):
        assert episode.send("…") == Observation(messages=({"role": "user", "content": text},))
    with pytest.raises(StopIteration):
        episode.send("…")


@pytest.mark.parametrize("turns", ["text", [3], [""], {"a": "b"}])
def test_a_script_that_is_no_list_of_texts_is_refused(turns: Any) -> None:
    with pytest.raises(ValueError, match=r"talk/1 has turns = .*expected a list of texts"):
        next(script({"turns": turns}))


def test_a_row_without_a_script_has_one_turn() -> None:
    episode = script({"turns": ["And then?"]}, column="later")
    next(episode)
    with pytest.raises(StopIteration):
        episode.send("Hello.")


def test_a_role_that_no_user_has_is_refused() -> None:
    with pytest.raises(ConfigError, match="column = 'turns' and role = 'tool'; expected"):
        script({}, role="tool")
