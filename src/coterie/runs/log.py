"""The text log of one process that works on a run."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from coterie.errors import RunError
from coterie.runs.durable import describe
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
