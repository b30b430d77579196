"""Checkpoints: folders with a manifest of hashes, without a pointer to the latest one that could be wrong."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from coterie.errors import CheckpointError, CoterieError
from coterie.runs.durable import (
    LEFTOVER,
    describe,
    fsync,
    json_dumps,
    json_loads,
    missing_room,
    publish_directory,
    verify_directory,
)

STATE = "state.json"
_NAME = re.compile(r"step_(\d{6,})")


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedCheckpoint:
    """The newest checkpoint that verifies."""

    path: Path
    step: int
    state: dict[str, Any]
    """The state given to `save`, read back from JSON."""
    run_id: str
    config_hash: str
    skipped: list[tuple[Path, str]]
    """Newer checkpoints that do not verify, newest first, each with the reason."""


def save(
    root: Path,
    step: int,
    write: Callable[[Path], None],
    state: Mapping[str, Any],
    *,
    keep: int,
    run_id: str,
    config_hash: str,
    spare: Collection[int | None] = (),
    size: int = 0,
) -> Path:
    """Write, publish and re-read one checkpoint; only then delete all but the `keep` newest up to it.

    Saving a step twice is harmless: a checkpoint of the same step, run and settings that verifies is kept.

    Args:
        root: the run's `checkpoints` folder.
        write: puts the learner's files into the empty folder it is given.
        state: strict JSON, kept as `state.json` beside them.
        spare: steps of checkpoints that stay in any case.
        size: bytes that it will take; nothing is written, or deleted, when fewer are free.

    Raises:
        CheckpointError: it could not be written, or does not read back. Older checkpoints are untouched then.
    """
    if keep < 1:
        raise CheckpointError(f"keep = {keep}; at least one checkpoint has to be kept")
    final = root / f"step_{step:06d}"
    facts = {"kind": "checkpoint", "step": step, "run_id": run_id, "config_hash": config_hash}
    if final.exists() and _is_same(final, facts):
        prune(root, step, keep, spare)
        return final
    tmp = root / f"{LEFTOVER}{final.name}-{os.getpid()}"
    try:
        shutil.rmtree(tmp, ignore_errors=True)
        tmp.mkdir(parents=True)
        _require_room(root, size, final)
        write(tmp)
        (tmp / STATE).write_text(_encoded(state), encoding="ascii")
        if final.exists():
            _remove(final)
        publish_directory(tmp, final, facts)
    except BaseException as error:
        written = _size(tmp)
        shutil.rmtree(tmp, ignore_errors=True)
        _explain(error, final, written)
        raise
    try:
        verify_directory(final)
    except CheckpointError as error:
        raise CheckpointError(
            f"the checkpoint just written does not read back: {error}. Older checkpoints are untouched; "
            "check the disk before going on"
        ) from error
    prune(root, step, keep, spare)
    return final


def newest(root: Path, needed: Mapping[str, type] = MappingProxyType({})) -> VerifiedCheckpoint | None:
    """The newest checkpoint that verifies, walking back over damaged ones; None when there is none at all.

    Only reads, so it is safe beside a running training.

    Args:
        needed: keys that the state must have, with the types of their values.

    Raises:
        CheckpointError: there are checkpoints and none verifies; each is named with its reason.
    """
    skipped: list[tuple[Path, str]] = []
    for step in reversed(steps(root)):
        path = _path(root, step)
        try:
            facts = verify_directory(path)
            state = json_loads((path / STATE).read_bytes())
            lacking = _lacking(state, needed)
            if lacking is not None:
                raise CheckpointError(f"{path / STATE} {lacking}: it was not written by coterie, or by another version")
            if facts["step"] != step:
                raise CheckpointError(f"{path} holds step {facts['step']}: it was renamed or swapped")
            return VerifiedCheckpoint(
                path=path,
                step=step,
                state=state,
                run_id=facts["run_id"],
                config_hash=facts["config_hash"],
                skipped=skipped,
            )
        except CheckpointError as error:
            skipped.append((path, str(error)))
        except (KeyError, ValueError, OSError) as error:
            skipped.append((path, f"{path / STATE} is not the state of a checkpoint: {error!r}"))
    if skipped:
        reasons = "\n".join(f"  {path.name}: {reason}" for path, reason in skipped)
        raise CheckpointError(
            f"none of the {len(skipped)} checkpoints in {root} verifies:\n{reasons}\n"
            "Restore one from a copy, or start over with `coterie resume RUN --fresh`, which sets these aside; "
            "coterie never restarts from step 0 by itself"
        )
    return None


def _lacking(state: Any, needed: Mapping[str, type]) -> str | None:
    if not isinstance(state, dict):
        return f"holds a {type(state).__name__}, expected a table"
    wrong = [key for key, kind in needed.items() if type(state.get(key)) is not kind]
    return f"has no {wrong[0]!r} of type {needed[wrong[0]].__name__}" if wrong else None


def steps(root: Path) -> list[int]:
    """Steps that have a checkpoint folder, ascending, unverified."""
    if not root.is_dir():
        return []
    names = (_NAME.fullmatch(path.name) for path in root.iterdir() if path.is_dir())
    return sorted(int(match[1]) for match in names if match)


def _path(root: Path, step: int) -> Path:
    return root / f"step_{step:06d}"


def _is_same(final: Path, facts: dict[str, Any]) -> bool:
    """True if `final` verifies and is this very checkpoint; raises CheckpointError for one of another run."""
    try:
        manifest = verify_directory(final)
    except CheckpointError:
        return False
    different = [
        f"{key} = {manifest.get(key)!r}, now {facts[key]!r}" for key in facts if manifest.get(key) != facts[key]
    ]
    if different:
        raise CheckpointError(
            f"{final} exists and belongs to something else ({'; '.join(different)}); move it away first"
        )
    return True


def _require_room(root: Path, size: int, final: Path) -> None:
    shortage = missing_room(root, size)
    if shortage is not None:
        raise CheckpointError(
            f"there is no room for the checkpoint {final}: {shortage}. Older checkpoints are untouched; free some "
            "space and go on with `coterie resume`"
        )


def _encoded(state: Mapping[str, Any]) -> str:
    try:
        return json_dumps(dict(state), indent=1)
    except ValueError as error:
        raise CheckpointError(f"the state of a checkpoint must be strict JSON: {error}") from error


def _explain(error: BaseException, final: Path, written: int) -> None:
    """Raise a CheckpointError for an error of the disk; any other passes through."""
    # safetensors wraps a full disk in its own exception, which is not an OSError.
    if isinstance(error, CoterieError) or not (isinstance(error, OSError) or type(error).__name__ == "SafetensorError"):
        return
    reason = describe(error, final.parent) if isinstance(error, OSError) else str(error)
    raise CheckpointError(
        f"cannot write the checkpoint {final}: {reason}. It got {written:,} bytes far; older checkpoints are untouched"
    ) from error


def _size(folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    except OSError:
        return 0


def remove_after(root: Path, step: int) -> list[int]:
    """Delete the checkpoints of later steps; returns those steps."""
    later = [number for number in steps(root) if number > step]
    for number in later:
        _remove(_path(root, number))
    return later


def prune(root: Path, step: int, keep: int, spare: Collection[int | None] = ()) -> None:
    """Delete all but the `keep` newest checkpoints up to `step`, which was verified: a kill may have come before it."""
    # Later steps are left over from before a walk back; they are replaced when training reaches them again.
    for old in [s for s in steps(root) if s <= step][:-keep]:
        if old not in spare:
            _remove(_path(root, old))


def _remove(path: Path) -> None:
    """Delete a checkpoint, renamed first: a kill half-way must not leave something that looks like one."""
    grave = path.with_name(f"{LEFTOVER}removed-{path.name}-{os.getpid()}")
    try:
        os.rename(path, grave)
        fsync(path.parent)
    except OSError as error:
        raise CheckpointError(f"cannot remove the old checkpoint {path}: {describe(error, path.parent)}") from error
    shutil.rmtree(grave, ignore_errors=True)
