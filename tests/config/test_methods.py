"""Published methods as rows: they lie under what the user says, and a stored run says all of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coterie.build.learner import estimator_for, objective_for
from coterie.cli.main import main
from coterie.config.algorithms import ALGORITHMS, filled, stored
from coterie.config.keys import settings
from coterie.config.load import load, load_file
from coterie.config.schema import RunConfig
from coterie.config.toml import dumps
from coterie.errors import ConfigError

PAGE = Path(__file__).parents[2] / "docs" / "objectives.md"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_row_loads_and_its_choices_fit_each_other(name: str) -> None:
    loaded = load([f"algorithm={name}"], env={})
    objective_for(loaded.config)
    estimator_for(loaded.config)
    for key, value in ALGORITHMS[name].settings.items():
        assert key in settings()
        assert loaded.provenance[key] == f"algorithm {name}"
        setting: object = loaded.config
        for part in key.split("."):
            setting = getattr(setting, part)
        assert setting == value


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_stored_run_loads_to_the_same_settings(name: str, tmp_path: Path) -> None:
    for more in ((), ("critic=none",), ("grouping.reward_range=none",)):
        config = load([f"algorithm={name}", "runs=out", *more], env={}).config
        file = tmp_path / "config.toml"
        file.write_text(dumps(stored(config)), encoding="utf-8")
        assert load_file(file).config == config


def test_ones_own_settings_lie_over_the_row(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('algorithm = "dapo"\n[objective]\nclip_high = 0.3\n', encoding="utf-8")
    loaded = load(["@", str(file), "--objective.loss-agg-mode", "seq-mean-token-mean"], env={})
    objective = loaded.config.objective
    assert (objective.clip_high, objective.loss_agg_mode, loaded.config.collect.dynamic_sampling) == (
        0.3,
        "seq-mean-token-mean",
        True,
    )
    assert load(["@", str(file), "algorithm=grpo"], env={}).config.collect.dynamic_sampling is False


def test_a_method_on_top_of_a_stored_run_is_that_method(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    for old in ("grpo", "dapo", "ppo"):
        file.write_text(dumps(stored(load([f"algorithm={old}", "runs=out"], env={}).config)), encoding="utf-8")
        for new in ("grpo", "dr_grpo", "cispo", "ppo"):
            config = load(["@", str(file), f"--algorithm={new}"], env={}).config
            assert config == load([f"algorithm={new}", "runs=out"], env={}).config, (old, new)


def test_flags_lie_over_the_row_in_any_order() -> None:
    for words in (["objective.clip_high=0.5", "algorithm=dapo"], ["algorithm=dapo", "objective.clip_high=0.5"]):
        assert load(words, env={}).config.objective.clip_high == 0.5
    assert load(["algorithm=dapo"], env={"COTERIE_OBJECTIVE__CLIP_HIGH": "0.5"}).config.objective.clip_high == 0.5


def test_a_row_that_was_not_applied_is_refused() -> None:
    with pytest.raises(ValueError, match="filled first"):
        RunConfig.model_validate({"algorithm": "dapo"})
    assert RunConfig.model_validate(filled({"algorithm": "dapo"})).collect.dynamic_sampling


def test_an_unknown_method_is_named_with_its_neighbour() -> None:
    with pytest.raises(ConfigError, match=r"did you mean dr_grpo\?"):
        load(["algorithm=dr-grpo"], env={})
    with pytest.raises(ConfigError, match=r"did you mean dapo or dppo\?"):
        load(["algorithm=dappo"], env={})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["objective.delta=1.1"], "larger than 1 \\+ clip_high"),
        (["objective.kl_estimator=k1", "objective.kl_beta=0.1"], "gradient of mean zero"),
        (["objective.kl_in=reward", "objective.kl_beta=0.1"], 'needs kl_estimator = "k1"'),
        (["objective.kl_target=0.1"], "needs"),
        (["rollout_correction.low=3"], "must be smaller"),
        (["reference.sync_ema=0.5"], "needs reference.sync_every"),
        (["reference.sync_every=5"], "objective.kl_beta > 0"),
        (["collect.group_size=1"], "at least 2 rollouts"),
        (["algorithm=reinforce++", "collect.dynamic_sampling=true"], "biases a baseline"),
        (["grouping.preset=empirical_bayes", "collect.dynamic_sampling=true"], "biases a baseline"),
        (["algorithm=ppo", "advantage.scale=batch_std"], "with a critic"),
        (["grouping.preset=empirical_bayes", "rewards.functions.0.weight=2"], r"grouping.reward_range = \[0, 2\]"),
    ],
)
def test_choices_that_contradict_each_other_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(words, env={})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["objective.dual_clip=3", "objective.loss=sapo"], "dual_clip"),
        (["objective.loss=gmpo", "objective.ratio=sequence"], "does not fit objective.loss"),
        (["objective.loss=vespo", "rollout_correction.kind=sequence_mask"], "does not fit objective.loss = 'vespo'"),
        (["objective.loss=nowhere:here"], "importing 'nowhere'"),
    ],
)
def test_choices_that_do_not_fit_are_refused_before_a_model_is_loaded(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        objective_for(load(words, env={}).config)


def test_the_verbs_show_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["algo", "ls"]) == 0
    listed = capsys.readouterr().out
    for name, algorithm in ALGORITHMS.items():
        assert name in listed
        assert main(["algo", "show", name]) == 0
        text = capsys.readouterr().out
        assert algorithm.formula in text
        assert all(key in text for key in algorithm.settings)
    assert main(["algo", "show", "gspo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["objective.ratio"] == "sequence"
    assert main(["algo", "show", "grpoo"]) == 2


def test_the_page_names_every_choice() -> None:
    text = PAGE.read_text(encoding="utf-8")
    sections = ("objective.", "advantage.", "mismatch.", "reference.")
    for key in settings():
        if key.startswith(sections) and not key.endswith(".params"):
            assert f"`{key}`" in text or f"`{key.partition('.')[2]}`" in text, key
