"""A sweep runs every combination once, goes on where it was, and says what came out, failures included."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from coterie.cli.main import main
from coterie.errors import ConfigError
from coterie.sweep import budget
from coterie.sweep.grid import Cell, cells, parse_arms, parse_seeds, parse_vary
from coterie.sweep.results import CellResult, EvalPoint, markdown
from runs_for_tests import make_config


def test_every_combination_has_a_name_of_its_own() -> None:
    arms = parse_arms(["grpo: algorithm=grpo", "own critic: algorithm=ppo critic.kind=model"])
    grid = cells(parse_vary(["optim.lr=1e-5, 2e-5"]), parse_seeds("0-1,7"), arms)
    assert len(grid) == 3 * 2 * 2
    assert [cell.seed for cell in grid[:4]] == [0, 0, 0, 0]
    assert len({cell.name for cell in grid}) == len(grid)
    assert grid[2].name == "own_critic--lr-1e-5--seed-0"
    assert grid[2].words() == ["algorithm=ppo", "critic.kind=model", "optim.lr=1e-5", "seed=0"]


@pytest.mark.parametrize("word", ["optim.lr", "=1", "optim.lr=", "seed=1,2"])
def test_what_is_no_variation_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="--vary"):
        parse_vary([word])


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "1,,2"])
def test_what_is_no_seed_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--seeds"):
        parse_seeds(text)


@pytest.mark.parametrize("word", ["nothing", ": a=1", "x: a"])
def test_what_is_no_arm_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="--arm"):
        parse_arms([word])


def result(rewards: list[float], *, seed: int = 0, error: str = "") -> CellResult:
    return CellResult(
        cell=Cell(arm="a", seed=seed),
        steps=len(rewards),
        rewards=tuple(rewards),
        evals=(
            EvalPoint(step=0, rollouts=0, seconds=0.0, value=0.1),
            EvalPoint(step=1, rollouts=64, seconds=2.0, value=0.2 + seed / 10, cpu_seconds=1.0),
        ),
        seconds=2.0,
        peak=float(1 << 30),
        error=error,
    )


def test_a_run_that_loses_half_of_its_reward_has_collapsed() -> None:
    rising = np.linspace(0.1, 0.8, 40).tolist()
    assert not result(rising).collapsed
    assert result([*rising, *[0.3] * 10]).collapsed
    assert not result([*rising, *[0.5] * 10]).collapsed
    draw = np.random.default_rng(0)
    few, many = (draw.binomial(count, 0.3, (20, 60)) / count for count in (2, 64))
    assert not any(result([*steps]).collapsed for steps in few), "two prompts a step are lucky or not"
    assert all(result([*steps, *steps[:10] / 4]).collapsed for steps in many)
    assert result(rising, error="NonFiniteError: the gradient").collapsed
    assert not result(rising, error="RunError: the disk is full").collapsed


def test_the_table_has_means_with_intervals_and_counts_collapses() -> None:
    lost = result([0.5], seed=2, error="CollapseError: entropy")
    table = markdown([result([0.5] * 10, seed=0), result([0.5] * 10, seed=1), lost])
    assert (
        "| `a` | 3 | 10.0 → 25.0 [-38.5, 88.5] | 0.500 [0.500, 0.500] | 2.00 ± 0.00 | – | 1.00 ± 0.00 | 1/3 |" in table
    )


def test_the_table_says_when_an_accuracy_was_reached_by_how_many() -> None:
    results = [result([0.5] * 10, seed=seed) for seed in range(3)]
    points = [run.reached(0.3) for run in results]
    assert [None if point is None else point.rollouts for point in points] == [None, 64, 64]
    table = markdown(results, reach=0.3)
    assert "| rollouts to 30 % | seconds to 30 % | CPU seconds to 30 % | reached |" in table
    assert "| 64 [64, never] | 2 [2, never] | 1 [1, never] | 2/3 |" in table
    never = "never [never, never]"
    assert f"| {never} | {never} | {never} | 0/3 |" in markdown(results, reach=0.5)


def test_cpu_seconds_that_no_run_recorded_are_left_out() -> None:
    table = markdown([curve("a", 0, [0.0, 0.2, 0.4], 64, 1.0)], reach=0.3)
    assert "| 128 [128, 128] | 2 [2, 2] | – | 1/1 |" in table


def curve(arm: str, seed: int, accuracies: list[float], rollouts: int, seconds: float) -> CellResult:
    """A run that is evaluated after every step of so many rollouts and seconds."""
    evals = tuple(
        EvalPoint(step=step, rollouts=step * rollouts, seconds=step * seconds, value=accuracy)
        for step, accuracy in enumerate(accuracies)
    )
    cell = Cell(arm=arm, seed=seed)
    return CellResult(cell=cell, steps=3, rewards=(0.5,) * 3, evals=evals, seconds=seconds, peak=None, error="")


def test_accuracy_is_averaged_over_what_was_spent() -> None:
    evals = curve("a", 0, [0.0, 0.2, 0.4], rollouts=64, seconds=1.0).evals
    cost = budget.COSTS["rollouts"]
    assert budget.mean_result(evals, cost, 128) == pytest.approx(0.2)
    assert budget.mean_result(evals, cost, 96) == pytest.approx((0.1 * 64 + 0.25 * 32) / 96), "cut between two"
    assert budget.mean_result(evals, budget.COSTS["seconds"], 1.0) == pytest.approx(0.1)


def test_settings_are_compared_at_equal_cost_seed_by_seed() -> None:
    slow = [curve("slow", seed, [0.0, 0.1 + seed / 10, 0.2 + seed / 10], 64, 1.0) for seed in (0, 1)]
    fast = [curve("fast", seed, [0.0, 0.2 + seed / 10, 0.4 + seed / 10], 128, 1.0) for seed in (0, 1)]
    alone = curve("alone", 7, [0.0, 0.2, 0.4], 64, 1.0)
    text = budget.markdown({"slow": slow, "fast": fast, "alone": [alone]})
    assert "| setting | seeds | first 128 rollouts | more than `slow` | first 2 seconds | more than `slow` |" in text
    # 128 rollouts are one step of fast, and two of slow: (0.2 + 0.3) / 2 / 2, and (2·0.1 + 0.2 + 2·0.2 + 0.3) / 4 / 2.
    rows = {
        row.split("|")[1].strip(" `"): [cell.strip() for cell in row.split("|")[3:7]] for row in text.splitlines()[2:5]
    }
    assert [cell.split()[0] for cell in rows["slow"]] == ["13.8", "–", "13.8", "–"]
    assert [cell.split()[0] for cell in rows["fast"]] == ["12.5", "-1.2", "23.8", "+10.0"]
    assert rows["fast"][3] == "+10.0 [+10.0, +10.0]", "seeds differ, their differences do not"
    assert rows["alone"][1] == "–", "no seed in common with the first"


def test_runs_without_a_curve_are_not_compared() -> None:
    failed = curve("b", 0, [0.0, 0.2, 0.4], 64, 1.0)
    failed = replace(failed, error="RunError")
    short = curve("c", 0, [0.0, 0.4], 64, 1.0)
    assert budget.markdown({"a": [curve("a", 0, [0.0, 0.2, 0.4], 64, 1.0)], "b": [failed], "c": [short]}) == ""


class InThisProcess:
    """In place of a process, whose start takes longer than the run of a tiny model: the same command, run here."""

    def __init__(self, command: list[str], **options: Any) -> None:
        assert command[:3] == [sys.executable, "-m", "coterie"]
        self.returncode = main(command[3:])

    def poll(self) -> int:
        return self.returncode


@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_sweep_of_whole_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, processes: bool
) -> None:
    from coterie.config.algorithms import stored
    from coterie.config.toml import dumps
    from coterie.sweep import run

    monkeypatch.chdir(tmp_path)
    if not processes:
        monkeypatch.setattr(run, "subprocess", SimpleNamespace(Popen=InThisProcess, STDOUT=subprocess.STDOUT))
    config = make_config(tmp_path, steps=2, eval={"every": 0}, name="")
    (tmp_path / "base.toml").write_text(dumps(stored(config)), encoding="utf-8")
    words = ["sweep", "@", "base.toml", "--vary", "optim.lr=1e-3,1e-2", "--seeds", "0-1", "--out", "out"]
    assert main([*words, "--jobs", "3"]) == 0
    table = capsys.readouterr().out
    assert "`optim.lr=1e-3` | 2 |" in table
    assert (tmp_path / "out" / "sweep.png").is_file()
    rows = json.loads((tmp_path / "out" / "sweep-results.json").read_text())
    assert [(row["seed"], row["setting"]) for row in rows] == [
        (seed, f"optim.lr={rate}") for seed in (0, 1) for rate in ("1e-3", "1e-2")
    ]
    first, second = (tmp_path / "out" / "runs" / f"lr-{rate}--seed-0" for rate in ("1e-3", "1e-2"))
    for folder, error in ((first, "RunError: the disk is full"), (second, "CollapseError: entropy")):
        (folder / "done.json").unlink()
        (folder / "failed.json").write_text(json.dumps({"error": error}), encoding="utf-8")
    assert main([*words, "--lean"]) == 0
    assert capsys.readouterr().out.count("already done") == 3, "what says nothing about the setting is tried again"
    assert (first / "done.json").is_file()
    assert not (first / "failed.json").exists()
    assert not (first / "checkpoints").exists()
    assert main([*words, "--steps", "3"]) == 1
    assert "other settings" in capsys.readouterr().err
    monkeypatch.setattr(run, "subprocess", subprocess)
    arm = ["sweep", "@", "base.toml", "--seeds", "0", "--out", "out", "--arm"]
    assert main([*arm, "x: optim.beta1=0.8"]) == 0
    assert main([*arm, "x: optim.beta1=0.7"]) == 1
    assert "other settings" in capsys.readouterr().err


def test_a_graded_reward_is_compared_by_its_held_out_mean() -> None:
    first = [replace(curve("a", seed, [0.07, 0.2, 0.43], 64, 1.0), metric="reward") for seed in (0, 1)]
    other = [replace(curve("b", seed, [0.07, 0.1, 0.21], 64, 1.0), metric="reward") for seed in (0, 1)]
    table = markdown([*first, *other], reach=0.3)
    assert "| held-out reward before → after |" in table
    assert "| rollouts to reward 0.3 | seconds to reward 0.3 | CPU seconds to reward 0.3 | reached |" in table
    assert "| `a` | 2 | 0.070 → 0.430 [0.430, 0.430] |" in table
    text = budget.markdown({"a": first, "b": other})
    assert "| `b` | 2 | 0.120 [0.120, 0.120] | -0.105 [-0.105, -0.105] |" in text
    assert "Held-out reward, averaged" in text
    assert "points" not in text


def test_cpu_seconds_are_compared_where_every_run_recorded_them() -> None:
    runs = [curve(arm, 0, [0.0, 0.2, 0.4], 64, 1.0) for arm in ("a", "b")]
    recorded = [
        replace(run, evals=tuple(replace(point, cpu_seconds=point.seconds / 2) for point in run.evals)) for run in runs
    ]
    assert "| first 1 CPU seconds | more than `a` |" in budget.markdown({"a": recorded[:1], "b": recorded[1:]})
    assert "CPU" not in budget.markdown({"a": recorded[:1], "b": runs[1:]}).splitlines()[0]
