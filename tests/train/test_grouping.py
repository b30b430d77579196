"""Group-aware runs: every preset trains, resumes to the same bits, and says where its credit came from."""

from __future__ import annotations

import json
import math
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from coterie import launch
from coterie.algo.estimators import Terms
from coterie.cli.main import main
from coterie.config.schema import RunConfig
from coterie.errors import CheckpointError, ConfigError
from coterie.grouping.estimator import FILES, GroupAwareEstimator
from coterie.grouping.features import PromptFeatures
from coterie.runs import rollouts
from coterie.runs.metrics import MetricsDB
from runs_for_tests import fingerprint, make_config, stop_at
from tiny_models import tiny_encoder


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config_for(root: Path, preset: str, **changed: Any) -> RunConfig:
    grouping = {"preset": preset, "refit_every": 2, "min_weight": 4.0} | changed.pop("grouping", {})
    return make_config(root, grouping=grouping, **changed)


def metrics(run: Path, step: int) -> dict[str, float]:
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        return database.step_metrics(step)


@pytest.mark.parametrize("preset", ["rloo", "global", "tracker", "js2", "empirical_bayes", "mixture"])
def test_every_preset_moves_the_policy(preset: str, root: Path) -> None:
    run = launch.train(config_for(root, preset, steps=3, eval={"every": 0}, checkpoint={"every": 0}))
    step_metrics = metrics(run, 3)
    assert step_metrics["grad_norm"] > 0
    assert step_metrics["grouping/error/combined"] > 0
    assert all(math.isfinite(value) for value in step_metrics.values())


def test_a_batch_makes_several_optimizer_steps(root: Path) -> None:
    """Credit is computed once a step; the sampler's log-probs are those of the old policy in each of its steps."""
    changed = {"optim": {"lr": 1e-3, "minibatches": 2, "subsample": 1.0}, "rollout_correction": {"bypass_mode": True}}
    run = launch.train(config_for(root, "mixture", steps=2, eval={"every": 0}, **changed))
    assert metrics(run, 2)["grad_norm"] > 0
    assert "time/score" not in metrics(run, 2), "no pass for the old log-probs"


def test_one_rollout_a_prompt_is_enough(root: Path) -> None:
    collect = {"group_size": 1, "prompts_per_step": 6}
    run = launch.train(config_for(root, "mixture", steps=4, collect=collect, eval={"every": 0}))
    assert metrics(run, 4)["grad_norm"] > 0


@pytest.mark.parametrize(
    "grouping",
    [
        {},
        {"weights": "none", "embedding": "none", "ablate": ["tree"]},
        {"weights": "probability", "per_reward": True, "reward_range": None},
        {"allocate": True, "candidates": 2, "most": 6, "unbiased": True, "skip": 0.2},
    ],
    ids=["plain", "no tree", "per part", "allocation"],
)
def test_it_resumes_to_the_same_bits(grouping: dict[str, Any], root: Path) -> None:
    def settings(name: str) -> RunConfig:
        return config_for(root, "mixture", grouping=dict(grouping), name=name, optim={"lr": 1e-2, "subsample": 1.0})

    whole = launch.train(settings("one"))
    half = launch.train(settings("two"), stop_at(4, signal.SIGTERM))
    launch.resume(half)
    assert fingerprint(half) == fingerprint(whole)


def test_credit_says_which_scale_it_came_from(root: Path) -> None:
    run = launch.train(config_for(root, "empirical_bayes", steps=3, eval={"every": 0}))
    (row, *_) = rollouts.read_step(run / "rollouts", 3)
    assert row.credit is not None
    assert {"siblings", "root"} <= set(row.credit.contributions)


def test_time_is_the_count_of_steps(root: Path) -> None:
    run = launch.train(config_for(root, "empirical_bayes", steps=3, eval={"every": 0}))
    assert [metrics(run, step)["grouping/time"] for step in (1, 2, 3)] == [0.0, 1.0, 2.0]


