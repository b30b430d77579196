"""The doctor on whole run folders: what it says in words, as JSON, with its exit code, and in the run's README."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from records import make_eval

from coterie.board.report import write_report
from coterie.cli.main import main
from coterie.config.schema import RunConfig
from coterie.doctor.health import diagnose, health_lines
from coterie.errors import RunError
from coterie.runs.directory import RunDirectory
from coterie.runs.metrics import MetricsDB

GOOD = {
    "reward/mean": [0.1] * 10 + [0.6] * 10,
    "ratio/mean": [1.0] * 20,
    "entropy": [1.0] * 10 + [0.7] * 10,
    "truncated": [0.0] * 20,
    "errors": [0.0] * 20,
}
BAD = GOOD | {"truncated": [0.2] * 20, "mismatch/kl": [0.5] * 20}


def make(root: Path, metrics: Mapping[str, Sequence[float]], *, name: str = "r", lost: bool = False) -> RunDirectory:
    with RunDirectory.create(root, name, "x") as run:
        run.write_config(RunConfig(steps=20).model_dump(mode="json"))
        with MetricsDB(run.metrics) as database:
            for step, correct in ((0, [0, 1, 0, 2, 1, 0] * 5), (20, [4, 3, 4, 4, 2, 4] * 5)):
                result, items = make_eval(step, "legs", correct[::-1] if not lost else [4 - count for count in correct])
                database.record_evals([result], items)
            for step in range(1, 21):
                database.record(step, {name: values[step - 1] for name, values in metrics.items()})
    return run


def test_a_good_run_is_called_healthy_and_what_could_not_be_judged_is_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make(tmp_path, GOOD)
    assert main(["doctor", str(run.path)]) == 0
    output = capsys.readouterr().out
    assert f"{run.path}: healthy after 20 steps: " in output
    assert "checks passed: ratio, " in output
    assert "checks skipped:" in output
    assert "critic: Is the critic better than a constant? critic/explained_variance was not recorded" in output
    assert diagnose(run.path).findings == ()


def test_findings_are_told_in_words_with_evidence_and_advice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path, BAD)
    assert main(["doctor", "r", "--runs", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "unhealthy: 1 serious finding and 1 warning in 20 steps" in lines[0]
    serious = lines.index("serious: Sampler and learner disagree about the same tokens.")
    warning = lines.index("warning: 20 % of the completions are cut by the token limit.")
    assert serious < warning
    assert "mismatch/kl above 0.01 in 20 of 20 steps, steps 1 to 20, and still so" in lines[serious + 1]
    warning_text = " ".join(line.strip() for line in lines[warning:])
    assert "suggested fix: Raise sampling.max_tokens from 128 to about 256" in warning_text


def test_the_json_has_the_same_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make(tmp_path, BAD)
    assert main(["doctor", str(run.path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["serious"] is True
    first = report["findings"][0]
    assert (first["rule"], first["severity"]) == ("mismatch_kl", "serious")
    assert first["evidence"][0] == {
        "metric": "mismatch/kl",
        "value": 0.5,
        "threshold": 0.01,
        "steps": [1, 20],
        "text": "mismatch/kl above 0.01 in 20 of 20 steps, steps 1 to 20, and still so; worst 0.5 at step 1",
    }
    assert {rule["rule"] for rule in report["unjudged"]} >= {"critic", "kl_jump"}


def test_a_reward_that_rises_while_held_out_accuracy_falls_is_serious(tmp_path: Path) -> None:
    run = make(tmp_path, GOOD, lost=True)
    findings = {finding.rule: finding for finding in diagnose(run.path).findings}
    assert findings["heldout_flat"].severity == "serious"
    assert "the reward is being gamed, or memorised" in findings["heldout_flat"].title
    assert findings["heldout_lost"].severity == "serious"


def test_the_readme_has_the_findings_in_a_few_lines(tmp_path: Path) -> None:
    run = make(tmp_path, BAD | {"reward/part/<b>": [0.0] * 20})
    lines = list(health_lines(run.path, most=1))
    assert lines[0].startswith("- Unhealthy: 1 serious finding")
    assert lines[1].startswith("- serious: Sampler and learner disagree")
    assert lines[-1].startswith("- 1 more finding, remedies and skipped checks: `coterie doctor ")
    write_report(run, machine="a machine", seconds=1.0)
    page = run.readme.read_text(encoding="utf-8")
    assert page.index("## Result") < page.index("## Health") < page.index("## Reproduce")
    assert "- warning: 20 % of the completions are cut" in page


def test_too_early_to_tell(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path, "r", "x") as run:
        run.write_config({})
        with pytest.raises(RunError, match="nothing to diagnose before the first step"):
            diagnose(run.path)
        with MetricsDB(run.metrics) as database:
            database.record(1, {"reward/mean": 0.5})
    diagnosis = diagnose(run.path)
    assert diagnosis.verdict.startswith("too early to tell after 1 step: 0 checks passed")
    assert not diagnosis.serious


def test_what_is_no_run_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "nothing", "--runs", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: no run 'nothing'")
