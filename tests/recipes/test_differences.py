"""`recipes/differences.py`: stages of pipelines and evaluations of runs over several seeds, paired by prompt."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
from recipe_modules import recipe

from coterie.runs.metrics import EvalItem, MetricsDB
from coterie.stages.records import StageRecord
from coterie.types import EvalResult, Interval

differences = recipe("", "differences")
SEEDS = [((0, 1, 0, 0), (2, 1, 1, 0)), ((1, 1, 0, 0), (1, 2, 0, 1))]
"""Of each seed: right attempts of two, of four prompts, before and after. Together 3 and 8 of 16."""


def items(correct: tuple[int, ...]) -> list[EvalItem]:
    """Two prompts of each of two tasks."""
    return [EvalItem(task="ab"[k // 2], prompt_id=str(k), correct=c, samples=2) for k, c in enumerate(correct)]


def test_stages_of_pipelines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, evaluations in enumerate(SEEDS):
        for stage, correct in zip(("cold", "reason"), evaluations, strict=True):
            facts = {"held out": {"items": [asdict(item) for item in items(correct)]}}
            StageRecord(key="", evaluations=facts).write(tmp_path / str(seed), stage)
    assert differences.main("cold", "reason", [str(tmp_path / "0"), str(tmp_path / "1")]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("held out (4 prompts, 2 seeds): 18.8 → 50.0 %, +31.2 points [")


def test_the_first_and_the_last_evaluation_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    interval = Interval(value=0.5, low=0.0, high=1.0)
    for seed, evaluations in enumerate(SEEDS):
        (tmp_path / str(seed)).mkdir()
        with MetricsDB(tmp_path / str(seed) / "metrics.sqlite") as database:
            for step, correct in zip((0, 20), evaluations, strict=True):
                result = EvalResult(
                    step=step,
                    task="a",
                    prompts=4,
                    samples=2,
                    k=1,
                    pass_at_1=interval,
                    pass_at_k=interval,
                    mean_length=3.0,
                    truncated=0.0,
                )
                database.record_evals([result], items(correct))
    assert differences.main("first", "last", [str(tmp_path / "0"), str(tmp_path / "1")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(", ")[0] + line.partition(":")[2][:16] for line in lines] == [
        "a (2 prompts 37.5 → 75.0 %, ",
        "all (4 prompts 18.8 → 50.0 %, ",
        "b (2 prompts 0.0 → 25.0 %, +",
    ]
