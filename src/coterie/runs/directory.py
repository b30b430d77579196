"""The folder of a run: its files, its lock and its log."""

from __future__ import annotations

import copy
import re
import shutil
import tomllib
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from coterie.config.paths import anchor
from coterie.config.renamed import former_keys, translated
from coterie.config.toml import dumps
from coterie.errors import RunError
from coterie.runs import models
from coterie.runs.durable import LEFTOVER, describe, fsync, json_dumps, remove_leftovers, write_file
from coterie.runs.lock import Lock
from coterie.runs.metrics import MetricsDB
from coterie.text import safe_text


class RunLog:
    """`logs/attempt_N.log`: one file per process that worked on the run, one time-stamped line per event.

    A log must never stop a training: what cannot be written is counted in `lost`.
    """

    def __init__(self, folder: Path) -> None:
        self.lost = 0
        stems = (path.stem.removeprefix("attempt_") for path in folder.glob("attempt_*.log"))
        self.attempt = 1 + max((int(stem) for stem in stems if stem.isdecimal()), default=0)
        self.path = folder / f"attempt_{self.attempt}.log"
        try:
            self._file = open(self.path, "x", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115
        except OSError as error:
            raise RunError(f"cannot open the log {self.path}: {describe(error, folder)}") from error

    def line(self, kind: str, message: str) -> None:
        """Append `2026-11-21T12:00:00Z kind message`; further lines of the message are indented, and what would act on
        the terminal of whoever reads the log is shown as an escape."""
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        try:
            self._file.write(f"{stamp} {kind:<10} " + safe_text(message).replace("\n", "\n    ") + "\n")
        except OSError:
            self.lost += 1

    def close(self) -> None:
        try:
            self._file.close()
        except OSError:
            self.lost += 1


_LONGEST_NAME = 100
_MOST_BYTES = 200
"""A file system takes 255; the rest is for names derived from the run's."""


@dataclass(slots=True)
class RunDirectory:
    """A run's folder. From `create` and `open` it holds the run's lock; from `at` it only reads.

    config.toml  metrics.sqlite  quarantine.jsonl  README.md  curve.png
    rollouts/step_000012.parquet   checkpoints/step_000010/   logs/attempt_1.log
    """

    path: Path
    _lock: Lock | None = field(default=None, repr=False)

    @classmethod
    def create(cls, runs: Path, name: str, stem: str) -> Self:
        """Make and lock a new folder `runs/name`, or `runs/<stem>-001`, `-002` … when the name is empty.

        A folder of that name whose run ended before its first step was stored is emptied and taken over.

        Raises:
            RunError: the name is taken or not valid as a folder's name, or the disk refused.
        """
        try:
            runs = runs.expanduser()
            runs.mkdir(parents=True, exist_ok=True)
            path = _make(runs, name) if name else _make_numbered(runs, stem)
            run = cls(path, Lock(path))
            if not _is_free(path):  # asked again now that no other process can write to it
                raise _taken(path)
            _empty(path)
            for folder in (run.rollouts, run.checkpoints, run.logs):
                folder.mkdir(exist_ok=True)
            fsync(path)
            fsync(runs)
        except OSError as error:
            raise RunError(f"cannot create a run in {runs}: {describe(error, runs)}") from error
        return run

    @classmethod
    def open(cls, run: str | Path, runs: Path = Path("runs")) -> Self:
        """Lock an existing run to go on with it, and remove what an interrupted write left behind.

        Raises:
            RunError: there is no such run, or another process uses it.
        """
        path = find(run, runs)
        opened = cls(path, Lock(path))
        for folder in (path, *(child for child in path.iterdir() if child.is_dir())):
            remove_leftovers(folder)
        return opened

    @classmethod
    def at(cls, run: str | Path, runs: Path = Path("runs")) -> Self:
        """An existing run, opened for reading, also while it trains."""
        return cls(find(run, runs))

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.sqlite"

    @property
    def rollouts(self) -> Path:
        return self.path / "rollouts"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def readme(self) -> Path:
        return self.path / "README.md"

    @property
    def curve(self) -> Path:
        return self.path / "curve.png"

    @property
    def quarantine(self) -> Path:
        return self.path / "quarantine.jsonl"

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved settings, once: `coterie train @ config.toml` repeats the run.

        Paths are written as absolute ones, and the folders of the user's functions too, so that the run goes on from
        any folder.
        """
        if self.config.exists():
            raise RunError(f"{self.config} exists; a run's settings never change. Start a new run")
        settings = copy.deepcopy(dict(config))
        anchor(settings, lambda place: Path.cwd())
        write_file(self.config, dumps(settings).encode())

    def write_steps(self, steps: int) -> None:
        """Give the stored settings another number of steps; everything else in them stays."""
        write_file(self.config, dumps(self.read_config() | {"steps": steps}).encode())

    def read_config(self) -> dict[str, Any]:
        """Settings as plain data, under their present names, ready for validation."""
        try:
            return translated(self._stored())
        except (OSError, ValueError) as error:
            raise RunError(f"{self.config} cannot be read: {error}") from error

    def check_version(self) -> None:
        """Refuse a run whose settings have the names of a former version.

        Raises:
            RunError: they do; the run can be looked at and its models used, but not be continued.
        """
        former = former_keys(self._stored())
        if former:
            raise RunError(
                f"{self.path} was made by an older version of coterie, with the setting {former[0]}, "
                f"and cannot be resumed; start a new run from its model: coterie train @ {self.config} --name NEW "
                f"--model.name {self.path}"
            )

    def _stored(self) -> dict[str, Any]:
        return tomllib.loads(self.config.read_text(encoding="utf-8"))

    def write_quarantine(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record the refused data rows, one JSON object a line; no file when there are none."""
        if not rows:
            return
        try:
            text = "".join(json_dumps(dict(row)) + "\n" for row in rows)
        except ValueError as error:
            raise RunError(f"a row for {self.quarantine} is not strict JSON: {error}") from error
        write_file(self.quarantine, text.encode())

    def set_checkpoints_aside(self) -> Path | None:
        """Give the checkpoints another name, so that the run can start from step 0; None when there are none."""
        if not self.checkpoints.is_dir() or not any(self.checkpoints.iterdir()):
            return None
        taken = {path.name for path in self.path.glob("checkpoints-aside-*")}
        number = next(n for n in range(1, len(taken) + 2) if f"checkpoints-aside-{n}" not in taken)
        aside = self.path / f"checkpoints-aside-{number}"
        try:
            self.checkpoints.rename(aside)
            self.checkpoints.mkdir()
            fsync(self.path)
        except OSError as error:
            raise RunError(f"cannot set {self.checkpoints} aside: {describe(error, self.path)}") from error
        return aside

    def open_log(self) -> RunLog:
        """A fresh `logs/attempt_N.log` for this process."""
        return RunLog(self.logs)

    def close(self) -> None:
        """Release the lock; the end of the process does so too."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def find(run: str | Path, runs: Path) -> Path:
    """Folder of a run given by path or by name."""
    run, runs = Path(run).expanduser(), runs.expanduser()
    for path in (run, runs / run, runs / unicodedata.normalize("NFC", str(run))):
        if (path / "config.toml").is_file():
            return path
    name, _, step = str(run).rpartition("@")
    if name and step.isdecimal() and any((path / "config.toml").is_file() for path in (Path(name), runs / name)):
        raise RunError(
            f"{str(run)!r} names the checkpoint of step {step}; this command takes a whole run: {name}. RUN@STEP is "
            "for `coterie eval`, `chat`, `rollout` and `export`"
        )
    hint = models.nearest(str(run), models.names_in(runs))
    raise RunError(
        f"no run {str(run)!r}{hint}: neither a folder with a config.toml nor the name of one in {runs.absolute()}; "
        f"{models.there(runs, 'holds')}"
    )


def check_name(runs: Path, name: str) -> None:
    """Raise RunError for a name that `RunDirectory.create` would refuse, before anything is loaded. Writes nothing.

    Args:
        name: empty for a numbered one, which is always free.
    """
    if not name:
        return
    name = unicodedata.normalize("NFC", name)
    if not _is_name(name):
        raise RunError(
            f"name = {name!r} is not a folder name; use up to {_LONGEST_NAME} letters, digits, '.', '_' and '-' "
            f"({_MOST_BYTES} bytes), the first a letter or digit"
        )
    path = runs.expanduser() / name
    if path.exists() and not _is_free(path):
        raise _taken(path)


def _taken(path: Path) -> RunError:
    return RunError(
        f"{path} exists, and a run is never overwritten; choose another name, leave the name empty "
        f"to get a numbered one, or continue it: coterie resume {path}"
    )


def _make(runs: Path, name: str) -> Path:
    check_name(runs, name)
    path = runs / unicodedata.normalize("NFC", name)
    path.mkdir(exist_ok=True)
    return path


def _is_name(name: str) -> bool:
    """True if the name has letters and digits of any script, in allowed number."""
    fits = 0 < len(name) <= _LONGEST_NAME and len(name.encode(errors="replace")) <= _MOST_BYTES
    return fits and name[0].isalnum() and all(map(_is_part_of_name, name))


def _is_part_of_name(letter: str) -> bool:
    return letter.isalnum() or letter in "._-" or unicodedata.category(letter) in ("Mn", "Mc")


_STEPS = ("rollouts", "checkpoints")
"""Folders that hold something once a step is stored."""
_BEFORE_STEPS = {
    *_STEPS,
    *("logs", "evals", "prompts", "config.toml", "quarantine.jsonl", "README.md", "curve.png"),
    *("metrics.sqlite", "metrics.sqlite-wal", "metrics.sqlite-shm", ".lock"),
}
"""All that a run may have made before its first step is stored."""


def _is_free(path: Path) -> bool:
    """True if a folder holds only files that a run makes before its first step is stored: no step, no foreign file. Its
    lock decides which process gets it."""
    if not path.is_dir() or not all(
        child.name in _BEFORE_STEPS or child.name.startswith(LEFTOVER) for child in path.iterdir()
    ):
        return False
    for folder in (path / name for name in _STEPS):
        if folder.is_dir() and any(not child.name.startswith(LEFTOVER) for child in folder.iterdir()):
            return False
    return not _has_recorded_step(path / "metrics.sqlite")


def _has_recorded_step(metrics: Path) -> bool:
    """True if the metrics hold a step, or cannot be read."""
    if not metrics.exists():
        return False
    try:
        with MetricsDB.reader(metrics) as database:
            return bool(database.last_step())
    except RunError:
        return True


def _empty(path: Path) -> None:
    """Remove the files of a run that never stored a step; the lock stays."""
    for child in path.iterdir():
        if child.name == ".lock":
            continue
        if child.is_dir() and not child.is_symlink():
            for entry in child.iterdir():
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
            with suppress(OSError):  # a mount point stays
                child.rmdir()
        else:
            child.unlink()


def _make_numbered(runs: Path, stem: str) -> Path:
    letters = (letter if _is_part_of_name(letter) else "-" for letter in unicodedata.normalize("NFC", stem))
    stem = re.sub(r"-+", "-", "".join(letters)).strip("-._")
    stem = stem.encode()[: _MOST_BYTES - 20].decode(errors="ignore")[:80] or "run"
    stem = stem if stem[0].isalnum() else f"run-{stem}"
    taken = re.compile(re.escape(stem) + r"-(\d+)")
    matches = (taken.fullmatch(path.name) for path in runs.iterdir())
    number = 1 + max((int(match[1]) for match in matches if match), default=0)
    while True:
        path = runs / f"{stem}-{number:03d}"
        try:
            path.mkdir()
        except FileExistsError:
            number += 1  # another process was faster
        else:
            return path
