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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tqdm

from coterie import launch
from coterie.build import reading, run
from coterie.callbacks import Callback
from coterie.policy.learner import Learner
from coterie.rewards.pool import Scorer
from coterie.rollout.collector import Collector
from coterie.runs import checkpoint, directory
from coterie.train.evaluate import Evaluator
from coterie.train.grpo import Trainer
from coterie.train.recorder import Recorder
from faults.child import REFUSED, Prepare, live, log_of, orphans
from faults.world import NAME, Link, divergence, end_state, make_world, read_chain, settings

Hooks = list[tuple[Any, str]]
"""Functions, each by its owner and its name."""
PHASES: dict[str, Hooks] = {
    "set-up": [],
    "rollout": [(Collector, "collect")],
    "reward": [(Scorer, "score")],
    "update": [(Learner, "update")],
    "store": [(Recorder, "step"), (Recorder, "evaluation")],
    "evaluation": [(Evaluator, "evaluate")],
    "checkpoint": [(Recorder, "checkpoint")],
    "clean-up": [(checkpoint, "prune"), (directory, "remove_leftovers")],
    "resume": [(launch, "_restore")],
    "report": [(launch, "report_run")],
}
"""What a process is doing → the functions that do it."""
LOOPS: Hooks = [(Trainer, "run")]
"""The functions of a run that are its loop; what comes before is its start."""
PATIENCE = 600.0
"""Seconds after which an attempt counts as hung."""


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
        changed: sections of the settings that are others than usual.
        phases: what else a process may be doing.
        loops: the functions that are a run's loop.
        sizes: of the model that are others than usual.
    """

    def __init__(
        self,
        root: Path,
        changed: Mapping[str, Any] | None = None,
        phases: Mapping[str, Hooks] | None = None,
        loops: Hooks = LOOPS,
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        self.root, self.changed = root, dict(changed or {})
        self.phases, self.loops = {**PHASES, **(phases or {})}, loops
        self.world = root / "world"
        tqdm.tqdm.monitor_interval = 0  # no thread of its own: a fork of a process with threads may hang
        make_world(self.world, **(sizes or {}))
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
        config = settings(self.world, self.root / "unused", **self.changed)
        run.use_threads(config)
        inputs = reading.read_inputs(config, Callback())
        run.policy_for(config, inputs)
        for owner, name in self.loops:
            _mark(self.phase, owner, name, 1, byte=1)
        for number, hooks in enumerate(self.phases.values()):
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
        self.looping = max(self.looping, done.seconds - self.starting)
        chain = read_chain(runs / "chain")
        return {link.step: link.hash for link in chain}, self.state(runs / NAME)

    def state(self, run: Path) -> dict[str, str]:
        """Name → hash of all that a finished run leaves."""
        return end_state(run)

    def differs(self, runs: Path) -> str | None:
        """How the run in this folder differs from the golden one, or None."""
        return divergence(self.golden, self.end, read_chain(runs / "chain"), runs / NAME, self.state)

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
            os.chdir(self.world)  # there may be several harnesses
            live(runs, prepare, work or (lambda: self.go_on(runs)))
        return Attempt(pid=pid, began=began)

    def go_on(self, runs: Path) -> int:
        """Train, or resume what there is; the exit code."""
        if (runs / NAME / "config.toml").exists():
            launch.resume(NAME, runs=runs)
        else:
            launch.train(settings(self.world, runs, **self.changed))
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
        attempt.phase = list(self.phases)[self.phase[0]]
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
        return self.differs(runs)

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
            chain = read_chain(file)
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
            self._measure(trial, attempt, chain, read_chain(file), first=death is deaths[0])
        chain = read_chain(file)
        last = self.wait(self.start(runs))
        if last.code != 0:
            trial.divergence = f"could not go on, exit code {last.code}: {log_of(runs)}"
            return trial
        self._measure(trial, last, chain, read_chain(file), first=not deaths)
        trial.divergence = self.differs(runs)
        if trial.divergence is None:
            shutil.rmtree(runs)
        return trial

    def _measure(self, trial: Trial, attempt: Attempt, earlier: list[Link], chain: list[Link], *, first: bool) -> None:
        """Seconds to the first finished step of a restart, and finished steps that it had to make again."""
        fresh = chain[len(earlier) :]
        if first or not fresh:
            return
        trial.recovery.append(fresh[0].time - attempt.began)
        if earlier:
            trial.lost.append(max(0, earlier[-1].step - fresh[0].step + 1))


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
