"""A disk that refuses: every call on the run's folder in turn, a file system that is full, folders that vanish."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from coterie.cli.main import main
from faults.cases import Case, of_trial
from faults.child import REFUSED, at_step, log_of
from faults.harness import Harness
from faults.world import NAME, settings_file

_WATCHED = {"os.rename": 0, "os.mkdir": 0, "os.remove": 0, "os.rmdir": 0, "sqlite3.connect": 0}
"""Audit events that stand for a system call on their first argument (docs.python.org/3/library/audit_events.html)."""
_SHORTAGES = ("No space left", "Input/output error", "disk I/O error", "disk is full", "unable to open database")
_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000


def refuse_at(folder: Path, nth: int, number: int, done: Path, *, only_fsync: bool = False) -> Callable[[], None]:
    """A trap for a child: its nth open for writing, rename, mkdir, removal, database or fsync below `folder` fails.

    Args:
        number: errno.
        done: gets a byte a call, so that the end of the sweep is seen.
    """
    inside, main = str(folder), threading.get_ident()
    count = 0

    def step(what: str, path: str) -> None:
        nonlocal count
        if threading.get_ident() != main or not (path.startswith(inside) or not path.startswith("/")):
            return
        count += 1
        handle = os.open(done, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, b".")
        os.close(handle)
        if count == nth:
            raise OSError(number, os.strerror(number), path)

    def listen(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            writes = bool(flags) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and isinstance(path, str | os.PathLike | bytes) and os.fsdecode(path) != str(done):
                step(event, os.fsdecode(path))
        elif event in _WATCHED:
            step(event, os.fsdecode(arguments[0]))

    def arm() -> None:
        real = os.fsync

        def fsync(handle: int) -> None:
            step("fsync", os.readlink(f"/proc/self/fd/{handle}"))
            real(handle)

        os.fsync = fsync  # ty: ignore[invalid-assignment]
        if not only_fsync:
            sys.addaudithook(listen)

    return arm


def every_call(
    harness: Harness, number: int, stride: int, *, first: int = 1, only_fsync: bool = False
) -> Iterator[Case]:
    """k = first, first + stride, … until a run gets through with fewer than k calls. Each refusal must end in an error
    of coterie's own that names the disk, or be harmless; the run must then go on as if nothing had been."""
    what = f"{errno.errorcode[number]} at {'fsync' if only_fsync else 'call'}"
    nth = first
    while True:
        name = f"{what} {nth}"
        done = harness.root / f"calls {name}"
        runs = harness.root / name.replace(" ", "-")
        trap = refuse_at(runs / NAME, nth, number, done, only_fsync=only_fsync)
        trial = harness.trial(name, [trap])
        calls = done.stat().st_size
        if calls < nth:
            if trial.divergence:
                yield of_trial("calls", trial)
            return
        wrong = [refusal for refusal in trial.refusals if not any(word in refusal for word in _SHORTAGES)]
        yield of_trial("calls", trial, f"the error does not name the disk: {wrong[0]}" if wrong else None)
        nth += stride


def full(harness: Harness, sizes: list[int]) -> Iterator[Case]:
    """A real file system of so many KiB; when it is full it grows, and the run goes on."""
    for size in sizes:
        yield _in_namespace(harness, f"a disk of {size} KiB", lambda runs, size=size: _fill(harness, runs, size))


def _fill(harness: Harness, runs: Path, size: int) -> str | None:
    run = runs / NAME  # an empty folder is taken over; log and chain of the trial lie elsewhere
    run.mkdir()
    _mount("-o", f"size={size}k", run)
    first = harness.wait(harness.start(runs))
    log = log_of(runs) if first.code else ""
    if first.code not in (0, REFUSED):
        return f"exit code {first.code}: {log}"
    if first.code == REFUSED and not any(word in log for word in ("No space left", "free some space", "no room")):
        return f"the error does not name the disk: {log}"
    _mount("-o", "remount,size=64m", run)
    return harness.goes_on(runs)


def read_only(harness: Harness, few: int = 1) -> Iterator[Case]:
    """A folder that becomes read-only, or vanishes, at the third step."""

    def freeze(runs: Path) -> str | None:
        run = runs / NAME
        run.mkdir()
        _mount("-o", "size=64m", run)
        trap = at_step(3, lambda: _cover(run))
        return _refused_then_goes_on(harness, runs, trap, lambda: _run("umount", str(run)))

    yield _in_namespace(harness, "read-only from step 3", freeze)
    runs = harness.folder("vanished from step 3")
    trap = at_step(3, lambda: shutil.rmtree(runs / NAME))
    first = harness.wait(harness.start(runs, trap))
    log = log_of(runs)
    problem = None if first.code == REFUSED and NAME in log else f"exit code {first.code}: {log}"
    yield Case(section="disk", name="vanished from step 3", problem=problem)
    yield from few_files(harness, (0, 1, 2, 4, 8, 16)[:: 2 * few - 1])


