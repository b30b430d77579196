"""Trackers of experiments that a run tells its metrics to: TensorBoard, Weights & Biases, MLflow and trackio.

A tracker has a thread of its own and a queue: a slow one does not slow the run, and one that fails is named in an event
and told nothing more. Addresses and keys come from each tracker's own environment variables; none of them is a setting,
and none is written to the run.
"""

from __future__ import annotations

import json
import os
import queue
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from coterie.callbacks import Callback, CallbackList, RunInfo
from coterie.errors import ConfigError, install_command
from coterie.runs.durable import json_dumps, json_loads, write_file
from coterie.types import EvalResult, Prompt, Rollout

PROJECT = "coterie"
"""Name of the project or experiment where the tracker's own environment variable gives none."""
WAITING = 10_000
"""Records that wait for a slow tracker; later ones are dropped."""
PATIENCE = 30.0
"""Seconds that the end of a run waits for what is still in the queue."""
IDS = "trackers.json"
"""File in `logs/` with the id that each tracker gave the run, by which a resume goes on with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a tracker is told of a run at its start."""

    info: RunInfo
    settings: Mapping[str, Any]
    """By dotted key."""

    @property
    def logs(self) -> Path:
        return self.info.run / "logs"

    @property
    def name(self) -> str:
        return self.info.run.absolute().name

    def id_of(self, tracker: str, given: str | None = None) -> str | None:
        """The id under which a tracker knows the run, None before it knows it; `given` is kept for the next start."""
        file = self.logs / IDS
        ids: dict[str, str] = {}
        with suppress(OSError, ValueError):
            ids = json_loads(file.read_bytes())
        if given is not None and ids.get(tracker) != given:
            write_file(file, json_dumps(ids | {tracker: given}).encode())
        return given or ids.get(tracker)


