"""A part's row of a dict is all that declares its name."""

from __future__ import annotations

import json

import pytest

from coterie.build.learner import estimator_for
from coterie.config import parts
from coterie.config.keys import settings
from coterie.config.load import load
from coterie.config.schema import EnvironmentConfig, RunConfig
from coterie.config.show import help_for_settings, json_schema
from coterie.envs.registry import environment_for
from coterie.errors import ConfigError

DATA = ["--data.train", '[{"type": "reasoning_gym", "name": "leg_counting"}]']
TABLES = {
    "engine.name": parts.ENGINES,
    "environment.name": parts.ENVIRONMENTS,
    "advantage.estimator": parts.ESTIMATORS,
}


@pytest.mark.parametrize("key", TABLES)
def test_a_row_is_all_that_a_name_needs(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=f"{key} = 'fancy'"):
        load([*DATA, f"--{key}", "fancy"], env={})
    monkeypatch.setitem(TABLES[key], "fancy", "builtins:dict")
    section, _, name = key.partition(".")
    config = load([*DATA, f"--{key}", "fancy"], env={}).config
    assert getattr(getattr(config, section), name) == "fancy"
    assert parts.part(TABLES[key], "fancy") is dict
    settings.cache_clear()
    try:
        assert " | fancy | module:function" in settings()[key].expected
        assert "fancy" in help_for_settings()
        assert '"fancy"' in json.dumps(json_schema())
    finally:
        settings.cache_clear()


@pytest.mark.parametrize("key", TABLES)
def test_every_row_can_be_imported(key: str) -> None:
    assert all(callable(parts.part(TABLES[key], name)) for name in TABLES[key])


def test_the_nearest_name_is_told() -> None:
    with pytest.raises(ConfigError, match=r"expected one of single_turn, .*, module:function; did you mean 'retry'\?"):
        load([*DATA, "--environment.name", "retri"], env={})


def test_a_class_of_the_users_is_an_environment(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_class.py").write_text(
        "class Echo:\n    def __init__(self, *, word):\n        self.word = word\n\n"
        "    def episode(self, prompt):\n        yield prompt.messages\n"
    )
    monkeypatch.chdir(tmp_path)
    config = EnvironmentConfig(name="mine_class:Echo", params={"word": "a"})
    assert environment_for(config).word == "a"  # ty: ignore[missing-attribute]
    for params, message in (({}, "does not take environment.params = {}"), ({"wrod": 1}, "did you mean 'word'")):
        with pytest.raises(ConfigError, match=message):
            environment_for(EnvironmentConfig(name="mine_class:Echo", params=params))


def test_an_estimator_of_the_users(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_estimator.py").write_text("def make(config, prompts, embed):\n    return config.seed\n")
    monkeypatch.chdir(tmp_path)
    config = load([*DATA, "--advantage.estimator", "mine_estimator:make", "--seed", "3"], env={}).config
    assert estimator_for(config) == 3


@pytest.mark.parametrize(
    ("words", "name"),
    [([], "group"), (["--critic.kind", "head"], "gae"), (["--grouping.preset", "mixture"], "group_aware")],
)
def test_the_sections_choose_the_estimator(words: list[str], name: str) -> None:
    assert load([*DATA, *words], env={}).config.estimator == name
    assert load([*DATA, *words, "--advantage.estimator", name], env={}).config.estimator == name
    other = "gae" if name == "group" else "group"
    with pytest.raises(ConfigError, match="does not fit the other settings"):
        load([*DATA, *words, "--advantage.estimator", other], env={})


def test_allocation_needs_its_estimator() -> None:
    words = ["--grouping.preset", "mixture", "--grouping.allocate", "true", "--advantage.estimator", "a:b"]
    with pytest.raises(ConfigError, match="allocate is of the group-aware estimator"):
        load([*DATA, *words], env={})
    assert RunConfig().estimator == "group"
