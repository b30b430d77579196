from __future__ import annotations

import json

import pytest
from records import make_record, make_run

from coterie.commands.common import plain
from coterie.errors import RunError
from coterie.runs import inspect
from coterie.runs.directory import RunDirectory
from coterie.runs.rollouts import write_step


def test_summary(tmp_path):
    run = make_run(tmp_path, steps=3)
    write_step(run.rollouts, 1, [make_record()])
    (run.checkpoints / "step_000003").mkdir()
    seen = inspect.summary(run.path)
    assert (seen.name, seen.state, seen.step, seen.steps, seen.pid) == ("demo", "finished", 3, 3, None)
    assert (seen.model, seen.tasks) == ("smollm2-135m", ("leg_counting",))
    assert (seen.checkpoints, seen.rollout_steps) == ((3,), 1)
    assert (seen.before[0].step, seen.after[0].step) == (0, 3)
    assert seen.metrics["reward/mean"] == 1.0
    assert (seen.events, seen.problem) == ({"checkpoint": 1}, None)
    json.dumps(plain(seen), allow_nan=False)


def test_a_running_and_a_stopped_run(tmp_path):
    with RunDirectory.create(tmp_path, "a", "x") as run:
        run.write_config({"steps": 5})
        seen = inspect.summary(run.path)
        assert seen.state == "running"
        assert seen.pid
        assert (seen.step, seen.model, seen.metrics) == (None, None, {})
    assert inspect.summary(run.path).state == "stopped"


def test_damage_is_told_not_raised(tmp_path):
    run = make_run(tmp_path)
    run.metrics.write_bytes(b"garbage" * 999)
    run.config.write_text("= nothing")
    (line,) = inspect.list_runs(tmp_path)
    assert (line.name, line.state) == ("demo", "damaged")
    problem = inspect.summary(run.path).problem
    assert problem
    assert "config.toml cannot be read" in problem
    assert "not a database" in problem


def test_list(tmp_path):
    make_run(tmp_path, "b", steps=4)
    make_run(tmp_path, "a")
    (tmp_path / "no run").mkdir()
    first, second = inspect.list_runs(tmp_path)
    assert (first.name, second.name, second.step) == ("a", "b", 4)
    assert (first.reward, first.before, first.after) == (1.0, pytest.approx(1 / 6), 0.875)
    assert inspect.list_runs(tmp_path / "absent") == []


def test_diff(tmp_path):
    one, other = make_run(tmp_path, "a", lr=1e-6), make_run(tmp_path, "b", steps=6, lr=1e-5)
    found = inspect.diff(one.path, other.path)
    assert found["config"] == {"name": ("a", "b"), "steps": (3, 6), "optim.lr": (1e-6, 1e-5)}
    assert "heldout" not in found
    assert inspect.diff(one.path, one.path) == {}
    with pytest.raises(RunError, match="no run"):
        inspect.diff(one.path, tmp_path / "c")
