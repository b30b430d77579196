"""A child process that makes one attempt at a run: its life, what it said, and what it left alive."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from coterie.errors import CoterieError
from coterie.train.recorder import Recorder
from coterie.train.step import StepResult
from faults.world import keep_chain

TRIAL = "FAULT_TRIAL"
"""Environment variable by which a reward worker of a trial is known."""
REFUSED = 1
"""Exit code of an attempt that ended in an error of coterie's own; 70 is any other exception."""
Prepare = Callable[[], None]
"""What is done in a child before anything else, e.g. a trap is set."""


def live(runs: Path, prepare: Prepare | None, work: Callable[[], int]) -> None:
    """The whole life of a child."""
    code = 70
    # Whoever started the report may ignore these (nohup does); a run on its own does not.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        os.setpgid(0, 0)
        log = os.open(runs / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.environ[TRIAL] = str(runs)
        keep_chain(runs / "chain")
        if prepare is not None:
            prepare()
        code = work()
    except CoterieError as error:
        say(f"refused: {type(error).__name__}: {error}".replace("\n", " / "))
        code = REFUSED
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        say(traceback.format_exc())
    finally:
        os._exit(code)


def at_step(step: int, deed: Callable[[], object]) -> Prepare:
    """A trap: the deed is done just before a step is recorded."""

    def arm() -> None:
        inner = Recorder.step

        def record(self: Recorder, result: StepResult, metrics: Mapping[str, float]) -> None:
            if result.step == step:
                deed()
            inner(self, result, metrics)

        Recorder.step = record

    return arm


def say(text: str) -> None:
    os.write(2, text.encode(errors="backslashreplace") + b"\n")


def log_of(runs: Path) -> str:
    """The last thing that an attempt said."""
    lines = (runs / "log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    told = [line for line in lines if line.startswith("refused: ")]
    return told[-1] if told and lines[-1].strip() and not lines[-1].startswith("Trace") else " | ".join(lines[-4:])


def orphans(runs: Path, patience: float = 10.0) -> int:
    """Processes of a trial that are still alive a while after its own process was killed; they are ended then."""
    limit = time.monotonic() + patience
    while pids := _marked(f"{TRIAL}={runs}".encode()):
        if time.monotonic() > limit:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            break
        time.sleep(0.01)
    return len(pids)


def _marked(mark: bytes) -> list[int]:
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                dead = (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
                if not dead and mark in (entry / "environ").read_bytes().split(b"\0"):
                    pids.append(int(entry.name))
    return pids
