"""Tiers 2 and 3: this machine's Python in a box of bubblewrap, or under resource limits alone."""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from coterie.sandbox.base import HARNESS, Limits, Run, SandboxError, Test, ended, job_of, read_reply
from coterie.sandbox.seccomp import filter_program

WALL = 5.0
"""Wall-clock seconds a second of computing may take."""
PROCESSES, FILES, FILE_MB = 32, 64, 16
"""Most processes, open files, and megabytes of a file."""
NOBODY = 65534
"""User id of a guest where this process is root."""


class _Native:
    """Shared part: a process group that is killed at its limits."""

    tier = ""

    def __init__(self, workers: int = 2) -> None:
        self._slots = threading.BoundedSemaphore(workers)

    def run(self, code: str, *, stdin: str = "", tests: Sequence[Test] = (), limits: Limits | None = None) -> Run:
        """As of a `Sandbox`; waits while `workers` programs run."""
        limits = limits or Limits()
        job = job_of(code, tests, limits)
        if isinstance(job, Run):
            return job
        with self._slots, tempfile.TemporaryFile() as given:
            given.write(stdin[: 1 << 20].encode("utf-8", "replace"))
            given.seek(0)
            deadline = time.monotonic() + 1 + WALL * limits.seconds
            output, code_of_end = self._output(job.argument, given.fileno(), limits, deadline, job.bytes)
        answer = read_reply(job, output, tests)
        if answer is not None:
            return answer
        if code_of_end is None or code_of_end in (-signal.SIGXCPU, 128 + signal.SIGXCPU):
            return ended("timeout", "computed, or waited, longer than its limit", tests)
        if code_of_end == 0:
            return ended("exited", "ended before its calls were evaluated", tests)
        killed = code_of_end < 0 or code_of_end > 128
        return ended("crashed" if killed else "exited", f"ended with the code {code_of_end}", tests)

    def close(self) -> None:
        """Nothing is kept between programs."""

    def command(self, limits: Limits) -> tuple[list[str], list[int]]:
        """Command before the interpreter's own arguments, and file descriptors that it inherits."""
        raise NotImplementedError

    def program(self, limits: Limits) -> str:
        """Text of the guest."""
        return HARNESS

    def _output(
        self, argument: str, stdin: int, limits: Limits, deadline: float, most: int
    ) -> tuple[bytes, int | None]:
        """(end of standard output, exit code or None where it was killed)."""
        command, inherited = self.command(limits)
        with tempfile.TemporaryDirectory(prefix="coterie-box-") as folder:
            try:
                process = subprocess.Popen(
                    [*command, "-I", "-S", "-c", self.program(limits), argument],
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env={},
                    cwd=folder,
                    pass_fds=inherited,
                    start_new_session=True,
                )
            except (OSError, subprocess.SubprocessError) as error:
                raise SandboxError(f"the sandbox {self.tier} cannot start a process: {error}") from error
            finally:
                for descriptor in inherited:
                    os.close(descriptor)
            try:
                return _drained(process, deadline, most)
            finally:
                with suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                assert process.stdout is not None
                process.stdout.close()


def _drained(process: subprocess.Popen[bytes], deadline: float, most: int) -> tuple[bytes, int | None]:
    """The last bytes of the output; a process that floods or outlives the deadline is left for its end."""
    assert process.stdout is not None
    data, total, fd = bytearray(), 0, process.stdout.fileno()
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return bytes(data), None
            chunk = os.read(fd, 1 << 16)
            if not chunk:
                break
            total += len(chunk)
            data += chunk
            del data[: max(0, len(data) - most)]
            if total > 64 * most:
                return b"", None
    with suppress(subprocess.TimeoutExpired):
        return bytes(data), process.wait(max(0.1, deadline - time.monotonic()))
    return bytes(data), None


