"""Durable writes that survive a kill or a power cut, and reads that detect damage.

A file or folder is complete under a hidden temporary name, and on the disk, before one rename gives it its
own. safetensors notices no flipped bit, so published folders carry a manifest with the sha256 of every file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from coterie.errors import CheckpointError, RunError

FORMAT = 1
MANIFEST = "MANIFEST.json"
LEFTOVER = ".tmp-"
_MAX_MANIFEST = 64 * 2**20


def json_dumps(value: Any, *, indent: int | None = None) -> str:
    """ASCII JSON without NaN or infinity, in the order of the keys given."""
    _require_text_keys(value)
    try:
        return json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=True)
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def utf8(text: str | None) -> str | None:
    """The text as a column can hold it: a lone surrogate becomes a visible escape."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()


def json_loads(text: str | bytes) -> Any:
    """Inverse of `json_dumps`."""
    try:
        return json.loads(text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_no_duplicates)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _require_text_keys(value: Any) -> None:
    # json.dumps turns the key 3 into "3" without a word, which would not come back equal.
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r} is a {type(key).__name__}; JSON keys are text")
            _require_text_keys(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _require_text_keys(item)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is too large for a float")
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("an object holds the same key twice")
    return out


def write_file(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step: a reader sees the old bytes or the new ones, never a mixture.

    Raises:
        RunError: the disk refused (full, read-only, vanished); the old file is untouched.
    """
    with replacing(path) as tmp:
        tmp.write_bytes(data)


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Yield a temporary path to write to; afterwards it is flushed to the disk and takes the place of `path`.

    Raises:
        RunError: the disk refused; the temporary file is gone and `path` is as it was.
    """
    tmp = path.with_name(f"{LEFTOVER}{path.name}-{os.getpid()}")
    try:
        try:
            yield tmp
            fsync(tmp)
            os.rename(tmp, path)
            fsync(path.parent)
        except BaseException:
            tmp.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise RunError(f"cannot write {path}: {describe(error, path.parent)}") from error


def describe(error: OSError, folder: Path) -> str:
    """The disk's error as text, with the free space and a remedy when it is full."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        try:
            free = f"{shutil.disk_usage(folder).free:,} bytes are free"
        except OSError:
            free = "the free space is unknown"
        return f"{reason} ({free}); free some space or choose another folder for runs"
    return f"{reason}; check that the folder exists and may be written"


def missing_room(folder: Path, need: int) -> str | None:
    """Message if fewer than `need` bytes are free for `folder`; None if there is room, or the free space is unknown."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return None
    return None if free >= need else f"it needs about {need:,} bytes and {free:,} are free in {folder}"


def fsync(path: Path) -> None:
    """Flush one file or folder to the disk; an error means that it is not durable."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish_directory(tmp: Path, final: Path, facts: Mapping[str, Any]) -> None:
    """Turn the finished folder `tmp` into `final` (same file system): all of it, or nothing.

    Flushes every file, adds `MANIFEST.json` (format, facts, size and sha256 of each file), renames once.

    Args:
        facts: JSON that `verify_directory` gives back.

    Raises:
        OSError: the disk refused, or `final` exists and is not empty; nothing was published.
        CheckpointError: the folder holds a link, a device or a manifest.
    """
    names = _files(tmp)
    if MANIFEST in names:
        raise CheckpointError(f"{tmp / MANIFEST} exists already; the manifest is written by publish_directory only")
    for name in names:
        fsync(tmp / name)
    entries = dict(zip(names, _measure(tmp, names), strict=True))
    body = {"format": FORMAT, "facts": dict(facts), "files": entries}
    (tmp / MANIFEST).write_bytes(_sealed(body))
    fsync(tmp / MANIFEST)
    _rename_directory(tmp, final)


def publish_plain(tmp: Path, final: Path) -> None:
    """`publish_directory` without a manifest, for a folder that leaves coterie.

    Raises:
        OSError: the disk refused, or `final` exists and is not empty; nothing was published.
        CheckpointError: the folder holds a link or a device.
    """
    for name in _files(tmp):
        fsync(tmp / name)
    _rename_directory(tmp, final)


def _rename_directory(tmp: Path, final: Path) -> None:
    """Flush the folders themselves, then rename."""
    for folder in (*(path for path in tmp.rglob("*") if path.is_dir()), tmp):
        fsync(folder)
    os.rename(tmp, final)
    fsync(final.parent)


def verify_directory(path: Path) -> dict[str, Any]:
    """Re-read every byte of a published folder against its manifest, and return the manifest's facts.

    What comes back is what the kernel gives any reader; the page cache is not bypassed.

    Raises:
        CheckpointError: names the file and what differs.
    """
    manifest = _read_manifest(path)
    expected: dict[str, dict[str, Any]] = manifest["files"]
    try:
        names = [name for name in _files(path) if name != MANIFEST]
        for name in sorted(set(expected) - set(names)):
            raise CheckpointError(f"{path / name} is missing, though the manifest lists it")
        for name in sorted(set(names) - set(expected)):
            raise CheckpointError(f"{path / name} is not in the manifest")
        for name in names:
            size, expected_size = (path / name).stat().st_size, expected[name]["size"]
            if size != expected_size:
                raise CheckpointError(f"{path / name} has {size:,} bytes, the manifest says {expected_size:,}")
        for name, entry in zip(names, _measure(path, names), strict=True):
            if entry["sha256"] != expected[name]["sha256"]:
                raise CheckpointError(
                    f"{path / name} is damaged: its sha256 is {entry['sha256'][:12]}…, "
                    f"the manifest says {expected[name]['sha256'][:12]}…"
                )
    except OSError as error:
        raise CheckpointError(f"{error.filename or path} cannot be read: {error.strerror or error}") from error
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path / MANIFEST} lists a file without its size and sha256: {error!r}") from error
    return manifest["facts"]


def remove_leftovers(folder: Path) -> list[Path]:
    """Delete files of interrupted writes in `folder`. Only the owner of the run's lock may call this."""
    leftovers = sorted(folder.glob(LEFTOVER + "*")) if folder.is_dir() else []
    for path in leftovers:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return leftovers


def _sealed(body: dict[str, Any]) -> bytes:
    """Canonical text of the manifest, whose last entry is the hash of the rest."""
    seal = hashlib.sha256(json_dumps(body).encode()).hexdigest()
    return json_dumps(body | {"sha256": seal}, indent=1).encode() + b"\n"


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    try:
        if file.stat().st_size > _MAX_MANIFEST:
            raise CheckpointError(f"{file} has {file.stat().st_size:,} bytes; a manifest is never that long")
        data = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    try:
        manifest = json_loads(data)
        body = {key: manifest[key] for key in ("format", "facts", "files")}
        version = body["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
    if isinstance(version, int) and version > FORMAT:
        raise CheckpointError(f"{file} has format {version}, this coterie reads up to {FORMAT}; use a newer one")
    if data != _sealed(body):
        raise CheckpointError(f"{file} is damaged: it does not match its own sha256")
    return body


def _files(root: Path) -> list[str]:
    """Sorted relative names of all regular files below `root`."""
    names = []
    for folder, folders, files in os.walk(root, onerror=_raise):
        for name in (*folders, *files):
            file = Path(folder, name)
            mode = file.lstat().st_mode
            if stat.S_ISREG(mode):
                names.append(file.relative_to(root).as_posix())
            elif not stat.S_ISDIR(mode):
                raise CheckpointError(f"{file} is a link or a device; a checkpoint holds plain files only")
    return sorted(names)


def _raise(error: OSError) -> NoReturn:
    raise error


def _measure(root: Path, names: list[str]) -> list[dict[str, Any]]:
    """Size and sha256 of each file; hashing frees the interpreter lock, so a few threads help."""

    def measure(name: str) -> dict[str, Any]:
        with open(root / name, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return {"size": os.fstat(file.fileno()).st_size, "sha256": digest}

    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(measure, names))
