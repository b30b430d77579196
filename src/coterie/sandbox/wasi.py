"""Tier 1: CPython for WASI under wasmtime, in processes that are replaced when they die. Any system, no privileges."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import selectors
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from coterie.data import assets
from coterie.data.cache import home
from coterie.errors import install_command
from coterie.sandbox.base import Limits, Run, SandboxError, Test, ended, job_of, read_reply
from coterie.sandbox.wasi_host import compile_module

ASSET = "python-wasi"
WALL = 15.0
"""Wall-clock seconds a second of computing may take, beside busy programs, before the process is killed."""
START_S = 120.0
"""Wall-clock seconds in which a process must load the module."""


class Wasi:
    """WASI CPython.

    Args:
        workers: processes, each with one program at a time.
        note: told when something is fetched or compiled.

    Raises:
        SandboxError: wasmtime is not installed.
        AssetError: the interpreter cannot be fetched.
    """

    tier = "wasi"

    def __init__(self, *, workers: int = 2, note: Callable[[str], None] | None = None) -> None:
        self._module = compiled(note)
        self._free: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(workers):
            self._free.put(None)
        self._processes: list[_Process] = []
        self._lock = threading.Lock()
        weakref.finalize(self, _kill_all, self._processes)

    def run(self, code: str, *, stdin: str = "", tests: Sequence[Test] = (), limits: Limits | None = None) -> Run:
        """As of a `Sandbox`; waits while all processes are busy."""
        limits = limits or Limits()
        job = job_of(code, tests, limits)
        if isinstance(job, Run):
            return job
        request = {
            "argument": job.argument,
            "stdin": stdin[: 1 << 20],
            "seconds": limits.seconds,
            "memory_mb": limits.memory_mb,
            "bytes": job.bytes,
        }
        process = self._free.get()
        try:
            process = process or self._started()
            reply = process.ask(json.dumps(request), 5 + WALL * limits.seconds)
        except BaseException:
            self._drop(process)
            process = None
            raise
        finally:
            self._free.put(process if process is not None and process.alive else None)
        if reply is None:
            cause = "ran beyond the wall-clock limit, or its process died"
            return ended("timeout", cause, tests)
        if reply["end"] != "done":
            cause = "computed longer than its limit" if reply["end"] == "fuel" else "was stopped by the sandbox"
            return ended("timeout" if reply["end"] == "fuel" else "crashed", cause, tests)
        answer = read_reply(job, reply["output"].encode("latin-1"), tests)
        return answer or ended("exited", "ended before its calls were evaluated", tests)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [process.pid for process in self._processes if process.alive]

    def close(self) -> None:
        """End every process."""
        with self._lock:
            _kill_all(self._processes)

    def _started(self) -> _Process:
        process = _Process(self._module)
        with self._lock:
            self._processes[:] = [other for other in self._processes if other.alive]
            self._processes.append(process)
        return process

    def _drop(self, process: _Process | None) -> None:
        if process is not None:
            process.kill()


class _Process:
    """A process with the module; one question at a time."""

    def __init__(self, module: Path) -> None:
        command = [sys.executable, "-P", "-m", "coterie.sandbox.wasi_host", str(module)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        self._fresh = True

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, line: str, seconds: float) -> dict[str, str] | None:
        """The reply; None, and the process is killed, where there is none in time."""
        assert self._process.stdin is not None
        deadline = time.monotonic() + seconds + (START_S if self._fresh else 0)
        self._fresh = False
        with suppress(OSError):
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        reply = self._line(deadline)
        try:
            value = json.loads(reply) if reply else None
        except ValueError:
            value = None
        if value is None:
            self.kill()
        return value

    def kill(self) -> None:
        with suppress(OSError):
            os.killpg(self._process.pid, 9)
        self._process.kill()
        self._process.wait()
        for end in (self._process.stdin, self._process.stdout):
            if end is not None:
                with suppress(OSError):
                    end.close()

    def _line(self, deadline: float) -> bytes:
        assert self._process.stdout is not None
        data, fd = bytearray(), self._process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(fd, selectors.EVENT_READ)
            while not data.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return b""
                chunk = os.read(fd, 1 << 18)
                if not chunk:
                    return b""
                data += chunk
        return bytes(data)


def compiled(note: Callable[[str], None] | None = None) -> Path:
    """The compiled module, made once for this version of wasmtime; its bytes are verified, since they are native code.

    Raises:
        SandboxError: wasmtime is not installed.
        AssetError: the interpreter cannot be fetched.
    """
    if find_spec("wasmtime") is None:
        raise SandboxError(f"the sandbox wasi needs the package wasmtime: {install_command('sandbox')}")
    source = assets.ensure(ASSET, progress=note) / "python.wasm"
    folder = home() / "wasi"
    name = f"{assets.ASSETS[ASSET].sha256[:12]}-wasmtime-{metadata.version('wasmtime')}.cwasm"
    target, mark = folder / name, folder / f"{name}.sha256"
    if target.is_file() and mark.is_file() and mark.read_text() == _sha256(target):
        return target
    if note is not None:
        note("compiling CPython for WASI, once: half a minute")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix=".draft-", dir=folder) as place:
        draft = Path(place, name)
        compile_module(source, draft)
        Path(place, "mark").write_text(_sha256(draft))
        os.replace(draft, target)  # another process may do the same: its bytes are as good
        os.replace(Path(place, "mark"), mark)
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _kill_all(processes: list[_Process]) -> None:
    for process in processes:
        process.kill()
    processes.clear()
