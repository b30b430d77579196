"""Runs the cells of a sweep one after the other, each in a process of its own; what is done is not done again."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from coterie.config.load import load, load_file
from coterie.errors import RunError
from coterie.runs.durable import json_dumps, json_loads, write_file
from coterie.runs.metrics import MetricsDB
from coterie.sweep.grid import Cell

RUNS = "runs"
LOGS = "logs"
DONE = "done.json"
FAILED = "failed.json"
"""In a run's folder: it has all its steps, or ended without."""
DIVERGED = ("NonFiniteError", "CollapseError")
"""Errors that end a run because of what it learned. Another one (a full disk) says nothing about the setting, so such a
run is tried again."""

STOPPED = (130, 143)
"""Exit codes of a run that was asked to stop, by Ctrl-C or SIGTERM."""

Say = Callable[[str], None]


def folder(out: Path, cell: Cell) -> Path:
    return out / RUNS / cell.name


def run(cells: Sequence[Cell], words: Sequence[str], out: Path, say: Say, *, lean: bool = False) -> None:
    """Train every cell that is not done; interrupted ones go on where they were.

    Args:
        words: settings that all cells share, as given to `coterie train`.
        out: folder of the sweep.
        lean: delete the checkpoints of a run that is done.

    Raises:
        RunError: the folder holds a run of this name with other settings, a run could not start, or it was interrupted.
    """
    (out / LOGS).mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(cells, start=1):
        path = folder(out, cell)
        title = f"[{number}/{len(cells)}] {cell.label} seed {cell.seed}"
        steps = _check_same(cell, words, path)
        if _ended(path):
            say(f"{title}: done before")
            continue
        say(f"{title}: {'goes on' if path.is_dir() else 'starts'}; log in {_log(out, cell)}")
        started = time.monotonic()
        code, interrupted = _run_one(cell, words, out)
        seconds = round(time.monotonic() - started, 1)
        if not (path / "metrics.sqlite").is_file():
            raise RunError(f"{title} could not start:\n{_log(out, cell).read_text(encoding='utf-8')[-2000:]}")
        last, error = _ending(path)
        (path / FAILED).unlink(missing_ok=True)
        if code == 0 and last == steps:
            write_file(path / DONE, json_dumps({"seconds": seconds}).encode())
            if lean:
                shutil.rmtree(path / "checkpoints", ignore_errors=True)
            say(f"{title}: done after {seconds} s")
        elif interrupted or code <= 0 or code in STOPPED:
            raise RunError(f"{title} was interrupted at step {last} of {steps}; the same command goes on with it")
        else:
            write_file(path / FAILED, json_dumps({"seconds": seconds, "exit_code": code, "error": error}).encode())
            say(f"{title}: ended at step {last} of {steps}: {error}")


def _check_same(cell: Cell, words: Sequence[str], path: Path) -> int:
    """The steps that the cell is to have; a run that is there must be of exactly these settings."""
    wanted = load([*words, *cell.words()]).config
    if (path / "config.toml").is_file():
        there = load_file(path / "config.toml").config
        own = {"name": "", "runs": ""}
        if wanted.model_copy(update=own) != there.model_copy(update=own):
            raise RunError(f"{path} is a run with other settings than {cell.label} has now; take another --out")
    return wanted.steps


def _ended(path: Path) -> bool:
    """Nothing new would come of trying this run again."""
    if (path / DONE).is_file():
        return True
    return (path / FAILED).is_file() and failure(path).startswith(DIVERGED)


def failure(path: Path) -> str:
    """Why the run in this folder ended before its last step; empty where it did not."""
    file = path / FAILED
    return str(json_loads(file.read_text(encoding="utf-8"))["error"]) if file.is_file() else ""


def _ending(path: Path) -> tuple[int, str]:
    """The last step that a run recorded, and the last error."""
    with MetricsDB.reader(path / "metrics.sqlite") as database:
        errors = database.events("error")
        return database.last_step() or 0, errors[-1].message if errors else ""


def _log(out: Path, cell: Cell) -> Path:
    return out / LOGS / f"{cell.name}.log"


def _run_one(cell: Cell, words: Sequence[str], out: Path) -> tuple[int, bool]:
    """Exit code, and whether Ctrl-C was pressed: the run has heard it too, and is given the time to save."""
    path = folder(out, cell)
    program = [sys.executable, "-m", "coterie"]
    if (path / "config.toml").is_file():
        command = [*program, "resume", str(path)]
    else:
        command = [*program, "train", *words, *cell.words(), f"runs={out / RUNS}", f"name={cell.name}"]
    interrupted = False
    with _log(out, cell).open("ab") as log, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as child:
        while True:
            try:
                return child.wait(), interrupted
            except KeyboardInterrupt:
                interrupted = True
