"""What people and editors are shown of the settings is true: it loads again, and it is complete."""

from __future__ import annotations

import io
import re
import tomllib

import pytest

from coterie.config.keys import settings
from coterie.config.load import load
from coterie.config.schema import RunConfig
from coterie.config.show import (
    MEASURING,
    TRAINING,
    config_json,
    help_for_settings,
    inline,
    json_schema,
    print_config,
    short_help,
)
from coterie.config.template import init_text

WORDS = [
    *("--data.train.0.type", "reasoning_gym", "--data.train.0.name", 'quo"te\n'),
    *("--data.train.0.params.list", '[1, {"a b": true}]', "--model.lora.rank", "3"),
    *("--sampling.stop", '["\\n\\n", "é"]', "optim.lr=3e-5"),
]


def test_printed_settings_load_to_the_same():
    loaded = load(WORDS, {})
    out = io.StringIO()
    print_config(loaded, out)
    assert RunConfig.model_validate(tomllib.loads(out.getvalue())) == loaded.config


def test_printed_settings_say_where_from():
    out = io.StringIO()
    print_config(load(WORDS, {}), out)
    text = out.getvalue().split("[rewards]")[0] + out.getvalue().split("[optim]")[1]
    lines = {line.split(" = ")[0]: line.rsplit("# ", 1)[-1] for line in text.splitlines() if " = " in line}
    assert lines["lr"] == "optim.lr=3e-5"
    assert lines["params"] == "--data.train.0.params.list"
    assert lines["beta1"] == "default"


def test_json_has_values_and_sources():
    document = config_json(load(["--steps", "3"], {}))
    assert document["config"]["steps"] == 3
    assert document["provenance"]["steps"] == "--steps"


def test_template_loads_as_it_is():
    config = RunConfig.model_validate(tomllib.loads(init_text(every=True)))
    assert config.data.train
    assert config.model.lora is None
    assert config.optim == RunConfig().optim


def test_template_loads_with_every_default_uncommented(tmp_path):
    """Removing the # of every plain default changes nothing."""
    optional = re.sub(r"#\[.*?(?=\n\n)", "", init_text(every=True), flags=re.DOTALL)
    (tmp_path / "all.toml").write_text(re.sub(r"^#(\w+ = )", r"\1", optional, flags=re.MULTILINE))
    loaded = load(["@", str(tmp_path / "all.toml")], {})
    assert loaded.config.runs == str(tmp_path / "runs")  # the same where the file lies in the current directory
    assert loaded.config.model_copy(update={"data": RunConfig().data, "runs": "runs"}) == RunConfig()
    assert loaded.provenance["optim.lr"].endswith("all.toml")


@pytest.mark.parametrize("text", [init_text(every=True), help_for_settings()])
def test_every_key_is_explained(text):
    for setting in settings().values():
        assert setting.key.rpartition(".")[2].replace("_", "-") in text.replace("_", "-")
        assert setting.description or setting.key.endswith("type")


def test_help_names_default_and_bounds():
    text = help_for_settings()
    assert "--collect.group-size   int >= 1; default 8" in text
    assert "--optim.schedule   constant | linear | cosine;" in text
    assert "--model.lora.targets   list[str] | all-linear;" in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_short_template_trains_as_it_is_and_fits_a_page():
    config = RunConfig.model_validate(tomllib.loads(init_text()))
    assert config.data.train
    assert config.data.heldout
    assert config.optim.lr > 1e-6
    assert len(init_text().splitlines()) <= 60


@pytest.mark.parametrize("verb", ["train", "eval"])
def test_short_help_is_of_settings_that_exist(verb):
    text = short_help(verb)
    assert set(TRAINING) | set(MEASURING) <= set(settings())
    assert len(text.splitlines()) <= 25
    assert max(map(len, text.splitlines())) <= 100
    assert "--data.heldout.0.path" in text


def test_schema_is_closed():
    schema = json_schema()
    assert schema["additionalProperties"] is False
    assert "Learning rate" in schema["$defs"]["OptimConfig"]["properties"]["lr"]["description"]


@pytest.mark.parametrize(
    ("value", "text"), [(None, "none"), (True, "true"), (1e-6, "1e-06"), ([1, "a"], '[1, "a"]'), ({}, "{}")]
)
def test_inline(value, text):
    assert inline(value) == text