def test_a_sentence_encoder_says_what_prompts_mean_and_resumes(root: Path) -> None:
    encoder = tiny_encoder(root / "bert")
    given = {"grouping": {"embedding": str(encoder)}, "steps": 4, "checkpoint": {"every": 2}, "eval": {"every": 0}}
    run = launch.train(config_for(root, "empirical_bayes", **given))
    payload = json.loads((run / "checkpoints/step_000004" / FILES.facts).read_text())
    names = [column["name"] for column in payload["facts"]["features"]["columns"]]
    assert sum(name.startswith("meaning ") for name in names) == 16
    half = launch.train(config_for(root, "empirical_bayes", **given, name="two"), stop_at(2, signal.SIGTERM))
    launch.resume(half)
    assert fingerprint(half) == fingerprint(run)


def test_an_encoder_that_cannot_be_had_leaves_nothing_behind(root: Path) -> None:
    with pytest.raises(ConfigError, match="there is no encoder 'no-such-encoder'"):
        launch.train(config_for(root, "empirical_bayes", grouping={"embedding": "no-such-encoder"}))
    assert not (root / "runs").exists()


OWN = """
import numpy as np


def past(view):
    \"\"\"What the step before showed, of whatever prompt.\"\"\"
    return [view.history[-1].means.mean() if view.history else 0.5] * len(view.rewards)


def too_much(view):
    return view.rewards / 2


def last_digit(prompt):
    return "even" if int(prompt.answer) % 2 == 0 else "odd"


def size(prompt):
    return int(prompt.answer)


def nothing(prompt):
    return None
"""


def events(run: Path, kind: str) -> list[str]:
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        return [event.message for event in database.events(kind)]


def test_a_baseline_of_ones_own_trains_resumes_and_is_tested_on_the_first_step(root: Path) -> None:
    (root / "own_groups.py").write_text(OWN)
    given = {"steps": 4, "checkpoint": {"every": 2}, "eval": {"every": 0}}
    run = launch.train(config_for(root, "own_groups:past", **given))
    assert metrics(run, 4)["grad_norm"] > 0
    assert metrics(run, 4)["grouping/weight/own"] == 1.0
    assert events(run, "biased_baseline") == []
    half = launch.train(config_for(root, "own_groups:past", **given, name="two"), stop_at(2, signal.SIGTERM))
    launch.resume(half)
    assert fingerprint(half) == fingerprint(run)
    assert main(["groups", str(run)]) == 0


def test_a_baseline_that_reads_its_own_reward_is_warned_of_by_name(root: Path) -> None:
    (root / "own_groups.py").write_text(OWN)
    run = launch.train(config_for(root, "own_groups:too_much", steps=2, eval={"every": 0}))
    (text,) = events(run, "biased_baseline")
    assert "by up to 0.5 of the range, so the gradient is biased" in text


@pytest.mark.parametrize(("key", "columns"), [("last_digit", ["key=even", "key=odd"]), ("size", ["key"])])
def test_a_scale_of_ones_own_joins_the_features_and_the_levels(key: str, columns: list[str], root: Path) -> None:
    (root / "own_groups.py").write_text(OWN)
    given = {"grouping": {"key": f"own_groups:{key}"}, "steps": 4, "checkpoint": {"every": 2}, "eval": {"every": 0}}
    run = launch.train(config_for(root, "empirical_bayes", **given))
    payload = json.loads((run / "checkpoints/step_000004" / FILES.facts).read_text())
    features = payload["facts"]["features"]["columns"]
    assert [column["name"] for column in features if column["signal"] == "key"] == columns
    (row, *_) = rollouts.read_step(run / "rollouts", 4)
    assert row.credit is not None
    assert ("key" in row.credit.contributions) == (key == "last_digit")
    half = launch.train(config_for(root, "empirical_bayes", **given, name="two"), stop_at(2, signal.SIGTERM))
    launch.resume(half)
    assert fingerprint(half) == fingerprint(run)


@pytest.mark.parametrize(
    ("preset", "grouping", "message"),
    [
        ("own_groups:missing", {}, "no function 'missing'"),
        ("empirical_bayes", {"key": "nowhere:missing"}, "importing 'nowhere' found no module"),
        (
            "empirical_bayes",
            {"key": "own_groups:nothing"},
            "gave None for prompt .* expected a text or a finite number",
        ),
    ],
)
def test_functions_that_cannot_be_had_or_give_nothing_are_named(
    preset: str, grouping: dict[str, Any], message: str, root: Path
) -> None:
    (root / "own_groups.py").write_text(OWN)
    with pytest.raises(ConfigError, match=message):
        launch.train(config_for(root, preset, grouping=grouping, steps=1))


