"""Where the seconds of runs went: `coterie timing`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from coterie.cli.main import app
from coterie.errors import RunError
from coterie.phases import Phases
from coterie.runs.metrics import MetricsDB
from coterie.runs.timing import Timing, arms, run_timing

SECONDS = {
    "time/step": 10.0,
    "time/collect": 6.0,
    "time/generate": 5.0,
    "time/prefill": 1.0,
    "time/decode": 3.5,
    "time/reward": 0.5,
    "time/update": 4.0,
    "time/advantage": 0.25,
    "time/gradient": 3.0,
    "time/optimizer": 0.5,
    "time/cpu/step": 5.0,
    "time/cpu/update": 4.0,
    "rollouts": 16.0,
}


def make_run(folder: Path, steps: int, factor: float = 1.0) -> Path:
    """A run whose first step took a hundred times as long."""
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("")
    with MetricsDB(folder / "metrics.sqlite") as database:
        for step in range(1, steps + 1):
            slow = 100.0 if step == 1 else factor
            scaled = {name: value * slow for name, value in SECONDS.items() if name != "rollouts"}
            database.record(step, scaled | {"rollouts": 16.0})
    return folder


def test_parts_and_what_they_leave(tmp_path: Path) -> None:
    timing = run_timing(make_run(tmp_path / "one", 3), skip=1)
    assert (timing.steps, timing.counts) == (2, {"rollouts": 16.0})
    spent = timing.spent()
    assert spent["step",] == 10.0
    assert spent["step", "collect", "generate", "decode"] == 3.5
    assert spent["step", "collect", "generate", "rest"] == pytest.approx(0.5)
    assert spent["step", "collect", "rest"] == pytest.approx(0.5)
    assert spent["step", "update", "rest"] == pytest.approx(0.25)
    assert spent["step", "rest"] == 0.0
    assert ("step", "update", "old log-probs") not in spent  # not recorded
    assert timing.cpu_spent() == {("step",): 5.0, ("step", "update"): 4.0, ("step", "rest"): 1.0}
    leaves = [seconds for path, seconds in spent.items() if not any(other[:-1] == path for other in spent)]
    assert sum(leaves) == pytest.approx(10.0)


def test_seeds_of_an_arm_are_taken_together(tmp_path: Path) -> None:
    """By steps: three of 10 s and one of 30 s."""
    runs = [make_run(tmp_path / "a--seed-0", 4), make_run(tmp_path / "a--seed-1", 2, 3.0), make_run(tmp_path / "b", 2)]
    first, second = arms([run_timing(run, 1) for run in runs])
    assert (first.name, first.runs, first.steps) == ("a", 2, 4)
    assert first.seconds["step"] == pytest.approx((3 * 10 + 30) / 4)
    assert isinstance(second, Timing)
    assert second.name == "b"


def test_arms_of_two_sweeps_stay_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / sweep / f"a--seed-{seed}", 3) for sweep in ("one", "two") for seed in (0, 1)]
    first, second, third = arms([run_timing(run, 1) for run in (*runs, make_run(tmp_path / "two" / "b", 3))])
    assert [(timing.name, timing.runs) for timing in (first, second, third)] == [
        (str(tmp_path / "one" / "a"), 2),
        (str(tmp_path / "two" / "a"), 2),
        ("b", 1),
    ]


def test_the_command_prints_arms_side_by_side(tmp_path: Path) -> None:
    make_run(tmp_path / "sweep" / "runs" / "plain--seed-0", 3)
    make_run(tmp_path / "sweep" / "runs" / "grouped--seed-0", 3, 2.0)
    result = CliRunner().invoke(app, ["timing", str(tmp_path / "sweep")])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].split() == ["seconds", "a", "step", "grouped--seed-0", "plain--seed-0"]
    assert lines[1].split() == ["step", "20.000", "100%", "10.000", "100%"]
    assert any(line.split() == ["decode", "7.000", "35%", "3.500", "35%"] for line in lines)
    assert any(line.split() == ["CPU:", "update", "8.000", "80%", "4.000", "80%"] for line in lines)
    result = CliRunner().invoke(app, ["timing", "plain--seed-0", "--runs", str(tmp_path / "sweep" / "runs"), "--json"])
    assert json.loads(result.output)[0]["seconds"]["decode"] == 3.5


def test_a_run_that_is_too_short_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no step after step 1"):
        run_timing(make_run(tmp_path / "short", 1), skip=1)


def test_phases_count_from_a_reading_on() -> None:
    phases = Phases()
    with phases.measure("prefill"):
        pass
    before = phases.read()
    with pytest.raises(ValueError, match="x"), phases.measure("decode"):
        raise ValueError("x")
    spent = phases.since(before)
    assert list(spent) == ["decode"]  # also where it ended in an error
    assert spent["decode"].wall > 0
    assert spent["decode"].cpu >= 0
