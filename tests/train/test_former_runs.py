"""A run that the former version stored can be looked at and its models used, but not be resumed."""

from __future__ import annotations

import json
import sqlite3
import tomllib
from pathlib import Path
from typing import Any

import pytest

from coterie import launch
from coterie.board.report import report_run
from coterie.cli.main import main
from coterie.config.load import load_file
from coterie.config.renamed import KEYS, VALUES, former_metric_name
from coterie.config.toml import dumps
from coterie.errors import RunError
from coterie.runs.directory import RunDirectory
from runs_for_tests import make_config

PRESENT = {present: former for former, present in KEYS.items() if former != "mismatch"}


def former(table: dict[str, Any]) -> dict[str, Any]:
    """Settings as the former version stored them."""
    settings: dict[str, Any] = {}
    for section, fields in table.items():
        if not isinstance(fields, dict):
            settings[section] = fields
            continue
        for field, value in fields.items():
            key = f"{section}.{field}"
            if isinstance(value, str):
                value = {present: name for name, present in VALUES.get(key, {}).items()}.get(value, value)
            key = PRESENT.get(key, key).replace("rollout_correction.", "mismatch.")
            name, _, below = key.partition(".")
            settings.setdefault(name, {})[below] = value
    return settings


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps whose settings and metrics have their former names."""
    root = tmp_path_factory.mktemp("former")
    patch = pytest.MonkeyPatch()
    patch.chdir(root)
    try:
        run = launch.train(make_config(root, steps=2, optim={"lr": 1e-2, "subsample": 1.0}))
    finally:
        patch.undo()
    stored = run / "config.toml"
    stored.write_text(dumps(former(tomllib.loads(stored.read_text(encoding="utf-8")))), encoding="utf-8")
    with sqlite3.connect(run / "metrics.sqlite") as database:
        for (name,) in database.execute("SELECT DISTINCT name FROM metrics").fetchall():
            database.execute("UPDATE metrics SET name = ? WHERE name = ?", (former_metric_name(name), name))
    database.close()
    return run


@pytest.fixture(autouse=True)
def beside(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent.parent)


def test_its_settings_are_read_under_their_present_names(run: Path) -> None:
    text = (run / "config.toml").read_text(encoding="utf-8")
    for former_name in ('surrogate = "min"', "[mismatch]", "[[rewards.parts]]"):
        assert former_name in text
    config = load_file(run / "config.toml").config
    assert (config.objective.loss, config.optim.subsample, config.engine.max_num_seqs) == ("clip", 1.0, 5)
    assert config.rollout_correction.kind == "token_truncate"


def test_it_is_listed_shown_compared_examined_and_reported(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "runs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["steps"] == 2
    assert main(["show", str(run), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert "prompt_overlap/mean" in shown["metrics"]
    assert "copied/mean" not in shown["metrics"]
    assert main(["diff", str(run), str(run)]) == 0
    assert "surrogate" not in capsys.readouterr().out
    assert main(["doctor", str(run)]) in (0, 1)
    report_run(RunDirectory.at(run))
    assert "| collect.prompts_per_step | 3 |" in (run / "README.md").read_text(encoding="utf-8")


def test_its_model_is_evaluated_and_trained_further(run: Path) -> None:
    assert main(["eval", str(run), "--eval.samples", "1", "--eval.k", "1"]) == 0
    assert main(["rollout", str(run)]) == 0
    words = ["train", "@", str(run / "config.toml"), "--name", "further", "--model.name", str(run), "--steps", "1"]
    assert main(words) == 0


def test_it_is_not_resumed(run: Path) -> None:
    with pytest.raises(RunError, match=r"was made by an older version of coterie, with the setting obj"):
        launch.resume(run)