def test_allocation_keeps_the_number_of_rollouts(root: Path) -> None:
    grouping = {"allocate": True, "candidates": 3, "most": 8}
    run = launch.train(config_for(root, "empirical_bayes", steps=4, grouping=grouping, eval={"every": 0}))
    for step in range(1, 5):
        rows = rollouts.read_step(run / "rollouts", step)
        assert len(rows) == 3 * 4
        counts = Counter(row.prompt.id for row in rows)
        assert max(counts.values()) <= 8
        assert metrics(run, step)["allocation/prompts"] == len(counts)


def test_the_regions_can_be_read_in_words_as_json_and_as_a_picture(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = launch.train(config_for(root, "mixture", steps=6, eval={"every": 0}))
    assert main(["groups", str(run), "--plot", "regions.png"]) == 0
    text = capsys.readouterr().out
    assert "mixture" in text
    assert "12 prompts" in text
    assert (root / "regions.png").read_bytes().startswith(b"\x89PNG")
    assert main(["groups", str(run), "--plot", "regions.svg"]) == 0
    assert "all prompts" in capsys.readouterr().out
    assert b"<svg" in (root / "regions.svg").read_bytes()
    assert main(["groups", str(run), "--json", "--step", "4"]) == 0
    payload = json.loads(capsys.readouterr().out)
    assert payload["step"] == 4
    assert payload["regions"][0]["parent"] == -1
    assert sum(payload["experts"].values()) == pytest.approx(1)
    assert main(["groups", str(run), "--step", "3"]) == 1
    assert "available: step_000004, step_000006" in capsys.readouterr().err


def test_the_outlook_of_allocation_is_shown(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grouping = {"allocate": True, "skip": 0.2, "candidates": 4}
    run = launch.train(config_for(root, "empirical_bayes", steps=4, grouping=grouping, eval={"every": 0}))
    assert main(["groups", str(run)]) == 0
    assert "allocation: of 12 prompts" in capsys.readouterr().out
    assert main(["groups", str(run), "--json"]) == 0
    outlook = json.loads(capsys.readouterr().out)["allocation"]
    assert outlook["prompts"] == 12
    assert 0 <= outlook["always"] + outlook["never"] <= 12
    assert outlook["answer_tokens"] > 0


def test_groups_of_another_format_are_refused(root: Path) -> None:
    run = launch.train(config_for(root, "empirical_bayes", steps=2, eval={"every": 0}))
    folder = run / "checkpoints" / "step_000002"
    payload = json.loads((folder / FILES.facts).read_text())
    (folder / FILES.facts).write_text(json.dumps(payload | {"format": 2}))
    features = PromptFeatures((), None, dimensions=16)
    estimator = GroupAwareEstimator(
        config_for(root, "empirical_bayes").grouping,
        terms=Terms(clip_low=0.2, clip_high=0.2),
        features=features,
        part_weights={},
        seed=0,
    )
    with pytest.raises(CheckpointError, match=r"format is 2, expected 4.*start a new run"):
        estimator.load(folder)


def test_a_run_of_plain_grpo_has_no_regions(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = launch.train(make_config(root, steps=1, eval={"every": 0}))
    assert main(["groups", str(run)]) == 1
    assert 'grouping.preset = "prompt"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"advantage": {"scale": "none"}}, "a scale of its own"),
        ({"critic": {}}, "leave out critic"),
        ({"grouping": {"allocate": True, "most": 2}}, "between them"),
        ({"grouping": {"reward_range": [1.0, 0.0]}}, "smallest reward, then the largest"),
        ({"grouping": {"allocate": True, "skip": 0.1, "review": 0}}, "would lose what is skipped for good"),
        ({"grouping": {"preset": "tracker", "key": "a:b"}}, "read by empirical_bayes, mixture and your own"),
        ({"grouping": {"preset": "a:b", "allocate": True}}, "needs a preset with an expected reward of each prompt"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changed: dict[str, Any], message: str, root: Path) -> None:
    with pytest.raises(ValueError, match=message):
        config_for(root, "empirical_bayes", **changed)
