from __future__ import annotations

import tomllib
from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.config.schema import RunConfig
from coterie.config.toml import dumps
from coterie.errors import ConfigError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SCALARS = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | TEXT
    | st.dates()
    | st.times()
    | st.datetimes()
)
VALUES = st.recursive(SCALARS, lambda x: st.lists(x, max_size=4) | st.dictionaries(TEXT, x, max_size=4), max_leaves=15)


@given(st.dictionaries(TEXT, VALUES, max_size=6))
def test_round_trip(data: dict[str, Any]) -> None:
    assert tomllib.loads(dumps(data)) == data


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list) else value


@given(st.dictionaries(TEXT, st.none() | st.dictionaries(TEXT, st.none() | SCALARS), max_size=5))
def test_none_is_left_out(data: dict[str, Any]) -> None:
    assert tomllib.loads(dumps(data)) == _without_none(data)


def test_a_run_config_comes_back_equal() -> None:
    source = {
        "type": "reasoning_gym",
        "name": "leg_counting",
        "params": {"max_animals": 3},
        "instruction": "a\n",
    }
    config = RunConfig.model_validate(
        {"data": {"train": [source, {**source, "seed": 1}]}, "optim": {"lr": 1e-6}, "model": {"lora": {}}}
    )
    text = dumps(config.model_dump(mode="json"))
    assert RunConfig.model_validate(tomllib.loads(text)) == config
    assert "[[data.train]]" in text
    assert "lr = 1e-06" in text


def test_layout() -> None:
    data = {"a": {"b": {"x": 1}}, "list": [{"y": 1}, {"y": 2, "z": {}}], "n": [1, {"q": None, "r": 2}]}
    assert dumps(data) == ("n = [1, { r = 2 }]\n\n[a.b]\nx = 1\n\n[[list]]\ny = 1\n\n[[list]]\ny = 2\n\n[list.z]\n")
    assert dumps({}) == ""


def test_dates() -> None:
    data = {"a": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "b": date(2026, 1, 2), "c": time(3, 4)}
    assert tomllib.loads(dumps(data)) == data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"a": {"b": [1, None]}}, r"a\.b\.1 = None .* left out"),
        ({"a": {"b": "\ud800"}}, r"a\.b = .*lone surrogate U\+D800"),
        ({"a": {3: 1}}, r"a\.3: the key 3 is a int"),
        ({"a": b"x"}, r"a = b'x' is a bytes, which TOML cannot hold"),
        ({"a": object}, r"is a type, which TOML cannot hold"),
    ],
)
def test_what_toml_cannot_hold_is_named(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dumps(data)
