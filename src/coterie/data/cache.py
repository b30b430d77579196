"""Cache folders that appear whole by one rename, with a record by which damage is noticed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from coterie.errors import AssetError

RECORD = "asset.json"
_STAMP = ".verified.json"
_LOCK_DEADLINE_S = 3600.0


def home() -> Path:
    """The cache folder: `COTERIE_HOME`, else `coterie` in the platform's cache directory. Not created here."""
    configured = os.environ.get("COTERIE_HOME")
    if configured:
        return Path(configured).expanduser().absolute()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        return (Path(base) if base else Path.home() / "AppData" / "Local") / "coterie" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "coterie"
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore relative paths.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "coterie"


def intact(folder: Path, expected: Mapping[str, Any], *, verify: bool = False) -> bool:
    """True if `folder` holds exactly what was published there.

    Sizes and modification times are compared with a stamp; every byte is hashed when they differ or `verify` asks.

    Args:
        expected: keys and values that the record must have, so that an older version does not count.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        files: dict[str, dict[str, Any]] = record["files"]
        if any(record.get(key) != value for key, value in expected.items()):
            return False
        marks = {name: _mark(folder / name) for name in files}
        if any(marks[name][0] != facts["size"] for name, facts in files.items()):
            return False
        if not verify and marks == _stamp(folder):
            return True
        whole = all(sha256(folder / name) == facts["sha256"] for name, facts in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    if whole:
        _write_stamp(folder, marks)
    return whole


def publish(draft: Path, target: Path, record: Mapping[str, Any]) -> None:
    """Publish `draft` as `target`: record every file's size and sha256, flush all of it, rename once."""
    try:
        names = sorted(path.relative_to(draft).as_posix() for path in draft.rglob("*") if path.is_file())
        files = {name: {"size": (draft / name).stat().st_size, "sha256": sha256(draft / name)} for name in names}
        (draft / RECORD).write_text(json.dumps({**record, "files": files}, indent=2) + "\n", encoding="utf-8")
        _write_stamp(draft, {name: _mark(draft / name) for name in names})
        for path in draft.rglob("*"):
            if path.is_file():
                path.chmod(0o644)
                _flush(path)
        draft.chmod(0o755)
        _flush(draft)
        if target.exists():
            target.rename(Path(tempfile.mkdtemp(prefix=f".old-{target.name}-", dir=target.parent)) / "damaged")
        draft.rename(target)
        _flush(target.parent)
    except OSError as error:
        raise AssetError(f"{target} cannot be written: {error}; free the space or set COTERIE_HOME") from error
    _sweep(target.parent, f".old-{target.name}-")


@contextmanager
def draft_for(target: Path, *, bytes_needed: int, note: Callable[[str], None]) -> Generator[Path]:
    """Draft folder beside `target`, hidden and locked, removed on exit.

    Args:
        bytes_needed: free space to insist on before work starts.
        note: told once when another process holds the lock.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if free < bytes_needed:
            raise AssetError(
                f"{target.name} needs {bytes_needed / 1e6:.0f} MB in {target.parent}, which has {free / 1e6:.0f} MB "
                "free; make room or set COTERIE_HOME to another disk"
            )
        with _locked(target.parent / f".{target.name}.lock", note) as alone:
            prefix = f".tmp-{target.name}-"
            if alone:  # whoever made these was killed
                _sweep(target.parent, prefix)
                _sweep(target.parent, f".old-{target.name}-")
            draft = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
            try:
                yield draft
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise AssetError(
            f"{target.parent} cannot be written: {error}; set COTERIE_HOME to a folder that can be"
        ) from error


@contextmanager
def _locked(path: Path, note: Callable[[str], None]) -> Generator[bool]:
    try:
        import fcntl
    except ImportError:  # Windows: the rename still decides, at worst two processes download
        yield False
        return
    with path.open("w") as handle:
        deadline = time.monotonic() + _LOCK_DEADLINE_S
        told = False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise AssetError(
                        f"another process has held {path} for {_LOCK_DEADLINE_S:.0f} s; end it and try again"
                    ) from error
                if not told:
                    note("another process is fetching this; waiting for it")
                    told = True
                time.sleep(0.2)
        yield True


def sha256(path: Path) -> str:
    """Digest of a file in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _mark(path: Path) -> list[int]:
    facts = path.stat()
    return [facts.st_size, facts.st_mtime_ns]


def _stamp(folder: Path) -> Any:
    try:
        return json.loads((folder / _STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write_stamp(folder: Path, marks: Mapping[str, list[int]]) -> None:
    # Only spares hashing next time; a read-only cache works without.
    with suppress(OSError):
        draft = folder / f"{_STAMP}.{os.getpid()}"
        draft.write_text(json.dumps(marks), encoding="utf-8")
        draft.replace(folder / _STAMP)


def _flush(path: Path) -> None:
    if path.is_dir() and sys.platform == "win32":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(folder: Path, prefix: str) -> None:
    for leftover in folder.glob(f"{prefix}*"):
        shutil.rmtree(leftover, ignore_errors=True)
