"""Handle of a worker process of rewards or tools: start, request, reply, deadline and kill."""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from coterie.errors import RewardError

_CHUNK = 1 << 18
_KEPT = 1 << 16
"""Bytes of what a function printed in one call that are kept, the last ones."""
LONGEST_REPLY = 1 << 26
"""Bytes; a longer reply is no reply."""
PATIENCE = 10.0
"""A deadline moves by the time in which the worker waited for a processor, up to so many times its length."""
_LOOK = 0.1
"""Share of a deadline after which a worker that may be waiting at this moment is looked at again."""
_NO_PROCESS = "cannot start a reward worker: {}; lower rewards.workers, or free memory and file descriptors"
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",  # a reward that iterates over a set gives the same value in every process
}


class WorkerDiedError(Exception):
    """The worker died, or did not reply before the deadline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _ProcessorUsage:
    """Processor usage of a worker so far (man 5 proc: /proc/PID/schedstat and stat)."""

    ran: float = 0.0
    """Seconds."""
    waited: float = 0.0
    """Seconds ready to run without running, in waits that are over."""
    ready: bool = False
    """It runs or waits for a processor now; it does not sleep."""


class Worker:
    """A process that runs users' functions, with one request at a time and a deadline for each.

    Args:
        folder: working folder, where `module:function` is looked for first.
        module: the program of the process.
    """

    def __init__(self, folder: str, module: str = "coterie.rewards.worker") -> None:
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise RewardError(_NO_PROCESS.format(error), function="rewards") from error
        # Linux ends the worker when the *thread* that started it ends, so only the main thread may ask for that; an
        # idle worker leaves at the end of its socket in any case.
        main = threading.current_thread() is threading.main_thread()
        # A group of its own, to be killed as one, but no session: Linux shares the processors out between sessions
        # first (man 7 sched, "The autogroup feature"), and a low priority means nothing to another session's threads.
        command = [sys.executable, "-P", "-m", module, str(theirs.fileno())]
        try:
            self._process = subprocess.Popen(
                [*command, str(os.getpid() if main else 0)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                cwd=folder,
                pass_fds=(theirs.fileno(),),
                process_group=0,
                env=os.environ | _ENVIRONMENT,
            )
        except OSError as error:
            ours.close()
            raise RewardError(_NO_PROCESS.format(error), function="rewards") from error
        finally:
            theirs.close()
        assert self._process.stdout is not None
        self._channel, self._output = ours, self._process.stdout
        for end in (self._channel, self._output):
            os.set_blocking(end.fileno(), False)
        self._sending, self._received, self._printed = memoryview(b""), bytearray(), b""
        self._dropped = 0
        self._seconds = self._asked = 0.0
        self._start = self._last_usage = _ProcessorUsage()
        self.deadline = float("inf")
        """Monotonic time at which the current question must be answered; infinite while idle."""

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def idle(self) -> bool:
        return self.deadline == float("inf")

    def send_request(self, line: str, *, seconds: float) -> None:
        """Begin to send a request; `advance` continues. The reply is due in `seconds` of wall clock, not counting time
        in which the worker is ready but other processes have the processors (known on Linux only)."""
        self._sending = memoryview(line.encode() + b"\n")
        self._printed, self._dropped = b"", 0
        self._seconds, self._asked, self._start = seconds, time.monotonic(), self._usage()
        self._last_usage = self._start
        self.deadline = self._asked + seconds

    def advance(self) -> dict[str, Any] | None:
        """Send and receive without waiting; returns the reply when it is complete."""
        self._drain()
        self._send()
        reply = self._receive()
        if reply is None and time.monotonic() >= self.deadline and not self._extend_deadline():
            raise WorkerDiedError(f"did not return within {self._seconds:g} s and was killed")
        if reply is not None:
            self.deadline = float("inf")
            self._drain()  # what was printed is in the pipe before the reply is
        return reply

    def kill(self) -> None:
        """End the process and all that it started. Only a child that made a session of its own gets away."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        self._channel.close()
        self._output.close()

    def printed(self) -> str:
        """Output since the last request, or its end with a note on what is missing."""
        text = self._printed.decode(errors="replace").strip("\n")
        return f"({self._dropped:,} bytes before this are left out)\n{text}" if self._dropped else text

    def last_line(self) -> str:
        """Last line of output since the last request."""
        lines = self._printed.decode(errors="replace").strip().splitlines()
        return lines[-1].strip()[-200:] if lines else ""

    def register(self, selector: selectors.BaseSelector) -> None:
        """Have a selector report when `advance` can do something."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._sending else 0)
        selector.register(self._channel, events)
        if not self._output.closed:
            selector.register(self._output, selectors.EVENT_READ)

    def _extend_deadline(self) -> bool:
        """Extend the deadline by the time that the worker waited for a processor; True if it lies ahead.

        Without this a priority low enough to leave the maths alone would turn slow rewards into errors.
        """
        before, self._last_usage = self._last_usage, self._usage()
        allowed = self._seconds + self._last_usage.waited - self._start.waited
        # The count lacks the wait that still lasts: who is ready, and did not run since the last look, is in one.
        if self._last_usage.ready and (before is self._start or self._last_usage.ran == before.ran):
            allowed = max(allowed, time.monotonic() - self._asked + _LOOK * self._seconds)
        self.deadline = self._asked + min(allowed, (1 + PATIENCE) * self._seconds)
        return time.monotonic() < self.deadline

    def _usage(self) -> _ProcessorUsage:
        """The worker's processor usage; zeros where the system does not tell."""
        try:
            with open(f"/proc/{self._process.pid}/schedstat") as counters:  # ns run, ns waited, turns
                ran, waited, _ = map(int, counters.read().split())
            with open(f"/proc/{self._process.pid}/stat") as facts:  # pid (name) state …
                ready = facts.read().rpartition(")")[2].split()[0] == "R"
        except (OSError, IndexError, ValueError):
            return _ProcessorUsage()
        return _ProcessorUsage(ran=ran / 1e9, waited=waited / 1e9, ready=ready)

    def _drain(self) -> None:
        """Read the output and keep its end; a full pipe would stop the function that prints."""
        while not self._output.closed:
            data = self._output.read(_CHUNK)
            if data is None:
                return
            if not data:
                self._output.close()  # the function closed it; the process may live on
                return
            self._printed += data
            if len(self._printed) > 2 * _KEPT:
                self._cut()
            if len(data) < _CHUNK:
                return

    def _cut(self) -> None:
        self._dropped += len(self._printed) - _KEPT
        self._printed = self._printed[-_KEPT:]

    def _send(self) -> None:
        with suppress(BlockingIOError, ConnectionError):  # the receiving side tells what became of the process
            while self._sending:
                self._sending = self._sending[self._channel.send(self._sending) :]

    def _receive(self) -> dict[str, Any] | None:
        try:
            data = self._channel.recv(_CHUNK)
        except BlockingIOError:
            return None
        except ConnectionError:
            data = b""
        if not data:
            raise WorkerDiedError(self._cause_of_death())
        self._received += data
        end = self._received.find(b"\n")
        if end < 0:
            if len(self._received) > LONGEST_REPLY:
                raise WorkerDiedError(f"returned more than {LONGEST_REPLY >> 20} MiB")
            return None
        line = bytes(self._received[:end])
        self._received.clear()
        try:
            reply = json.loads(line)
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            raise WorkerDiedError("wrote into the channel of its worker process")
        return reply

    def _cause_of_death(self) -> str:
        """Cause of death of a process whose channel has ended."""
        try:
            code = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return "closed the channel of its worker process"
        self._drain()
        words = self.last_line()
        last = f"; it last printed {words!r}" if words else ""
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            hint = " (out of memory?)" if -code == signal.SIGKILL else ""
            return f"ended its worker process by {name}{hint}{last}"
        return f"ended its worker process with exit code {code}{last}"


def wait_for_any(workers: Sequence[Worker], seconds: float) -> None:
    """Sleep until a worker can be advanced, or for `seconds`."""
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            worker.register(selector)
        selector.select(max(seconds, 0.0))