def beside(harness: Harness) -> Iterator[Case]:
    """A disk of its own for the log, or for the rollouts, is full; nobody takes what is printed; flushes are slow.

    What is only for reading must not stop a training; what was acknowledged must not be lost.
    """

    def log(runs: Path) -> str | None:
        folder = runs / NAME / "logs"
        folder.mkdir(parents=True)
        _mount("-o", "size=4k", folder)
        return harness.unharmed(runs, lambda: None)

    def store(runs: Path) -> str | None:
        folder = runs / NAME / "rollouts"
        folder.mkdir(parents=True)
        _mount("-o", "size=24k", folder)
        mend = lambda: _mount("-o", "remount,size=64m", folder)  # noqa: E731
        return _refused_then_goes_on(harness, runs, lambda: None, mend, message="No space left")

    yield _in_namespace(harness, "the log's disk is full", log)
    yield _in_namespace(harness, "the rollouts' disk is full", store)
    for name, target in (("what is printed goes to a full disk", "/dev/full"), ("nothing can be printed", None)):
        runs = harness.folder(name)
        command = ["train", "@", str(settings_file(harness.world, runs))]
        problem = harness.unharmed(runs, lambda target=target: _redirect(target), lambda words=command: main(words))
        yield Case(section="disk", name=name, problem=problem)
    problem = harness.unharmed(harness.folder("slow flushes"), _slow)
    yield Case(section="disk", name="every flush takes 50 ms longer", problem=problem)


def _redirect(target: str | None) -> None:
    """Standard output goes to a file, or was closed before Python started."""
    if target is None:
        os.close(1)
        sys.stdout = None
        return
    handle = os.open(target, os.O_WRONLY)
    os.dup2(handle, 1)
    os.close(handle)


def _slow() -> None:
    real = os.fsync

    def fsync(handle: int) -> None:
        time.sleep(0.05)
        real(handle)

    os.fsync = fsync  # ty: ignore[invalid-assignment]


def few_files(harness: Harness, spares: tuple[int, ...]) -> Iterator[Case]:
    """Hardly any file descriptors left (EMFILE)."""
    for spare in spares:

        def limit(spare: int = spare) -> None:
            free = os.dup(0)  # the lowest number that is free
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free + spare, 4096))

        name = f"{spare} file descriptors to spare"
        trial = harness.trial(name, [at_step(2, limit)])
        yield of_trial("disk", trial)


def _refused_then_goes_on(
    harness: Harness, runs: Path, trap: Callable[[], None], mend: Callable[[], None], *, message: str = ""
) -> str | None:
    first = harness.wait(harness.start(runs, trap))
    log = log_of(runs) if first.code else ""
    if first.code != REFUSED or message not in log:
        return f"expected an error of coterie's own that says {message!r}, got exit code {first.code}: {log}"
    mend()
    return harness.goes_on(runs)


def _in_namespace(harness: Harness, name: str, body: Callable[[Path], str | None]) -> Case:
    """Run `body` in a child with mounts of its own, which end with it."""
    runs = harness.folder(name)
    verdict = harness.root / f"verdict {name}"
    pid = os.fork()
    if pid == 0:
        try:
            _own_mounts()
            problem = body(runs)
            verdict.write_text("" if problem is None else problem)
        except BaseException as error:
            verdict.write_text(f"not tried: {type(error).__name__}: {error}")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    problem_text = verdict.read_text() if verdict.exists() else "not tried: the child died"
    return Case(section="disk", name=name, problem=problem_text or None)


def _own_mounts() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    flags = _CLONE_NEWNS if uid == 0 else _CLONE_NEWNS | _CLONE_NEWUSER
    if libc.unshare(flags):
        raise OSError(ctypes.get_errno(), "this system lets nobody mount a file system of their own")
    if uid != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    _run("mount", "--make-rprivate", "/")


def _mount(option: str, value: str, folder: Path) -> None:
    _run("mount", "-t", "tmpfs", option, value, "tmpfs", str(folder))


def _cover(folder: Path) -> None:
    """The same files again on top, read-only: a file system with files open for writing cannot be made so itself."""
    _run("mount", "--bind", str(folder), str(folder))
    _run("mount", "-o", "remount,bind,ro", str(folder))


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)
