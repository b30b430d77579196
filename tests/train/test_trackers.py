"""Trackers hear every metric under its name, never end a run or slow it, and no secret is written."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from coterie import launch, trackers
from coterie.callbacks import RunInfo
from coterie.errors import ConfigError
from coterie.runs.metrics import MetricsDB
from coterie.trackers import Start, Trackers, heldout, require
from coterie.types import EvalResult, Interval
from runs_for_tests import Watch, importable, make_config

INTERVAL = Interval(value=0.5, low=0.4, high=0.6)
RESULT = EvalResult(
    step=2, task="sums & more", prompts=4, samples=1, k=1, pass_at_1=INTERVAL, pass_at_k=None, reward=INTERVAL,
    reward_parts={"number": 0.5}, mean_length=3.0, truncated=0.25,
)  # fmt: skip
SECRET = "key-that-nobody-may-read"


def info(run: Path, first_step: int = 1) -> RunInfo:
    (run / "logs").mkdir(parents=True, exist_ok=True)
    return RunInfo(
        run=run, steps=4, first_step=first_step, model="m", parameters=1, trained_parameters=1, train_prompts=1,
        heldout_prompts=1, prompts_per_step=1, group_size=2,
    )  # fmt: skip


class Recording:
    """Sink that remembers what it is told."""

    told: list[tuple[int, dict[str, float]]]
    closed: bool

    def __init__(self, start: Start) -> None:
        self.start = start
        type(self).told, type(self).closed = [], False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.told.append((step, dict(values)))

    def close(self) -> None:
        type(self).closed = True


def use(monkeypatch: pytest.MonkeyPatch, sink: Any, **names: str) -> None:
    monkeypatch.setitem(trackers.SINKS, "wandb", (names.get("module", "json"), sink))


def test_steps_and_evaluations_are_told_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Recording)
    watch = Watch()
    tracked = Trackers(watch, ["wandb", "wandb"], {"optim.lr": 1e-6})
    tracked.on_start(info(tmp_path))
    for step in (1, 2):
        tracked.on_step(step, {"reward/mean": step / 4}, None)
    tracked.on_evaluate([RESULT])
    tracked.close()
    assert Recording.told == [(1, {"reward/mean": 0.25}), (2, {"reward/mean": 0.5}), (2, heldout(RESULT))]
    assert Recording.closed
    assert watch.steps == [{"reward/mean": 0.25}, {"reward/mean": 0.5}]
    assert watch.notes == []


def test_heldout_metrics_are_named_as_their_columns() -> None:
    values = heldout(RESULT)
    assert values["eval/sums & more/pass_at_1_low"] == 0.4
    assert values["eval/sums & more/part/number"] == 0.5
    assert "eval/sums & more/pass_at_k" not in values


@pytest.mark.parametrize("where", ["open", "log", "close"])
@pytest.mark.parametrize("error", [RuntimeError("no network"), SystemExit(3)])
def test_a_tracker_that_fails_is_named_once(
    where: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(Recording):
        def __init__(self, start: Start) -> None:
            if where == "open":
                raise error
            super().__init__(start)

        def log(self, step: int, values: Mapping[str, float]) -> None:
            if where == "log":
                raise error

        def close(self) -> None:
            if where == "close":
                raise error

    use(monkeypatch, Failing)
    watch = Watch()
    tracked = Trackers(watch, ["wandb"], {})
    tracked.on_start(info(tmp_path))
    for step in range(1, 5):
        tracked.on_step(step, {"loss": 0.0}, None)
    tracked.close()
    ((kind, message),) = watch.notes
    assert kind == "warning"
    assert "tracker wandb failed" in message
    assert type(error).__name__ in message


def test_a_tracker_that_hangs_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()

    class Hanging(Recording):
        def log(self, step: int, values: Mapping[str, float]) -> None:
            free.wait(20)

    use(monkeypatch, Hanging)
    monkeypatch.setattr(trackers, "PATIENCE", 0.05)
    monkeypatch.setattr(trackers, "WAITING", 3)
    watch = Watch()
    tracked = Trackers(watch, ["wandb"], {})
    tracked.on_start(info(tmp_path))
    started = time.monotonic()
    for step in range(1, 50):
        tracked.on_step(step, {"loss": 0.0}, None)
    tracked.close()
    assert time.monotonic() - started < 5
    free.set()
    assert len(watch.notes) == 1
    assert "3 records behind" in watch.notes[0][1]


def test_a_missing_package_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Recording, module="no_such_package")
    with pytest.raises(ConfigError, match=r"needs the package no_such_package.*install"):
        require(["wandb"])
    with pytest.raises(ConfigError, match="no_such_package"):
        launch.train(make_config(tmp_path, trackers=["wandb"]))
    assert not (tmp_path / "runs").exists()


def test_an_id_is_kept_for_the_resume(tmp_path: Path) -> None:
    start = Start(info=info(tmp_path), settings={})
    assert start.id_of("wandb") is None
    assert start.id_of("wandb", "abc") == "abc"
    assert start.id_of("mlflow", "def") == "def"
    assert Start(info=info(tmp_path), settings={}).id_of("wandb") == "abc"
    (tmp_path / "logs" / trackers.IDS).write_text("{ cut")
    assert start.id_of("wandb") is None


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard itself reads from the event files."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = accumulator.EventAccumulator(str(folder))
    reader.Reload()
    return {name: {row.step: row.value for row in reader.Scalars(name)} for name in reader.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore")  # of TensorBoard's own imports
def test_tensorboard_reads_the_run_and_its_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    monkeypatch.setenv("PYTHONPATH", importable(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.chdir(tmp_path)
    watch = Watch()
    run = launch.train(make_config(tmp_path, trackers=["tensorboard"], steps=2), watch)
    assert [note for note in watch.notes if "tracker" in note[1]] == []
    launch.resume(run, steps=3)
    told = scalars(run / "logs" / "tensorboard")
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        for name in database.names():
            assert told[name] == pytest.approx(dict(database.series(name)), rel=1e-5), name
        for result in database.evals():
            for name, value in heldout(result).items():
                assert told[name][result.step] == pytest.approx(value)
    for file in run.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes()