class Bubblewrap(_Native):
    """A box of namespaces with a filter of system calls: no network, no files but the interpreter's, no privileges.

    The guest shares the kernel with this machine. Memory is limited for each process, of which there may be 32.

    Raises:
        SandboxError: bubblewrap is not installed, or a box cannot be made here.
    """

    tier = "bubblewrap"

    def __init__(self, workers: int = 2) -> None:
        super().__init__(workers)
        path = shutil.which("bwrap")
        if path is None or shutil.which("prlimit") is None:
            raise SandboxError("the sandbox bubblewrap needs bwrap and prlimit: apt-get install bubblewrap")
        self._filter = filter_program()
        if self._filter is None:
            raise SandboxError("the sandbox bubblewrap has a filter of system calls for x86-64 alone; use wasi")
        self._bwrap, self._python = path, _open_interpreter()

    def command(self, limits: Limits) -> tuple[list[str], list[int]]:
        assert self._filter is not None
        descriptor = os.memfd_create("filter")  # a new one each time: bwrap reads it to its end
        os.write(descriptor, self._filter)
        os.lseek(descriptor, 0, os.SEEK_SET)
        # As root, another user outside too: root's processes are in no limit of their number.
        user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if os.geteuid() == 0 else []
        box = [*user, self._bwrap, "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent"]
        box += ["--new-session", "--clearenv", "--hostname", "box", "--cap-drop", "ALL"]
        for folder in _interpreter_folders(self._python):
            box += ["--ro-bind", folder, folder]
        for folder in ("/lib", "/lib64"):
            if Path(folder).is_symlink():
                box += ["--symlink", os.readlink(folder), folder]
        box += ["--proc", "/proc", "--dev", "/dev", "--size", str(16 << 20), "--tmpfs", "/dev/shm"]
        box += ["--size", str(64 << 20), "--tmpfs", "/tmp", "--chdir", "/tmp", "--seccomp", str(descriptor)]
        box += ["--remount-ro", "/dev", "--remount-ro", "/"]
        # Inside the box, where a limit counts the processes of this box alone.
        seconds = max(1, round(limits.seconds))
        inner = ["prlimit", f"--nproc={PROCESSES}", f"--as={limits.memory_mb << 20}", f"--fsize={FILE_MB << 20}"]
        inner += ["--core=0", f"--cpu={seconds}:{seconds + 1}", f"--nofile={FILES}"]
        return [*box, "--", shutil.which("prlimit") or inner[0], *inner[1:], self._python], [descriptor]


class Rlimits(_Native):
    """Resource limits alone. UNSAFE: the program reads what this user can, and reaches what this machine does."""

    tier = "unsafe_rlimits"

    def command(self, limits: Limits) -> tuple[list[str], list[int]]:
        return [_interpreter()], []

    def program(self, limits: Limits) -> str:
        # By the guest itself, before it sees any code: a function between fork and exec is not safe beside threads.
        seconds, memory, file = max(1, round(limits.seconds)), limits.memory_mb << 20, FILE_MB << 20
        pairs = {"CPU": (seconds, seconds + 1), "AS": (memory, memory), "FSIZE": (file, file)}
        pairs |= {"CORE": (0, 0), "NOFILE": (FILES, FILES)}
        lines = [f"resource.setrlimit(resource.RLIMIT_{name}, {pair})" for name, pair in pairs.items()]
        return "\n".join(["import resource", *lines, HARNESS])


def _interpreter() -> str:
    """The interpreter behind a virtual environment: what is installed there stays outside of the box."""
    return str(Path(sys.executable).resolve())


def _open_interpreter() -> str:
    """The interpreter, or the system's where this one lies in a folder of root's that the guest's user cannot enter.

    Raises:
        SandboxError: neither can be entered.
    """
    for path in (Path(_interpreter()), Path("/usr/bin/python3").resolve()):
        open_to_all = all(folder.stat().st_mode & 0o001 for folder in path.parents) if path.is_file() else False
        if open_to_all or (path.is_file() and os.geteuid() != 0):
            return str(path)
    raise SandboxError(
        f"the sandbox bubblewrap runs programs as another user than root, who cannot enter {_interpreter()}; install "
        "the system's python3, or use a Python outside of root's home"
    )


def _interpreter_folders(python: str) -> list[str]:
    """Folders that an interpreter and its libraries lie in."""
    folders = ["/usr/lib", "/usr/bin"]
    folders += [folder for folder in ("/lib", "/lib64", "/usr/lib64") if Path(folder).is_dir()]
    if Path("/etc/ld.so.cache").exists():
        folders.append("/etc/ld.so.cache")
    prefix = str(Path(python).parents[1])
    folders += [] if prefix == "/usr" else [prefix]
    return [folder for folder in dict.fromkeys(folders) if not Path(folder).is_symlink()]
