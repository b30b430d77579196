"""Numbers that are none, and ratios that explode: nothing bad is stored, and what was done about it is said."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from coterie import launch
from coterie.algo.losses import LossInputs, LossOutputs, policy_loss
from coterie.algo.objective import Objective
from coterie.algo.tokens import LIMIT
from coterie.errors import NonFiniteError
from coterie.policy import learner
from coterie.policy.learner import STATE_FILE, Learner
from coterie.policy.metrics import TokenMetrics
from coterie.policy.update_report import UpdateReport
from coterie.runs import checkpoint
from coterie.runs.metrics import MetricsDB
from faults.world import make_world, settings
from loss_parts import gradient, leaf, number, one_rollout

BAD = (math.nan, math.inf, -math.inf)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_world(tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "world"), prepend=os.pathsep)
    return tmp_path / "world"


def spoil(monkeypatch: pytest.MonkeyPatch, value: float, updates: range) -> None:
    """The loss of these updates is multiplied by a number that is none."""
    real, number = Learner.update, 0

    def update(self: Learner, *words: Any) -> UpdateReport:
        nonlocal number
        number += 1
        return real(self, *words)

    def spoiled(inputs: LossInputs, objective: Objective) -> LossOutputs:
        outputs = policy_loss(inputs, objective)
        return replace(outputs, loss=outputs.loss * value) if number in updates else outputs

    monkeypatch.setattr(Learner, "update", update)
    monkeypatch.setattr(learner, "policy_loss", spoiled)


def finite(folder: Path) -> bool:
    return all(
        bool(tensor.isfinite().all()) for file in folder.rglob("*.safetensors") for tensor in load_file(file).values()
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_costs_its_update_and_is_counted(
    value: float, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(world, world / "runs", steps=3, checkpoint={"every": 1, "keep": 3}, eval={"every": 0})
    spoil(monkeypatch, value, range(2, 3))
    run = launch.train(config)
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        assert [event.step for event in database.events("skipped_update")] == [2]
        assert database.series("update/nonfinite") == [(1, 0.0), (2, 1.0), (3, 0.0)]
        assert "grad_norm" not in database.step_metrics(2)
        assert "grad_norm" in database.step_metrics(3)
    folders = [run / "checkpoints" / f"step_{step:06d}" for step in (1, 2, 3)]
    first, second, third = (load_file(folder / STATE_FILE) for folder in folders)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(second[name], third[name]) for name in second)
    assert all(finite(folder) for folder in folders)


def test_a_loss_that_never_is_a_number_ends_the_run_with_its_last_good_weights(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(
        world,
        world / "runs",
        steps=9,
        checkpoint={"every": 1, "keep": 9},
        eval={"every": 0},
        optim={"lr": 1e-2, "max_skipped": 2},
    )
    spoil(monkeypatch, math.nan, range(2, 1000))
    with pytest.raises(NonFiniteError, match=r"for 3 optimizer steps in a row .*still those before; lower optim\.lr"):
        launch.train(config)
    run = world / "runs" / "one"
    assert checkpoint.steps(run / "checkpoints") == [1, 2, 3]
    assert finite(run / "checkpoints")


@pytest.mark.parametrize("explosion", [100.0, -100.0, *BAD])
def test_an_explosion_at_a_token_that_is_not_trained_changes_no_bit(explosion: float) -> None:
    def loss(at: float) -> tuple[Any, ...]:
        now = leaf(-1.0, -2.0, -3.0)
        inputs = one_rollout(logprobs=now, old_logprobs=number(-1.1, -2.0 - at, -2.9), weights=number(0.5, 0.0, 0.5))
        out = policy_loss(inputs, Objective())
        flags = (out.clipped_low, out.clipped_high, out.clipped_dual, out.active)
        return out.loss.item(), gradient(out.loss, now).tolist(), [flag.tolist() for flag in flags]

    assert loss(explosion) == loss(0.0)


@pytest.mark.parametrize(("advantage", "flag"), [(1.0, "clip/high"), (-1.0, "clip/dual")])
def test_an_explosion_at_a_trained_token_is_clamped_and_flagged(advantage: float, flag: str) -> None:
    now = leaf(-1.0, -2.0)
    inputs = one_rollout(
        logprobs=now,
        old_logprobs=number(-1.0, -102.0),
        sampler_logprobs=number(-1.0, -102.0),
        advantages=number(advantage, advantage),
    )
    out = policy_loss(inputs, Objective())
    assert math.isfinite(out.loss.item())
    assert out.ratio.tolist() == [1.0, math.exp(LIMIT)]
    assert gradient(out.loss, now)[1].item() == 0
    metrics = TokenMetrics()
    metrics.add(out, inputs, torch.zeros(2), None, inputs.old_logprobs)
    summary = metrics.summary()
    assert summary[flag] == 0.5
    assert summary["ratio/max"] == math.exp(LIMIT)
    assert all(math.isfinite(value) for value in summary.values())
