"""Each tracker's real package takes a run and its resume, offline, and keeps no key; skipped where it is missing."""

from __future__ import annotations

import json
import os
import sqlite3
from importlib.util import find_spec
from pathlib import Path

import pytest

from coterie.callbacks import Callback, RunInfo
from coterie.trackers import IDS, SINKS, Trackers
from coterie.types import EvalResult, Interval

SECRET = "key-that-nobody-may-read"
HALF = Interval(value=0.5, low=0.4, high=0.6)


class Listener(Callback):
    """Remembers events."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def on_event(self, kind: str, message: str) -> None:
        self.events.append(message)


def track(name: str, run: Path) -> list[str]:
    """Two steps with an evaluation, then a resume after the first one; the events."""
    (run / "logs").mkdir(parents=True)
    listener = Listener()
    result = EvalResult(
        step=2, task="sums & more", prompts=4, samples=1, k=1, pass_at_1=HALF, pass_at_k=None, reward=HALF,
        reward_parts={}, mean_length=3.0, truncated=0.25,
    )  # fmt: skip
    for first in (1, 2):
        tracked = Trackers(listener, [name], {"optim.lr": 1e-6, "data.train": [{"path": "a b"}]})
        info = RunInfo(
            run=run, steps=4, first_step=first, model="m", parameters=1, trained_parameters=1, train_prompts=1,
            heldout_prompts=1, prompts_per_step=1, group_size=2,
        )  # fmt: skip
        tracked.on_start(info)
        for step in (first, first + 1):
            tracked.on_step(step, {"reward/mean": step / 4, "kl/ref": 0.1}, None)
        tracked.on_evaluate([result])
        tracked.close()
    return listener.events


@pytest.mark.filterwarnings("ignore")  # of the packages' own imports
@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_the_package_takes_a_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if find_spec(SINKS[name][0]) is None:
        pytest.skip(f"the extra `{name}` is not installed")
    monkeypatch.chdir(tmp_path)
    for variable in ("MLFLOW_TRACKING_URI", "WANDB_PROJECT", "TRACKIO_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for variable in ("WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN", "HF_TOKEN"):
        monkeypatch.setenv(variable, SECRET)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    run = tmp_path / "runs" / "one"
    assert track(name, run) == []
    assert capfd.readouterr().out == ""
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert all(SECRET.encode() not in file.read_bytes() for file in files)
    if name == "mlflow":
        with sqlite3.connect(tmp_path / "runs" / "mlflow.db") as database:
            rows = database.execute("SELECT run_uuid, step, value FROM metrics WHERE key = 'reward/mean' ORDER BY step")
            told = rows.fetchall()
        database.close()
        assert {row[0] for row in told} == {json.loads((run / "logs" / IDS).read_text())["mlflow"]}
        assert {(step, value) for _, step, value in told} == {(1, 0.25), (2, 0.5), (3, 0.75)}
    else:
        folder = tmp_path / "trackio" if name == "trackio" else run / "logs" / "wandb"
        stored = b"".join(
            file.read_bytes() for file in folder.rglob("*") if file.suffix in (".db", ".wandb", ".db-wal")
        )
        for metric in (b"reward/mean", b"kl/ref", b"eval/sums & more/pass_at_1_low"):
            assert metric in stored
    assert os.environ["WANDB_API_KEY"] == SECRET
