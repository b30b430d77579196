"""Runs of a sweep, each in its own process; finished ones are not repeated."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from coterie import machine
from coterie.config.load import load, load_file
from coterie.errors import RunError
from coterie.runs.durable import json_dumps, json_loads, write_file
from coterie.runs.metrics import MetricsDB
from coterie.sweep.grid import Cell

RUNS = "runs"
LOGS = "logs"
DONE = "done.json"
FAILED = "failed.json"
"""Files in a run's folder: it has all its steps, or ended before."""
DIVERGED = ("NonFiniteError", "CollapseError")
"""Errors that end a run because of what it learned. Another one (a full disk) says nothing about the setting, so such a
run is tried again."""

STOPPED = (130, 143)
"""Exit codes of a run that was asked to stop, by Ctrl-C or SIGTERM."""

POLL_S = 0.1
"""Seconds between two polls of the running processes."""

Log = Callable[[str], None]


def folder(out: Path, cell: Cell) -> Path:
    return out / RUNS / cell.name


def run(cells: Sequence[Cell], words: Sequence[str], out: Path, log: Log, *, lean: bool = False, jobs: int = 1) -> None:
    """Train every cell that is not done, interrupted ones from their newest checkpoint.

    Args:
        words: settings that all cells share, as given to `coterie train`.
        out: folder of the sweep.
        lean: delete the checkpoints of a run that is done.
        jobs: runs at the same time; they share the processors evenly.
    """
    (out / LOGS).mkdir(parents=True, exist_ok=True)
    pending = deque(_pending(cells, words, out, log))
    running: list[_Running] = []
    problem: RunError | None = None  # after one nothing new is started, and what goes on is waited for
    while running or (pending and problem is None):
        try:
            while pending and problem is None and len(running) < jobs:
                running.append(_start(pending.popleft(), words, out, log, jobs))
            done = _wait_for_first(running)
        except KeyboardInterrupt:  # the runs have heard it too, and are given the time to save
            problem = RunError("the sweep was interrupted; run the same command again to resume it")
            continue
        running.remove(done)
        problem = _finish(done, log, lean=lean, interrupted=problem is not None) or problem
        if problem is not None and running:
            log(f"{problem}\nwaiting for the runs in progress: {', '.join(run.planned.title for run in running)}")
    if problem is not None:
        raise problem


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planned:
    """A cell to run."""

    cell: Cell
    title: str
    steps: int
    """Steps of the whole run."""
    folder: Path
    log: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    """A cell that is running."""

    planned: _Planned
    process: subprocess.Popen
    started: float


def _pending(cells: Sequence[Cell], words: Sequence[str], out: Path, log: Log) -> Iterator[_Planned]:
    for number, cell in enumerate(cells, start=1):
        path = folder(out, cell)
        title = f"[{number}/{len(cells)}] {cell.label} seed {cell.seed}"
        steps = _check_same(cell, words, path)
        if _is_done(path):
            log(f"{title}: already done")
        else:
            yield _Planned(cell=cell, title=title, steps=steps, folder=path, log=out / LOGS / f"{cell.name}.log")


def _start(planned: _Planned, words: Sequence[str], out: Path, log: Log, jobs: int) -> _Running:
    resumed = (planned.folder / "config.toml").is_file()
    log(f"{planned.title}: {'resumes' if resumed else 'starts'}; log in {planned.log}")
    program = [sys.executable, "-m", "coterie"]
    if resumed:
        command = [*program, "resume", str(planned.folder)]
    else:
        flags = [*planned.cell.words(), f"runs={out / RUNS}", f"name={planned.cell.name}"]
        command = [*program, "train", *words, *flags]
    environment = dict(os.environ)
    if jobs > 1:  # each would take all cores, and then they wait for each other's threads at every operation
        environment.setdefault(machine.COUNT, str(max(1, machine.cores() // jobs)))
    with planned.log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    return _Running(planned=planned, process=process, started=time.monotonic())


def _wait_for_first(running: Sequence[_Running]) -> _Running:
    while True:
        for run in running:
            if run.process.poll() is not None:
                return run
        time.sleep(POLL_S)


def _finish(done: _Running, log: Log, *, lean: bool, interrupted: bool) -> RunError | None:
    """Record the outcome of a run; an error that is returned ends the sweep."""
    planned, path, code = done.planned, done.planned.folder, done.process.returncode
    seconds = round(time.monotonic() - done.started, 1)
    if not (path / "metrics.sqlite").is_file():
        return RunError(f"{planned.title} could not start:\n{planned.log.read_text(encoding='utf-8')[-2000:]}")
    last, error = _last_state(path)
    (path / FAILED).unlink(missing_ok=True)
    if code == 0 and last == planned.steps:
        write_file(path / DONE, json_dumps({"seconds": seconds}).encode())
        if lean:
            shutil.rmtree(path / "checkpoints", ignore_errors=True)
        log(f"{planned.title}: done after {seconds} s")
        return None
    if interrupted or code <= 0 or code in STOPPED:
        where = f"at step {last} of {planned.steps}"
        return RunError(f"{planned.title} was interrupted {where}; run the same command again to resume it")
    write_file(path / FAILED, json_dumps({"seconds": seconds, "exit_code": code, "error": error}).encode())
    log(f"{planned.title}: ended at step {last} of {planned.steps}: {error}")
    return None


def _check_same(cell: Cell, words: Sequence[str], path: Path) -> int:
    """Steps of a cell; refuses a run of its name that has other settings."""
    expected = load([*words, *cell.words()]).config
    if (path / "config.toml").is_file():
        there = load_file(path / "config.toml").config
        neutral = {"name": "", "runs": ""}
        if expected.model_copy(update=neutral) != there.model_copy(update=neutral):
            raise RunError(f"{path} is a run with other settings than {cell.label} has now; choose another --out")
    return expected.steps


def _is_done(path: Path) -> bool:
    """True if the run is finished, or failed in a way that would repeat."""
    if (path / DONE).is_file():
        return True
    return (path / FAILED).is_file() and failure(path).startswith(DIVERGED)


def failure(path: Path) -> str:
    """Error that ended the run in this folder before its last step; empty where none did."""
    file = path / FAILED
    return str(json_loads(file.read_text(encoding="utf-8"))["error"]) if file.is_file() else ""


def _last_state(path: Path) -> tuple[int, str]:
    """The last step that a run recorded, and the last error."""
    with MetricsDB.reader(path / "metrics.sqlite") as database:
        errors = database.events("error")
        return database.last_step() or 0, errors[-1].message if errors else ""