class Sink(Protocol):
    """An open tracker."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in `logs/tensorboard`: `tensorboard --logdir runs` shows all runs."""

    def __init__(self, start: Start) -> None:
        writer: Any = import_module("torch.utils.tensorboard").SummaryWriter
        self.writer = writer(str(start.logs / "tensorboard"), purge_step=start.info.first_step, flush_secs=5)
        rows = "".join(f"| {key} | {json.dumps(value)} |\n" for key, value in start.settings.items())
        self.writer.add_text("settings", f"| setting | value |\n| --- | --- |\n{rows}", start.info.first_step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of wandb, online or, with WANDB_MODE=offline, in `logs/wandb`; it never asks for a login."""

    def __init__(self, start: Start) -> None:
        wandb: Any = import_module("wandb")
        identity = start.id_of("wandb") or start.id_of("wandb", uuid.uuid4().hex[:12])
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=start.name,
            id=identity,
            resume="allow",
            dir=str(start.logs),
            config=dict(start.settings),
            force=True,  # an error instead of a question at the terminal
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )
        self.run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        # A step of wandb's own must rise, and a resume may make steps again.
        self.run.log({"step": step, **values})

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """A run of MLflow at MLFLOW_TRACKING_URI, else in the database `mlflow.db` beside the runs."""

    def __init__(self, start: Start) -> None:
        client: Any = import_module("mlflow.tracking").MlflowClient
        beside = f"sqlite:///{start.info.run.absolute().parent / 'mlflow.db'}"
        self.client = client(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", beside))
        self.run = start.id_of("mlflow")
        if self.run is None:
            project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            experiment = self.client.get_experiment_by_name(project)
            identity = self.client.create_experiment(project) if experiment is None else experiment.experiment_id
            self.run = start.id_of("mlflow", self.client.create_run(identity, run_name=start.name).info.run_id)
            for key, value in start.settings.items():
                self.client.log_param(self.run, _allowed(key), str(value)[:6000])
        self.client.update_run(self.run, status="RUNNING")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        metric: Any = import_module("mlflow.entities").Metric
        now = int(1000 * time.time())
        rows = [metric(_allowed(name), value, now, step) for name, value in values.items()]
        for first in range(0, len(rows), 1000):
            self.client.log_batch(self.run, metrics=rows[first : first + 1000])

    def close(self) -> None:
        self.client.set_terminated(self.run)


class Trackio:
    """A run of trackio in its local database: `trackio show` opens its dashboard."""

    def __init__(self, start: Start) -> None:
        trackio: Any = import_module("trackio")
        for name, module in list(sys.modules.items()):  # it has no switch for what it prints between our lines
            if name.partition(".")[0] == "trackio":
                vars(module)["print"] = lambda *words, **options: None
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self.run = trackio.init(
            project=project, name=start.name, config=dict(start.settings), resume="allow", embed=False
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


def _allowed(name: str) -> str:
    """The name with the characters that MLflow takes."""
    return re.sub(r"[^\w .:/-]", "_", name, flags=re.ASCII)


SINKS: dict[str, tuple[str, Callable[[Start], Sink]]] = {
    "tensorboard": ("tensorboard", TensorBoard),
    "wandb": ("wandb", WeightsAndBiases),
    "mlflow": ("mlflow", MLflow),
    "trackio": ("trackio", Trackio),
}
"""Name in the settings, and of the extra → (module that must be there, sink)."""


def require(names: Sequence[str]) -> None:
    """Raise ConfigError, with the remedy, for a tracker whose package is not installed."""
    for name in names:
        module, _ = SINKS[name]
        if find_spec(module) is None:
            raise ConfigError(f'trackers = ["{name}"] needs the package {module}: {install_command(name)}')


class Tracker(Callback):
    """One tracker as a callback; it never raises.

    Args:
        tell: is given an event where the tracker failed or was too slow.
    """

    def __init__(self, name: str, settings: Mapping[str, Any], tell: Callable[[str, str], None]) -> None:
        self.name, self.settings, self.tell = name, settings, tell
        self._records: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(WAITING)
        self._thread: threading.Thread | None = None
        self._problem = ""
        self._told = False

    def on_start(self, info: RunInfo) -> None:
        start = Start(info=info, settings=self.settings)
        self._thread = threading.Thread(target=self._work, args=(start,), name=f"tracker {self.name}", daemon=True)
        self._thread.start()

    def on_step(self, step: int, metrics: Mapping[str, float], sample: tuple[Prompt, Rollout] | None) -> None:
        self._put(step, dict(metrics))

    def on_evaluate(self, results: Sequence[EvalResult]) -> None:
        for result in results:
            self._put(result.step, heldout(result))

    def close(self) -> None:
        """Wait for what is in the queue, but not for ever, and tell what went wrong."""
        if self._thread is not None:
            with suppress(queue.Full):
                self._records.put_nowait(None)
            self._thread.join(PATIENCE)
            if self._thread.is_alive():
                self._problem = self._problem or f"it did not take everything within {PATIENCE:g} seconds"
        self._report()

    def _put(self, step: int, values: dict[str, float]) -> None:
        if not self._problem:
            try:
                self._records.put_nowait((step, values))
            except queue.Full:
                self._problem = f"it is {WAITING} records behind, and is told no more"
        self._report()

    def _report(self) -> None:
        """Tell a problem once; from the training thread, as every event."""
        if self._problem and not self._told:
            self._told = True
            self.tell("warning", f"the tracker {self.name} failed, the run goes on without it: {self._problem}")

    def _work(self, start: Start) -> None:
        """Open the tracker and hand it what comes until the end; the first error ends it."""
        sink: Sink | None = None
        try:
            sink = SINKS[self.name][1](start)
            while (record := self._records.get()) is not None:
                sink.log(*record)
        except BaseException as error:  # SystemExit, too: a tracker never ends a run
            self._problem = f"{type(error).__name__}: {error}"
        finally:
            if sink is not None:
                try:
                    sink.close()
                except BaseException as error:
                    self._problem = self._problem or f"{type(error).__name__}: {error}"


def heldout(result: EvalResult) -> dict[str, float]:
    """A held-out evaluation as metrics, named as the columns of `evals` in metrics.sqlite: `eval/TASK/pass_at_1` …"""
    values = {"mean_length": result.mean_length, "truncated": result.truncated, **_parts(result.reward_parts)}
    for name in ("pass_at_1", "pass_at_k", "reward"):
        interval = getattr(result, name)
        if interval is not None:
            values |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {f"eval/{result.task}/{name}": value for name, value in values.items()}


def _parts(parts: Mapping[str, float]) -> dict[str, float]:
    return {f"part/{name}": value for name, value in parts.items()}


class Trackers(CallbackList):
    """The callback of a run, and after it the trackers that its settings name."""

    def __init__(self, callback: Callback, names: Sequence[str], settings: Mapping[str, Any]) -> None:
        self.trackers = [Tracker(name, settings, callback.on_event) for name in dict.fromkeys(names)]
        super().__init__([callback, *self.trackers])

    def close(self) -> None:
        """Let every tracker take what it was told."""
        for tracker in self.trackers:
            tracker.close()
