"""A run that collapses is ended, with the checkpoint from before it; and says so to whoever comes later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coterie import launch
from coterie.cli.main import main
from coterie.config.toml import dumps
from coterie.doctor.health import diagnose
from coterie.errors import CollapseError, RunError
from coterie.runs import checkpoint
from coterie.runs.directory import RunDirectory
from coterie.runs.inspect import summary
from coterie.runs.metrics import MetricsDB
from runs_for_tests import importable, make_config

# A rate that breaks any model: after a few steps every completion is one letter over and over.
WILD: dict[str, Any] = {"steps": 40, "optim": {"lr": 0.05}, "checkpoint": {"every": 1, "keep": 1}}
RULE = {"name": "entropy_below", "threshold": 1.0, "patience": 3}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", importable(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def collapsed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that a rule ended, and its last words."""
    root = tmp_path_factory.mktemp("collapse")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("PYTHONPATH", importable(root))
        with pytest.raises(CollapseError) as caught:
            launch.train(make_config(root, **WILD, stop={"rules": [RULE]}))
    return root / "runs" / "one", str(caught.value)


def last_step(run: Path) -> int:
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        return database.last_step() or 0


def test_it_ends_and_keeps_the_last_good_checkpoint(collapsed: tuple[Path, str]) -> None:
    run, words = collapsed
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        entropy = dict(database.series("entropy"))
    step = last_step(run)
    assert step < 40
    assert all(entropy[at] < 1 for at in range(step - 2, step + 1))
    assert entropy[step - 3] >= 1
    # The weights after step - 3 sampled the first bad step, so those after step - 4 are the last good ones.
    assert checkpoint.steps(run / "checkpoints") == [step - 4]
    found = checkpoint.newest(run / "checkpoints")
    assert found is not None
    assert found.step == step - 4
    assert f"ended after step {step} by stop rule entropy_below" in words
    assert f"step_{step - 4:06d}" in words
    assert "--optim.lr LOWER" in words


def test_everybody_who_looks_is_told(collapsed: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    run, words = collapsed
    assert summary(run, tests=False).state == "collapsed"
    assert words in diagnose(run).ended
    assert main(["doctor", str(run)]) == 1
    assert "stop rule" in capsys.readouterr().out
    readme = (run / "README.md").read_text(encoding="utf-8")
    assert "stop rule entropy_below" in readme
    assert "1 × collapse" in readme


def test_resume_refuses_to_end_there_again(collapsed: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = collapsed
    before = last_step(run)
    with pytest.raises(RunError, match=r"stop rule entropy_below.*relax or remove entropy_below under \[stop\]"):
        launch.resume(run)
    assert main(["resume", str(run)]) == 1
    assert "would make the same steps again" in capsys.readouterr().err
    assert last_step(run) == before


def test_with_the_rule_relaxed_a_resume_goes_on_and_says_why_it_stopped(root: Path) -> None:
    wild = WILD | {"steps": 12, "checkpoint": {"every": 4, "keep": 1}}
    eager = {"name": "above", "metric": "length/mean", "threshold": 1.0, "patience": 6}
    with pytest.raises(CollapseError, match="ended after step 6"):
        launch.train(make_config(root, **wild, stop={"rules": [eager]}))
    run = root / "runs" / "one"
    # All steps were bad from the first: no checkpoint is known to be good, and none is removed.
    assert checkpoint.steps(run / "checkpoints") == [4]
    directory = RunDirectory.at(run)
    settings = directory.read_config()
    settings["stop"]["rules"] = []
    directory.config.write_text(dumps(settings), encoding="utf-8")
    launch.resume(run)
    assert summary(run, tests=False).state == "finished"
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        (event,) = database.events("resume")
    assert event.message.startswith("ended after step 6 by stop rule above: length/mean above 1 for 6 steps in a row")
    assert event.message.endswith("continuing from step_000004")


def test_the_program_ends_with_its_own_exit_code(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rule = {"name": "above", "metric": "length/mean", "threshold": 1.0, "patience": 1}
    config = make_config(root, steps=2, stop={"rules": [rule]})
    (root / "mine.toml").write_text(dumps(config.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    assert main(["train", "@", "mine.toml"]) == 3
    assert "there is no checkpoint from before it began" in capsys.readouterr().err


def test_a_rule_that_can_never_fire_is_warned_of_and_a_good_run_is_left_alone(root: Path) -> None:
    rules = [{"name": "kl_above"}, {"name": "non_finite"}, {"name": "entropy_below", "threshold": 0.0}]
    run = launch.train(make_config(root, steps=2, stop={"rules": rules}))
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        (warning,) = [event.message for event in database.events("warning")]
    assert warning.startswith("stop rule kl_above reads kl/ref, which step 1 did not record")
    assert summary(run, tests=False).state == "finished"
