"""Attempts at a run, each in a forked process that may be killed, and the verdict after the last of them.

Everything slow to import is loaded once, here; a fork then starts a run in a fraction of a second.
"""

from __future__ import annotations

import gc
import mmap
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tqdm

from coterie import assemble, parts
from coterie.collect import Collector
from coterie.errors import CoterieError
from coterie.observer import Silent
from coterie.policy.learner import Learner
from coterie.rewards.pool import Scorer
from coterie.runs import checkpoint, directory
from coterie.train.evaluation import Evaluator
from coterie.train.grpo import Trainer
from coterie.train.recorder import Recorder
from faults.world import NAME, Link, divergence, end_state, keep_chain, make_world, read_chain, settings

PHASES: dict[str, list[tuple[Any, str]]] = {
    "set-up": [],
    "rollout": [(Collector, "collect")],
    "reward": [(Scorer, "score")],
    "update": [(Learner, "update")],
    "store": [(Recorder, "step"), (Recorder, "evaluation")],
    "evaluation": [(Evaluator, "evaluate")],
    "checkpoint": [(Recorder, "checkpoint")],
    "clean-up": [(checkpoint, "_prune"), (directory, "remove_leftovers")],
    "resume": [(assemble, "_restore")],
    "report": [(assemble, "report_run")],
}
"""What a process is doing → the functions that do it."""
TRIAL = "FAULT_TRIAL"
"""Environment variable by which a reward worker of a trial is known."""
REFUSED = 1
"""Exit code of an attempt that ended in an error of coterie's own; 70 is any other exception."""
PATIENCE = 600.0
"""Seconds after which an attempt counts as hung."""

Prepare = Callable[[], None]


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One process's try at the run."""

    pid: int
    began: float
    code: int | None = None
    """Exit code; negative: the signal."""
    phase: str = ""
    """What it was doing when it ended."""
    seconds: float = 0.0


@dataclass(slots=True, kw_only=True)
class Trial:
    """A run that was tried until it was done, and the verdict."""

    name: str
    divergence: str | None
    """None: bit for bit the golden run."""
    deaths: list[str] = field(default_factory=list)
    """Phase of each kill."""
    refusals: list[str] = field(default_factory=list)
    """First line of each error that an attempt ended with."""
    recovery: list[float] = field(default_factory=list)
    """Seconds from each restart to its first finished step."""
    lost: list[int] = field(default_factory=list)
    """Finished steps that each kill cost."""
    orphans: int = 0
    """Processes that outlived a killed attempt."""


