"""The benchmark that compares arms by the seconds to a level of accuracy."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from coterie.runs.metrics import MetricsDB
from coterie.types import EvalResult, Interval

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "grouping" / "clock.py"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    spec = importlib.util.spec_from_file_location("clock_study", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "clock_study", module)
    spec.loader.exec_module(module)
    return module


def test_a_level_is_reached_between_two_evaluations(clock) -> None:
    curve = clock.Curve(
        seconds=np.array([0.0, 10.0, 20.0]), accuracy=np.array([0.2, 0.3, 0.5]), others=np.array([1.0, 1.0, 1.0])
    )
    assert curve.reached(0.4, 20.0) == pytest.approx(15.0)
    assert curve.reached(0.25, 20.0) == pytest.approx(5.0)
    assert curve.reached(0.6, 20.0) == 20.0
    assert curve.area(20.0) == pytest.approx((0.25 * 10 + 0.4 * 10) / 20)
    assert curve.area(10.0) == pytest.approx(0.25)


def test_arms_are_compared_seed_by_seed(clock) -> None:
    def curve(seconds: float) -> object:
        values = np.array([0.2, 0.4, 0.6])
        return clock.Curve(seconds=seconds * np.arange(3), accuracy=values, others=np.ones(3))

    curves = {"slow": {0: curve(10.0), 1: curve(20.0)}, "fast": {0: curve(5.0), 1: curve(10.0)}}
    text = clock.report(curves, "slow", [0.4])
    assert "| `fast` | 2 |" in text
    # To 40 %: 5 and 10 seconds against 10 and 20.
    assert text.splitlines()[-1].endswith("| 8 | 0.50 [0.50, 0.50] | 2/2 |")


def test_tasks_that_are_left_out_are_reported_by_themselves(clock, tmp_path: Path) -> None:
    def result(step: int, task: str, prompts: int, value: float) -> EvalResult:
        return EvalResult(
            step=step,
            task=task,
            prompts=prompts,
            samples=1,
            k=1,
            pass_at_1=Interval(value=value, low=value, high=value),
            pass_at_k=None,
            mean_length=1.0,
            truncated=0.0,
            reward=None,
        )

    with MetricsDB(tmp_path / "metrics.sqlite") as database:
        for step in (0, 1):
            if step:
                database.record(step, {"time/cpu/step": 3.0})
            tasks = [("a", 10, 0.2 * step), ("b", 30, 0.4 * step), ("easy", 5, 1.0), ("all", 45, 0.5)]
            database.record_evals([result(step, *task) for task in tasks])
    curve = clock.read(tmp_path, {"easy"})
    assert curve.seconds.tolist() == [0.0, 3.0]
    np.testing.assert_allclose(curve.accuracy, [0.0, 0.35])
    assert curve.others.tolist() == [1.0, 1.0]
