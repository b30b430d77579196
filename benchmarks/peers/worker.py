"""The benchmark's end of a worker: a process that computes only while it is asked."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import coterie
from benchmarks.peers.wire import STOP
from coterie import machine
from coterie.errors import CoterieError

# Makes `benchmarks.peers.…` importable in a peer's environment without leaking our own packages into it.
_LAUNCH = (
    "import runpy, sys, types; package = types.ModuleType('coterie'); package.__path__ = [sys.argv[1]]; "
    "sys.modules['coterie'] = package; peers = types.ModuleType('benchmarks'); peers.__path__ = [sys.argv[2]]; "
    "sys.modules['benchmarks'] = peers; runpy.run_module(sys.argv[3], run_name='__main__')"
)


BENCHMARKS = Path(__file__).resolve().parents[1]


class PeerError(CoterieError):
    """A peer's environment cannot be made, or its worker failed."""


def command_for(python: Path | str, module: str) -> list[str]:
    """How to start `module` (of benchmarks.peers) with the interpreter of any environment."""
    return [str(python), "-P", "-c", _LAUNCH, str(Path(coterie.__file__).parent), str(BENCHMARKS), module]


def surroundings(threads: int, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment variables of every worker: the same threads, no accelerator, no network."""
    env = machine.clean_environment()
    for name in ("PYTHONPATH", "VIRTUAL_ENV"):
        env.pop(name, None)
    env |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    return env | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **(extra or {})}


class Worker:
    """One side in a process of its own.

    Args:
        name: what messages call it.
        command: starts it; see `command_for`.
        log: file for everything it prints.
        timeout_s: wall-clock limit of one answer; the process is killed then.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, env: Mapping[str, str], log: Path, timeout_s: float = 3600.0
    ) -> None:
        self.name = name
        self.log = log
        self.timeout_s = timeout_s
        log.parent.mkdir(parents=True, exist_ok=True)
        self._sink = log.open("ab")
        self._late = False
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._sink,
            env=dict(env),
            text=True,
            encoding="utf-8",
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, do: str, **details: Any) -> dict[str, Any]:
        """Put one question and wait for its answer.

        Raises:
            PeerError: the worker reported an error, died, or did not answer in time.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        timer = threading.Timer(self.timeout_s, self._give_up)
        timer.daemon = True
        timer.start()
        try:
            self._process.stdin.write(json.dumps({"do": do, **details}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except (BrokenPipeError, OSError):
            line = ""
        finally:
            timer.cancel()
        if not line:
            raise PeerError(f"the {self.name} worker {self._fate()} while asked to {do}; its output is in {self.log}")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(f"the {self.name} worker failed to {do}: {answer['error']}; its output is in {self.log}")
        return answer

    def _give_up(self) -> None:
        self._late = True
        self._process.kill()

    def _fate(self) -> str:
        if self._late:
            return f"gave no answer within {self.timeout_s:.0f} s"
        try:
            code = self._process.wait(10)
        except subprocess.TimeoutExpired:
            return "closed its output"
        return "was killed (out of memory?)" if code == -9 else f"ended with exit code {code}"

    def close(self) -> None:
        """Ask it to stop; kill it when it does not within half a minute. May be called twice."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(OSError, ValueError):  # it may be gone already, or closed before
            self._process.stdin.write(json.dumps({"do": STOP}) + "\n")
            self._process.stdin.flush()
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._sink.close()
