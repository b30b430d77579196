"""The lock of a run: one process may write to it."""

from __future__ import annotations

import fcntl
import os
import time
import weakref
from pathlib import Path

from coterie.errors import RunError
from coterie.runs.durable import describe


class Lock:
    """Exclusive use of a folder until the process ends, however it ends, so a stale lock cannot exist.

    Raises:
        RunError: another process has it (its id is named), or the file system has no locks.
    """

    handle = -1

    def __init__(self, folder: Path) -> None:
        file = folder / ".lock"
        try:
            self.handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise RunError(f"cannot open {file}: {describe(error, folder)}") from error
        try:
            self._acquire(folder)
            os.ftruncate(self.handle, 0)
            os.pwrite(self.handle, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            self.release()
            raise RunError(f"cannot lock {file}: {error.strerror}; keep runs on a local disk") from error
        except RunError:
            self.release()
            raise
        _locks.add(self)

    def _acquire(self, folder: Path) -> None:
        for patience in (0.02, 0.05, 0.0):  # `lock_holder` may be having its look right now
            try:
                fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(patience)
        pid = os.pread(self.handle, 32, 0).decode(errors="replace").strip() or "unknown"
        raise RunError(f"the run {folder} is in use by process {pid}; wait for it, or stop it first")

    def release(self) -> None:
        """Release the lock by closing the file: a forked child that unlocked it would release its parent's."""
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1

    def __del__(self) -> None:
        self.release()


_locks: weakref.WeakSet[Lock] = weakref.WeakSet()


def _forget_locks() -> None:
    # A forked worker shares the lock; one that outlives its parent would hold the run for ever.
    for lock in list(_locks):
        lock.release()


os.register_at_fork(after_in_child=_forget_locks)


def lock_holder(folder: Path) -> int | None:
    """Id of the process that holds the folder's lock, -1 if unknown, None if it is free."""
    try:
        handle = os.open(folder / ".lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.read(handle, 32).strip()
        return int(text) if text.isdigit() else -1
    except OSError:
        return None
    finally:
        os.close(handle)
    return None
