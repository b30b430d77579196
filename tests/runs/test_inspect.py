from __future__ import annotations

import json

import pytest
from records import make_eval, make_record, make_run

from coterie.cli.options import plain
from coterie.errors import RunError
from coterie.runs import inspect
from coterie.runs.directory import RunDirectory
from coterie.runs.metrics import MetricsDB
from coterie.runs.rollouts import write_step


def test_summary(tmp_path):
    run = make_run(tmp_path, steps=3)
    write_step(run.rollouts, 1, [make_record()])
    (run.checkpoints / "step_000003").mkdir()
    summary = inspect.summary(run.path)
    assert (summary.name, summary.state, summary.step, summary.steps, summary.pid) == ("demo", "finished", 3, 3, None)
    assert (summary.model, summary.tasks) == ("smollm2-135m", ("leg_counting",))
    assert (summary.checkpoints, summary.rollout_steps) == ((3,), 1)
    assert (summary.before[0].step, summary.after[0].step) == (0, 3)
    assert summary.metrics["reward/mean"] == 1.0
    assert (summary.events, summary.problem) == ({"checkpoint": 1}, None)
    test = summary.paired["legs"]
    assert test.difference == pytest.approx(0.875 - 1 / 6)
    assert 0 < test.low < test.difference < test.high
    assert test.p_value < 0.1
    json.dumps(plain(summary), allow_nan=False)


def test_finished_is_evaluated_and_saved(tmp_path):
    run = make_run(tmp_path, steps=3)
    assert inspect.summary(run.path).state == "stopped"
    (run.checkpoints / "step_000002").mkdir()
    assert inspect.summary(run.path).state == "stopped"
    (run.checkpoints / "step_000003").mkdir()
    assert inspect.summary(run.path).state == "finished"
    with MetricsDB(run.metrics) as database:
        database.truncate_after(2)
        database.record(3, {"reward/mean": 1.0})
    assert inspect.summary(run.path).state == "stopped"


def test_a_run_without_evaluations_finishes_too(tmp_path):
    with RunDirectory.create(tmp_path, "a", "x") as run:
        run.write_config({"steps": 2})
        with MetricsDB(run.metrics) as database:
            for step in (1, 2):
                database.record(step, {"reward/mean": 0.5})
    assert inspect.summary(run.path).state == "stopped"
    (run.checkpoints / "step_000002").mkdir()
    summary = inspect.summary(run.path)
    assert (summary.state, summary.paired) == ("finished", {})
    assert inspect.compare_runs(run.path, run.path) == {}


def test_pairs_of_two_runs(tmp_path):
    baseline, candidate = make_run(tmp_path, "a"), make_run(tmp_path, "b", steps=5)
    with MetricsDB(candidate.metrics) as database:
        result, items = make_eval(7, "legs", [4, 4, 4, 4, 4, 4, 0])
        strange, _ = make_eval(7, "not in a", [1])
        database.record_evals([result, strange], items)
    (test,) = inspect.compare_runs(baseline.path, candidate.path).values()
    assert test.difference == pytest.approx(0.125)  # without the seventh, which only one of them holds
    assert inspect.compare_runs(candidate.path, baseline.path)["legs"].difference == pytest.approx(-0.125)
    with pytest.raises(RunError, match="no run"):
        inspect.compare_runs(baseline.path, tmp_path / "c")


def test_a_running_and_a_stopped_run(tmp_path):
    with RunDirectory.create(tmp_path, "a", "x") as run:
        run.write_config({"steps": 5})
        summary = inspect.summary(run.path)
        assert summary.state == "running"
        assert summary.pid
        assert (summary.step, summary.model, summary.metrics) == (None, None, {})
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
    first, second = make_run(tmp_path, "a", lr=1e-6), make_run(tmp_path, "b", steps=6, lr=1e-5)
    differences = inspect.diff(first.path, second.path)
    assert differences["config"] == {"name": ("a", "b"), "steps": (3, 6), "optim.lr": (1e-6, 1e-5)}
    assert "heldout" not in differences
    assert inspect.diff(first.path, first.path) == {}
    with pytest.raises(RunError, match="no run"):
        inspect.diff(first.path, tmp_path / "c")
