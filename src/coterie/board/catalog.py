"""The catalogue of a folder's runs: their names, their changes, and answers that are kept until a run changes."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

from coterie.errors import RunError
from coterie.runs.lock import lock_holder
from coterie.runs.models import nearest

Answer = TypeVar("Answer")
Signature = tuple[Any, ...]

KEPT = 400
"""Answers that are kept; the least recently used go first."""
FRESH = 0.5
"""Seconds for which a signature is not read again, however many clients ask."""


class Catalogue:
    """The runs of a folder, read anew at each look; a run has a name and never a path that a client chose.

    Args:
        root: folder of runs, or the folder of one run.

    Raises:
        RunError: there is no such folder.
    """

    def __init__(self, root: Path) -> None:
        root = root.expanduser()
        if not root.is_dir():
            raise RunError(f"there is no folder {root}; name the folder of your runs, e.g. coterie board runs")
        self.single = root.resolve().name if (root / "config.toml").is_file() else None
        """Name of the run where the folder is one."""
        self.root = root.resolve().parent if self.single else root
        self._lock = threading.Lock()
        self._answers: OrderedDict[Hashable, tuple[Signature, Any]] = OrderedDict()
        self._making: dict[Hashable, threading.Lock] = {}
        self._signatures: dict[str, tuple[float, Signature]] = {}

    def runs(self) -> dict[str, Path]:
        """Folder of each run by its name, sorted; a stage of a pipeline is named PIPELINE/STAGE."""
        if not self.root.is_dir():
            return {}
        folders = [path.parent for path in self.root.glob("*/config.toml") if path.is_file()]
        stages = (path.parent for path in self.root.glob("[!.]*/*/config.toml") if path.is_file())
        folders += [path for path in stages if path.parent not in folders]
        names = {path.relative_to(self.root).as_posix(): path for path in sorted(folders)}
        return {name: path for name, path in names.items() if self.single in (None, name)}

    def path(self, name: str) -> Path:
        """Folder of a run.

        Raises:
            RunError: the folder has no run of that name.
        """
        runs = self.runs()
        if name not in runs:
            raise RunError(f"no run {name!r} in {self.root}{nearest(name, list(runs))}")
        return runs[name]

    def signature(self, name: str, folder: Path | None = None) -> Signature:
        """What changes whenever a run's records do: sizes and times of its files, and who writes to it.

        Args:
            folder: of the run, where it is known already.
        """
        read, signature = self._signatures.get(name, (0.0, ()))
        if time.monotonic() - read < FRESH:
            return signature
        folder = folder or self.path(name)
        files = ("config.toml", "metrics.sqlite", "metrics.sqlite-wal", "rollouts", "checkpoints", "evals")
        signature = (*(_stamp(folder / file) for file in files), lock_holder(folder))
        self._signatures[name] = (time.monotonic(), signature)
        return signature

    def signatures(self) -> dict[str, Signature]:
        """The signature of every run."""
        return {name: self.signature(name, folder) for name, folder in self.runs().items()}

    def kept(self, name: str, what: Hashable, make: Callable[[Path], Answer]) -> Answer:
        """The answer to a question about a run: made anew only after the run changed, and once for all who ask at the
        same time."""
        key = (name, what)
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        try:
            with making:
                signature = self.signature(name)
                with self._lock:
                    kept = self._answers.get(key)
                    if kept is not None and kept[0] == signature:
                        self._answers.move_to_end(key)
                        return kept[1]
                answer = make(self.path(name))
                with self._lock:
                    self._answers[key] = (signature, answer)
                    self._answers.move_to_end(key)
                    while len(self._answers) > KEPT:
                        self._answers.popitem(last=False)
                return answer
        finally:
            with self._lock:
                self._making.pop(key, None)


def _stamp(file: Path) -> tuple[int, int] | None:
    """Time and size of a file; None for one that is absent, or the empty log that SQLite makes for its readers."""
    try:
        facts = file.stat()
    except OSError:
        return None
    if file.name.endswith("-wal") and not facts.st_size:
        return None
    return facts.st_mtime_ns, facts.st_size
