"""The benchmark of gradient noise on a tiny model: its pieces agree with each other, and it says what it found."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from coterie import launch
from runs_for_tests import make_config

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "grouping" / "gradients.py"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gradients", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gradients", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "BUDGET", 8)
    return module


def test_a_projection_keeps_inner_products(study: ModuleType) -> None:
    import torch

    source = torch.Generator().manual_seed(3)
    first = {"a": torch.randn(900, 50, generator=source), "b": torch.randn(77, generator=source)}
    second = {name: value + torch.randn(value.shape, generator=source) for name, value in first.items()}
    project = study.Projection(first, seed=0)
    exact = sum(float((first[name] * second[name]).sum()) for name in first)
    lengths = [sum(float(value.square().sum()) for value in gradient.values()) ** 0.5 for gradient in (first, second)]
    assert abs(project(first) @ project(second) - exact) < 5 * lengths[0] * lengths[1] / study.DIMENSIONS**0.5


def test_a_checkpoint_is_studied_and_no_reward_is_in_its_own_baseline(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    grouping = {"preset": "mixture", "refit_every": 2, "min_weight": 4.0, "weights": "none"}
    config = make_config(tmp_path, grouping=grouping, steps=4, eval={"every": 0}, checkpoint={"every": 4, "keep": 1})
    run = launch.train(config)
    pool, features = study.collect(run, 4, 8)
    assert pool.scores.shape == (8, study.ATTEMPTS, study.DIMENSIONS)
    # The mean score of many attempts is near zero; each alone is not.
    alone = np.square(pool.scores).sum(-1).mean()
    assert np.square(pool.scores.reshape(64, -1).mean(0)).sum() < alone / 4
    arm = study.ARMS["empirical_bayes, length"]
    model = study.taught(run, 4, arm, features)
    rows, attempts = study.draw(pool, 2, 0)
    advantages = study.advantages(pool, rows, attempts, 2, arm, model, 4)
    changed = pool.rewards.copy()
    changed[rows[0], attempts[0]] = 0.123
    other = study.advantages(study.Pool(**{**fields(pool), "rewards": changed}), rows, attempts, 2, arm, model, 4)
    moved = changed[rows[0], attempts[0]] - pool.rewards[rows[0], attempts[0]]
    assert other[0] - advantages[0] == pytest.approx(moved, abs=1e-9), "its own reward is not in its baseline"
    results = {"one/4": study.study(run, 4, 8, 6)}
    arms = results["one/4"]["arms"]
    assert arms["empirical_bayes, length/1"]["noise"] > 0
    assert [arms[name]["gain"] for name in ("rloo/4", "empirical_bayes, length/2", "prompt/4")] == pytest.approx(
        [1.0, 1.0, 0.75]
    )
    # The group's mean is the mean of the others but for a factor, so as an estimate it is as noisy (with
    # `weights = "length"` the mean of the others is not that any more).
    assert arms["prompt/4"]["noise"] == pytest.approx(arms["rloo/4"]["noise"])
    assert arms["mixture, probability, subsample 1/2"]["silent"] > arms["mixture, probability/2"]["silent"]
    assert "| mixture, length | " in study.table(results)


def fields(pool: object) -> dict[str, object]:
    return {name: getattr(pool, name) for name in ("prompts", "rewards", "weights", "features", "scores")}
