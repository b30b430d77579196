"""Power cuts: what a run asked of the file system, and every disk that a cut could have left of it.

A child records its calls on the run's folder. Afterwards each prefix of that record is replayed with the writes and
directory entries that were not yet flushed kept, lost, torn, zeroed or reordered (SQLite's own method, in its
test6.c), and the disk that results must hold all that was acknowledged. The bytes of SQLite's own files go past
Python: its WAL with synchronous = FULL is trusted, not replayed.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coterie.errors import CoterieError
from coterie.runs import checkpoint, prompts, rollouts
from coterie.runs.directory import RunDirectory
from faults.cases import Case
from faults.harness import Harness
from faults.world import NAME

Op = tuple[Any, ...]
"""(link, folder, name, inode), (rename, folder, old, new, inode), (unlink, folder, name); folder is an inode."""


class Recording:
    """Set in a child: every call that changes `folder`, in order, as JSON lines; contents by their hash in `blobs`."""

    def __init__(self, folder: Path, file: Path, blobs: Path) -> None:
        self.folder, self.file, self.blobs = folder, file, blobs
        self.stats: dict[int, tuple[int, int]] = {}
        self.names: dict[int, dict[str, int]] = {}

    def arm(self) -> None:
        self.blobs.mkdir()
        real_fsync, real_rename, real_unlink, real_rmdir = os.fsync, os.rename, os.unlink, os.rmdir

        def fsync(handle: int) -> None:
            real_fsync(handle)
            self.scan()
            self.note("fsync", os.fstat(handle).st_ino)

        def rename(source: Any, target: Any, **rest: Any) -> None:
            self.scan()
            inode = os.lstat(source).st_ino
            real_rename(source, target, **rest)
            old, new = Path(source), Path(target)
            assert old.parent == new.parent, "renames stay in their folder"
            self.note("rename", os.stat(new.parent).st_ino, old.name, new.name, inode)
            names = self.names.setdefault(os.stat(new.parent).st_ino, {})
            names[new.name] = names.pop(old.name, inode)

        def removing(real: Callable[..., None]) -> Callable[..., None]:
            def remove(path: Any, *, dir_fd: int | None = None) -> None:
                self.scan()
                parent = dir_fd if dir_fd is not None else Path(path).parent
                inode, name = os.stat(parent).st_ino, Path(path).name
                real(path, dir_fd=dir_fd)
                if self.names.get(inode, {}).pop(name, None) is not None:
                    self.note("unlink", inode, name)

            return remove

        os.fsync, os.rename = fsync, rename  # ty: ignore[invalid-assignment]
        os.unlink, os.rmdir = removing(real_unlink), removing(real_rmdir)  # ty: ignore[invalid-assignment]
        stores = ((rollouts, "write_step"), (prompts, "write_step"))
        for owner, name in ((checkpoint, "save"), *stores, (RunDirectory, "write_config")):
            self._acknowledge(owner, name)

    def _acknowledge(self, owner: Any, name: str) -> None:
        inner = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = inner(*args, **kwargs)
            if name == "write_step" and result is None:
                return result  # there was nothing to store
            self.scan()
            number = args[1] if len(args) > 1 and isinstance(args[1], int) else 0
            self.note("acknowledged", name, number, str(args[0]) if name == "write_step" else "")
            return result

        setattr(owner, name, call)

    def scan(self) -> None:
        """Enter what was created or written since the last look."""
        for folder, folders, files in os.walk(self.folder):
            here = os.stat(folder).st_ino
            names = self.names.setdefault(here, {})
            for name in (*folders, *files):
                path = os.path.join(folder, name)
                facts = os.lstat(path)
                if names.get(name) != facts.st_ino:
                    names[name] = facts.st_ino
                    self.note("link", here, name, facts.st_ino)
                if name in files and not name.startswith("metrics.sqlite"):
                    self._written(path, facts)

    def _written(self, path: str, facts: os.stat_result) -> None:
        if self.stats.get(facts.st_ino) != (facts.st_size, facts.st_mtime_ns):
            self.stats[facts.st_ino] = (facts.st_size, facts.st_mtime_ns)
            data = Path(path).read_bytes()
            name = hashlib.sha256(data).hexdigest()
            (self.blobs / name).write_bytes(data)
            self.note("write", facts.st_ino, name)

    def note(self, *event: Any) -> None:
        handle = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, json.dumps(event).encode() + b"\n")
        os.close(handle)


@dataclass(slots=True)
class Disk:
    """What is surely on the disk, and what may or may not be."""

    root: int
    entries: dict[int, dict[str, int]] = field(default_factory=dict)
    pending: list[Op] = field(default_factory=list)
    durable: dict[int, str] = field(default_factory=dict)
    latest: dict[int, str] = field(default_factory=dict)
    acknowledged: dict[str, list[int]] = field(default_factory=dict)
    unsafe: list[str] = field(default_factory=list)
    """Renames onto a published name before what it names was flushed."""
    renamed: dict[int, str] = field(default_factory=dict)
    """Folder → a published rename in it that is not flushed yet."""

    def apply(self, event: list[Any]) -> None:
        kind, *rest = event
        if kind == "write":
            self.latest[rest[0]] = rest[1]
        elif kind == "fsync":
            if rest[0] in self.latest:
                self.durable[rest[0]] = self.latest[rest[0]]
            kept = []
            for op in self.pending:
                if op[1] == rest[0]:
                    _enter(self.entries, op)
                else:
                    kept.append(op)
            self.pending = kept
            self.renamed.pop(rest[0], None)
        elif kind == "acknowledged":
            self.acknowledged.setdefault(rest[0] + rest[2], []).append(rest[1])
            self.unsafe += [f"{name} was acknowledged before its folder was flushed" for name in self.renamed.values()]
        else:
            self.pending.append((kind, *rest))
            if kind == "rename" and not rest[2].startswith(".tmp-"):
                self._check(rest[2], rest[3])
                self.renamed[rest[0]] = rest[2]

    def _check(self, name: str, inode: int) -> None:
        below = [inode]
        while below:
            node = below.pop()
            if self.latest.get(node) != self.durable.get(node):
                self.unsafe.append(f"{name} was renamed before a file of it was flushed")
            below += self.entries.get(node, {}).values()
            if any(op[1] == node for op in self.pending):
                self.unsafe.append(f"{name} was renamed before its folder's entries were flushed")


def _enter(entries: dict[int, dict[str, int]], op: Op) -> None:
    names = entries.setdefault(op[1], {})
    if op[0] == "link":
        names[op[2]] = op[3]
    elif op[0] == "rename":
        if names.get(op[2]) == op[4]:
            del names[op[2]]
        names[op[3]] = op[4]
    else:
        names.pop(op[2], None)


def cuts(harness: Harness, stride: int, seed: int, first: int = 0) -> Iterator[Case]:
    """Record one run; try the disks of every `stride`-th prefix, from the number `first` on."""
    runs = harness.folder("power")
    record, blobs = runs / "record", runs / "blobs"
    done = harness.wait(harness.start(runs, lambda: Recording(runs / NAME, record, blobs).arm()))
    if done.code != 0:
        yield Case(section="power", name="the recorded run", problem=f"exit code {done.code}")
        return
    events = [json.loads(line) for line in record.read_text().splitlines()]
    disk, draw, tried, states = Disk((runs / NAME).stat().st_ino), random.Random(seed), 0, set()
    faults: list[str] = []
    for number, event in enumerate(events):
        disk.apply(event)
        if number % stride != first:
            continue
        for ops in _subsets(disk.pending, draw):
            for how in ("kept", "lost", "torn", "zeros"):
                state = _state(disk, ops, how)
                key = hash(repr((sorted(state.items()), disk.acknowledged)))
                if key in states:
                    continue
                states.add(key)
                tried += 1
                problem = _judge(runs, state, disk.acknowledged)
                if problem is not None:
                    faults.append(f"cut after event {number} ({event[0]}), unflushed data {how}: {problem}")
    facts = {"events": len(events), "states": tried}
    yield Case(section="power", name="every prefix", problem=faults[0] if faults else None, facts=facts)
    renames = sum(event[0] == "rename" and not event[3].startswith(".tmp-") for event in events)
    unsafe = disk.unsafe[0] if disk.unsafe else None
    yield Case(section="power", name="flush before and after each rename", problem=unsafe, facts={"renames": renames})
    shutil.rmtree(runs)


def _subsets(pending: list[Op], draw: random.Random) -> list[list[Op]]:
    """All of the unflushed entries, none, each one lost or kept alone, the first half, and some at random."""
    subsets = [pending, [], pending[: len(pending) // 2]]
    for index in range(min(6, len(pending))):
        subsets += [pending[:index] + pending[index + 1 :], [pending[index]]]
    return subsets + [[op for op in pending if draw.random() < 0.5] for _ in range(3 if pending else 0)]


def _state(disk: Disk, ops: list[Op], how: str) -> dict[str, tuple[str, str]]:
    """Path → (content's hash, how much of it) of every file on the disk."""
    entries = {folder: dict(names) for folder, names in disk.entries.items()}
    for op in ops:
        _enter(entries, op)
    files: dict[str, tuple[str, str]] = {}

    def walk(folder: int, prefix: str) -> None:
        for name, inode in entries.get(folder, {}).items():
            if inode in disk.latest:
                flushed = disk.durable.get(inode) == disk.latest[inode]
                old = disk.durable.get(inode, "")
                files[prefix + name] = (
                    (disk.latest[inode], "kept")
                    if flushed or how == "kept"
                    else ((old, "kept" if old else "lost") if how == "lost" else (disk.latest[inode], how))
                )
            elif inode != folder:
                files[prefix + name + "/"] = ("", "folder")
                walk(inode, f"{prefix}{name}/")

    walk(disk.root, "")
    return files


def _judge(runs: Path, state: dict[str, tuple[str, str]], acknowledged: dict[str, list[int]]) -> str | None:
    """Build the disk and read it as a resume would."""
    root = runs / "disk"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for name, (blob, how) in sorted(state.items()):
        path = root / name
        if how == "folder":
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if how == "kept":
            os.link(runs / "blobs" / blob, path)
        else:
            data = (runs / "blobs" / blob).read_bytes() if blob else b""
            path.write_bytes({"lost": b"", "torn": data[: len(data) // 2], "zeros": bytes(len(data))}[how])
    if "write_config" in acknowledged:
        try:
            RunDirectory.at(root).read_config()
        except CoterieError as error:
            return f"the settings are gone: {error}"
    saved = max(acknowledged.get("save", []), default=0)
    try:
        saved_checkpoint = checkpoint.newest(root / "checkpoints")
    except CoterieError as error:
        return f"no checkpoint verifies, step {saved} was acknowledged: {error}"
    step = saved_checkpoint.step if saved_checkpoint else 0
    if step < saved:
        return f"the newest checkpoint is of step {step}, step {saved} was acknowledged"
    readers = {"rollouts": rollouts.read_step, "prompts": prompts.read_step}
    needed = [(Path(key).name, s) for key, steps in acknowledged.items() for s in steps if s <= step]
    try:
        for name, number in needed:
            if name in readers:
                readers[name](root / name, number)
    except CoterieError as error:
        return f"acknowledged rollouts are gone: {error}"
    return None
