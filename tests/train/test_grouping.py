"""Group-aware runs: every preset trains, resumes to the same bits, and says where its credit came from."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import pytest
from runs_for_tests import fingerprint, make_config
from test_runs import stop_at

from coterie import assemble
from coterie.config.schema import RunConfig
from coterie.runs import rollouts
from coterie.runs.metrics import MetricsDB


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


@pytest.mark.parametrize("preset", ["rloo", "global", "tracker", "js2", "heb", "heb-stack"])
def test_every_preset_moves_the_policy(preset: str, root: Path) -> None:
    run = assemble.train(config_for(root, preset, steps=3, eval={"every": 0}, checkpoint={"every": 0}))
    found = metrics(run, 3)
    assert found["grad_norm"] > 0
    assert found["grouping/error/combined"] > 0
    assert all(math.isfinite(value) for value in found.values())


def test_one_rollout_a_prompt_is_enough(root: Path) -> None:
    collect = {"group_size": 1, "prompts": 6}
    run = assemble.train(config_for(root, "heb-stack", steps=4, collect=collect, eval={"every": 0}))
    assert metrics(run, 4)["grad_norm"] > 0


@pytest.mark.parametrize(
    "grouping",
    [
        {},
        {"weights": "score_norm", "embedding": "none", "without": ["tree"]},
        {"per_part": True, "rewards": None},
        {"allocate": True, "candidates": 2, "most": 6, "uniform": True},
    ],
    ids=["plain", "score norms", "per part", "allocation"],
)
def test_it_resumes_to_the_same_bits(grouping: dict[str, Any], root: Path) -> None:
    whole = assemble.train(config_for(root, "heb-stack", grouping=dict(grouping)))
    half = assemble.train(
        config_for(root, "heb-stack", grouping=dict(grouping), name="two"), stop_at(4, signal.SIGTERM)
    )
    assemble.resume(half)
    assert fingerprint(half) == fingerprint(whole)


def test_credit_says_which_scale_it_came_from(root: Path) -> None:
    run = assemble.train(config_for(root, "heb", steps=3, eval={"every": 0}))
    (row, *_) = rollouts.read_step(run / "rollouts", 3)
    assert row.credit is not None
    assert {"siblings", "root"} <= set(row.credit.contributions)


def test_allocation_keeps_the_number_of_rollouts(root: Path) -> None:
    grouping = {"allocate": True, "candidates": 3, "most": 8}
    run = assemble.train(config_for(root, "heb", steps=4, grouping=grouping, eval={"every": 0}))
    for step in range(1, 5):
        rows = rollouts.read_step(run / "rollouts", step)
        assert len(rows) == 3 * 4
        assert len({row.prompt.id for row in rows}) == 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"advantage": {"scale": "none"}}, "a scale of its own"),
        ({"critic": {}}, "leave out critic"),
        ({"grouping": {"allocate": True, "most": 2}}, "between them"),
        ({"grouping": {"rewards": [1.0, 0.0]}}, "smallest reward, then the largest"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changed: dict[str, Any], message: str, root: Path) -> None:
    with pytest.raises(ValueError, match=message):
        config_for(root, "heb", **changed)
