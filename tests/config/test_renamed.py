"""Names of the former version: a hint for what a user writes, a translation for what a run stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from coterie.config.keys import kind_at, settings
from coterie.config.load import load
from coterie.config.renamed import KEYS, METRICS, VALUES, former_keys, former_metric_name, metric_name, translated
from coterie.config.schema import RunConfig
from coterie.errors import ConfigError


@pytest.mark.parametrize(("former", "present"), KEYS.items())
def test_a_former_key_is_no_setting_and_its_present_one_is(former: str, present: str) -> None:
    assert former not in settings()
    assert present in settings() or any(key.startswith(f"{present}.") for key in settings())
    assert present not in KEYS


@pytest.mark.parametrize("key", VALUES)
def test_a_former_value_is_refused_and_its_present_one_accepted(key: str) -> None:
    for former, present in VALUES[key].items():
        with pytest.raises(ConfigError, match=rf"{key} = '{former}' .*did you mean '{present}'\?"):
            load([f"{key}={former}"], env={})
        if key.startswith("objective"):
            assert present in str(kind_at(key.split(".")))
        else:
            load([f"{key}={present}"], env={})


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--objective.surrogate", "soft"], 'did you mean objective.loss = "sapo"?'),
        (["objective.normalize=token"], 'did you mean objective.loss_agg_mode = "token-mean"?'),
        (["objective.surrogate=mine:loss"], "did you mean objective.loss?"),
        (["--collect.refill"], "did you mean collect.dynamic_sampling?"),
        (["--collect.slots=8"], "did you mean engine.max_num_seqs?"),
        (["mismatch.correction=none"], "did you mean rollout_correction.kind?"),
        (["mismatch.low=0.1"], "did you mean rollout_correction.low?"),
        (["rewards.parts.0.name=exact"], "did you mean rewards.functions.0.name?"),
        (["grouping.trust=0.5"], "clip bounds by evidence were removed"),
        (["grouping.preset=heb-stack"], "did you mean 'mixture'?"),
    ],
)
def test_former_names_in_flags_lead_to_present_ones(words: list[str], hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(words, env={})
    assert hint in str(caught.value)


def test_former_names_in_variables_and_files_lead_to_present_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"optim.roulette \(from COTERIE_OPTIM__ROULETTE\); did you mean optim.subs"):
        load([], env={"COTERIE_OPTIM__ROULETTE": "1"})
    file = tmp_path / "mine.toml"
    file.write_text(
        '[objective]\nsurrogate = "gamma"\n[mismatch]\nhigh = 3.0\n[[rewards.parts]]\nname = "exact"\n'
        '[[stop.rules]]\nname = "above"\nmetric = "groups/solved"\nthreshold = 0.9\n'
    )
    with pytest.raises(ConfigError) as caught:
        load(["@", str(file)], env={})
    text = str(caught.value)
    for setting, hint in (
        ("objective.surrogate", 'objective.loss = "vespo"'),
        ("mismatch", "rollout_correction"),
        ("rewards.parts", "rewards.functions"),
    ):
        assert f"unknown setting {setting} (from {file}); did you mean {hint}?" in text
    assert "metric = 'groups/solved' is now 'groups/all_correct'" in text


def test_the_stored_settings_of_a_former_run_are_translated() -> None:
    former = {
        "algorithm": "grpo",
        "objective": {"surrogate": "none", "normalize": "sequence_sum", "kl_place": "loss"},
        "mismatch": {"correction": "token_mask", "low": 0.5},
        "collect": {"prompts": 3, "slots": 7, "engine": "embedded"},
        "rewards": {"parts": [{"name": "exact"}], "deadline_s": 3.0},
        "grouping": {"preset": "heb", "without": ["tree"], "rewards": "none"},
        "advantage": {"scale": "beta"},
        "stop": {"rules": [{"name": "above", "metric": "roulette/kept", "threshold": 0.9}, {"name": "non_finite"}]},
        "critic": {"kind": "head"},
    }
    present = {
        "algorithm": "grpo",
        "objective": {"loss": "unclipped", "loss_agg_mode": "seq-mean-token-sum", "kl_in": "loss"},
        "rollout_correction": {"kind": "token_mask", "low": 0.5},
        "collect": {"prompts_per_step": 3},
        "engine": {"max_num_seqs": 7, "name": "embedded"},
        "rewards": {"functions": [{"name": "exact"}], "timeout_s": 3.0},
        "grouping": {"preset": "empirical_bayes", "ablate": ["tree"], "reward_range": "none"},
        "advantage": {"scale": "bnpo"},
        "stop": {"rules": [{"name": "above", "metric": "subsample/kept", "threshold": 0.9}, {"name": "non_finite"}]},
        "critic": {"kind": "head"},
    }
    assert former_keys(former)
    assert translated(former) == present
    assert translated(present) == present
    assert not former_keys(present)


def test_present_settings_are_left_as_they_are() -> None:
    table = RunConfig().model_dump(mode="json")
    assert translated(table) == table
    assert list(translated(table)) == list(table)
    assert not former_keys(table)


@pytest.mark.parametrize(
    "former", [*METRICS, "grouping/power", "grouping/mine/error/heb", "grouping/weight/heb-notree"]
)
def test_metrics_have_one_present_name(former: str) -> None:
    present = metric_name(former)
    assert present != former
    assert metric_name(present) == present
    assert former_metric_name(present) == former


def test_other_metrics_keep_their_names() -> None:
    for name in ("reward/mean", "grouping/error/combined", "subsample/kept", "power"):
        assert metric_name(name) == name