class Harness:
    """Golden run and trials in one folder.

    Args:
        root: is made; everything lies below it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.world = root / "world"
        tqdm.tqdm.monitor_interval = 0  # no thread of its own: a fork of a process with threads may hang
        make_world(self.world)
        self.phase = mmap.mmap(-1, mmap.PAGESIZE)
        self.starting, self.looping = 2.0, 2.0
        """Seconds of an attempt to its first step, and from there to its end; they follow the machine's load."""
        self._warm_up()
        self.golden, self.end = self._golden()

    def _warm_up(self) -> None:
        sys.modules["matplotlib"] = None  # ty: ignore[invalid-assignment]  # the picture would cost more than the run
        folders = [self.world, *map(os.path.abspath, filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))]
        os.environ["PYTHONPATH"] = os.pathsep.join(map(str, folders))
        os.chdir(self.world)
        config = settings(self.world, self.root / "unused")
        parts.use_threads(config)
        inputs = parts.read_inputs(config, Silent())
        parts.policy_for(config, inputs)
        _mark(self.phase, Trainer, "run", 1, byte=1)
        for number, hooks in enumerate(PHASES.values()):
            for owner, name in hooks:
                _mark(self.phase, owner, name, number)
        gc.collect()
        limit = time.monotonic() + 30
        while threading.active_count() > 1:  # a fork of a process with threads may hang
            assert time.monotonic() < limit, threading.enumerate()
            time.sleep(0.05)
        gc.freeze()

    def _golden(self) -> tuple[dict[int, str], dict[str, str]]:
        runs = self.root / "golden"
        runs.mkdir()
        done = self.wait(self.start(runs))
        if done.code != 0:
            raise RuntimeError(f"the golden run failed: {log_of(runs)}")
        chain = read_chain(runs / "chain")
        return {link.step: link.hash for link in chain}, end_state(runs / NAME)

    def folder(self, name: str) -> Path:
        """A new folder for one trial's runs."""
        path = self.root / name.replace("/", "-").replace(" ", "-")
        path.mkdir()
        return path

    def start(self, runs: Path, prepare: Prepare | None = None, work: Callable[[], int] | None = None) -> Attempt:
        """Fork one attempt: train, or resume what there is.

        Args:
            prepare: runs in the child before anything else, e.g. sets a trap.
            work: instead of train or resume.
        """
        self.phase[0:2] = b"\0\0"
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _live(runs, prepare, work or (lambda: self._go_on(runs)))
        return Attempt(pid=pid, began=began)

    def _go_on(self, runs: Path) -> int:
        if (runs / NAME / "config.toml").exists():
            assemble.resume(NAME, runs=runs)
        else:
            assemble.train(settings(self.world, runs))
        return 0

    def wait(self, attempt: Attempt) -> Attempt:
        """Until it ends by itself."""
        limit = time.monotonic() + PATIENCE
        while True:
            pid, status = os.waitpid(attempt.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > limit:
                os.kill(attempt.pid, signal.SIGKILL)
            time.sleep(0.005)
        attempt.code = os.waitstatus_to_exitcode(status)
        attempt.seconds = time.monotonic() - attempt.began
        attempt.phase = list(PHASES)[self.phase[0]]
        return attempt

    def goes_on(self, runs: Path) -> str | None:
        """Let one more attempt finish; how the run differs from the golden one, or None."""
        problem = self.unharmed(runs, lambda: None)
        return f"could not go on: {problem}" if problem else None

    def unharmed(self, runs: Path, trap: Prepare, work: Callable[[], int] | None = None) -> str | None:
        """Let one attempt finish in spite of the trap; how the run differs from the golden one, or None."""
        done = self.wait(self.start(runs, trap, work))
        if done.code != 0:
            return f"exit code {done.code}: {log_of(runs)}"
        return divergence(self.golden, self.end, read_chain(runs / "chain"), runs / NAME)

    def kill(self, attempt: Attempt, share: float) -> Attempt:
        """SIGKILL from outside, unless it is done by then.

        Args:
            share: in [-1, 1); below 0 after that share of what a start takes, else after that share of the loop.
        """
        began = None
        while True:
            now = time.monotonic()
            if began is None and self.phase[1]:
                began = now
                self.starting = 0.7 * self.starting + 0.3 * (now - attempt.began)
            due = attempt.began - share * self.starting if share < 0 else (began or now + 1) + share * self.looping
            if now >= due:
                os.kill(attempt.pid, signal.SIGKILL)
                break
            if os.waitid(os.P_PID, attempt.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                if began is not None:
                    self.looping = 0.7 * self.looping + 0.3 * (now - began)
                break
            time.sleep(0.002)
        return self.wait(attempt)

    def trial(self, name: str, deaths: Sequence[Prepare | float]) -> Trial:
        """Let attempts die as told, then let one finish; compare with the golden run.

        Args:
            deaths: of each attempt in turn: a trap to set in the child, or the share at which to kill it; see `kill`.
        """
        runs = self.folder(name)
        trial = Trial(name=name, divergence=None)
        file = runs / "chain"
        for death in deaths:
            known = read_chain(file)
            if isinstance(death, float | int):
                attempt = self.kill(self.start(runs), death)
            else:
                attempt = self.wait(self.start(runs, death))
            if attempt.code == -signal.SIGKILL:
                trial.deaths.append(attempt.phase)
                trial.orphans += orphans(runs)
            elif attempt.code == REFUSED:
                trial.refusals.append(log_of(runs))
            elif attempt.code != 0:
                trial.divergence = f"exit code {attempt.code}: {log_of(runs)}"
                return trial
            self._measure(trial, attempt, known, read_chain(file), first=death is deaths[0])
        known = read_chain(file)
        last = self.wait(self.start(runs))
        if last.code != 0:
            trial.divergence = f"could not go on, exit code {last.code}: {log_of(runs)}"
            return trial
        self._measure(trial, last, known, read_chain(file), first=not deaths)
        trial.divergence = divergence(self.golden, self.end, read_chain(file), runs / NAME)
        if trial.divergence is None:
            shutil.rmtree(runs)
        return trial

    def _measure(self, trial: Trial, attempt: Attempt, known: list[Link], chain: list[Link], *, first: bool) -> None:
        """Seconds to the first finished step of a restart, and finished steps that it had to make again."""
        fresh = chain[len(known) :]
        if first or not fresh:
            return
        trial.recovery.append(fresh[0].time - attempt.began)
        if known:
            trial.lost.append(max(0, known[-1].step - fresh[0].step + 1))


def _live(runs: Path, prepare: Prepare | None, work: Callable[[], int]) -> None:
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
        _say(f"refused: {type(error).__name__}: {error}".replace("\n", " / "))
        code = REFUSED
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        _say(traceback.format_exc())
    finally:
        os._exit(code)


def at_step(step: int, deed: Callable[[], object]) -> Prepare:
    """A trap: the deed is done just before a step is recorded."""

    def arm() -> None:
        inner = Recorder.step

        def record(self: Recorder, number: int, *rest: Any) -> None:
            if number == step:
                deed()
            inner(self, number, *rest)

        Recorder.step = record  # ty: ignore[invalid-assignment]

    return arm


def _say(text: str) -> None:
    os.write(2, text.encode(errors="backslashreplace") + b"\n")


def log_of(runs: Path) -> str:
    """The last thing that an attempt said."""
    lines = (runs / "log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    told = [line for line in lines if line.startswith("refused: ")]
    return told[-1] if told and lines[-1].strip() and not lines[-1].startswith("Trace") else " | ".join(lines[-4:])


def orphans(runs: Path, patience: float = 10.0) -> int:
    """Processes of a trial that are still alive a while after its own process was killed; they are ended then."""
    limit = time.monotonic() + patience
    while found := _marked(f"{TRIAL}={runs}".encode()):
        if time.monotonic() > limit:
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            break
        time.sleep(0.01)
    return len(found)


def _marked(mark: bytes) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                dead = (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
                if not dead and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def _mark(shared: mmap.mmap, owner: Any, name: str, number: int, byte: int = 0) -> None:
    """While the function runs, its phase stands in shared memory; nested ones win, and the outer one comes back."""
    inner = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        before, shared[byte] = shared[byte], number
        try:
            return inner(*args, **kwargs)
        finally:
            shared[byte] = before

    setattr(owner, name, call)
