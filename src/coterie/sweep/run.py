"""Runs the cells of a sweep one after the other, each in a process of its own; what is done is not done again."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from coterie.errors import RunError
from coterie.runs.durable import json_dumps, write_file
from coterie.sweep.grid import Cell

RUNS = "runs"
LOGS = "logs"
DONE = "done.json"
FAILED = "failed.json"
"""In a run's folder: it has all its steps, or ended without."""

Say = Callable[[str], None]


def folder(out: Path, cell: Cell) -> Path:
    return out / RUNS / cell.name


def run(cells: Sequence[Cell], words: Sequence[str], out: Path, say: Say) -> None:
    """Train every cell that is not done; interrupted ones go on where they were.

    Args:
        words: settings that all cells share, as given to `coterie train`.
        out: folder of the sweep.

    Raises:
        RunError: the folder holds another sweep.
    """
    _claim(out, words)
    for number, cell in enumerate(cells, start=1):
        path = folder(out, cell)
        title = f"[{number}/{len(cells)}] {cell.label} seed {cell.seed}"
        if (path / DONE).is_file() or (path / FAILED).is_file():
            say(f"{title}: done before")
            continue
        say(f"{title}: {'resumes' if path.is_dir() else 'starts'}; log in {_log(out, cell)}")
        started = time.monotonic()
        code = _run_one(cell, words, out)
        record = {"exit_code": code, "seconds": round(time.monotonic() - started, 1)}
        if code < 0 or code == 130:
            raise RunError(f"{title} was ended by signal {abs(code)}; the same command goes on with it")
        if path.is_dir():
            write_file(path / (DONE if code == 0 else FAILED), json_dumps(record).encode())
        else:
            raise RunError(f"{title} could not start:\n{_log(out, cell).read_text(encoding='utf-8')[-2000:]}")
        say(f"{title}: {'done' if code == 0 else f'ended with exit code {code}'} after {record['seconds']} s")


def _claim(out: Path, words: Sequence[str]) -> None:
    note = out / "sweep.json"
    text = json_dumps({"words": list(words)})
    if note.is_file() and note.read_text(encoding="utf-8") != text:
        raise RunError(f"{out} holds a sweep with other settings ({note}); take another --out")
    out.mkdir(parents=True, exist_ok=True)
    (out / LOGS).mkdir(exist_ok=True)
    if not note.is_file():
        write_file(note, text.encode())


def _log(out: Path, cell: Cell) -> Path:
    return out / LOGS / f"{cell.name}.log"


def _run_one(cell: Cell, words: Sequence[str], out: Path) -> int:
    path = folder(out, cell)
    program = [sys.executable, "-m", "coterie"]
    if (path / "config.toml").is_file():
        command = [*program, "resume", str(path)]
    else:
        command = [*program, "train", *words, *cell.words(), f"runs={out / RUNS}", f"name={cell.name}"]
    with _log(out, cell).open("ab") as log:
        return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
