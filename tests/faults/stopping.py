"""Signals, and two processes on one run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from coterie.cli.main import main
from coterie.train.recorder import Recorder
from coterie.train.step import StepResult
from faults.cases import Case
from faults.child import REFUSED, log_of, orphans
from faults.harness import Attempt, Harness
from faults.world import read_chain, settings_file


def signals(harness: Harness, few: int = 1) -> Iterator[Case]:
    """SIGTERM and Ctrl-C finish the step and leave with the shell's code for them; a second one leaves at once."""
    for number in (signal.SIGTERM, signal.SIGINT):
        for step in (3, 1)[: 2 // few]:
            yield _asked(harness, f"{signal.Signals(number).name} in step {step}", step, [number], 128 + number)
    for pair in ([signal.SIGINT, signal.SIGINT], [signal.SIGTERM, signal.SIGINT]):
        names = " then ".join(signal.Signals(number).name for number in pair)
        yield _asked(harness, f"{names} in step 3", 3, pair, 130)
    yield _asked(harness, "SIGHUP in step 3", 3, [signal.SIGHUP], -signal.SIGHUP)


def _asked(harness: Harness, name: str, step: int, numbers: list[signal.Signals], code: int) -> Case:
    """Send signals from outside while a step is being recorded, through the program's own `main`."""
    runs = harness.folder(name)
    ready = runs / "ready"

    def wait_for_signals(self: Recorder, result: StepResult, metrics: Mapping[str, float]) -> None:
        if result.step == step:
            ready.touch()
            time.sleep(0.5)
            for _ in range(1000):
                if (runs / "sent").exists():
                    break
                time.sleep(0.01)
        recorded(self, result, metrics)

    recorded = Recorder.step

    def trap() -> None:
        Recorder.step = wait_for_signals

    attempt = harness.start(runs, trap, lambda: main(["train", "@", str(settings_file(harness.world, runs))]))
    while not ready.exists() and os.waitid(os.P_PID, attempt.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.005)
    asked = time.monotonic()
    for number in numbers:
        os.kill(attempt.pid, number)
        time.sleep(0.1)
    (runs / "sent").touch()
    harness.wait(attempt)
    facts = {"stop_s": round(time.monotonic() - asked, 3)}
    if attempt.code != code:
        return Case(section="stop", name=name, problem=f"exit code {attempt.code}, expected {code}: {log_of(runs)}")
    left = orphans(runs)
    if left:
        return Case(section="stop", name=name, problem=f"{left} processes are left")
    last = harness.wait(harness.start(runs))
    problem = log_of(runs) if last.code else _difference(harness, runs, name, stopped=len(numbers) == 1 and code > 0)
    return Case(section="stop", name=name, problem=problem, facts=facts)


def _difference(harness: Harness, runs: Any, name: str, *, stopped: bool) -> str | None:
    """A run that was asked to stop has one checkpoint more, at the step where it stopped; the rest is golden."""
    difference = harness.differs(runs)
    return None if stopped and difference is not None and difference.startswith("checkpoints: ") else difference


def two_at_once(harness: Harness) -> Iterator[Case]:
    """A second process is refused by the id of the first, which goes on unharmed."""
    runs = harness.folder("two processes")
    first = harness.start(runs)
    while len(read_chain(runs / "chain")) < 2:
        time.sleep(0.005)
    os.kill(first.pid, signal.SIGSTOP)
    for name, work in (
        ("a second resume", None),
        ("a second train", lambda: _train_again(harness, runs)),
    ):
        second = harness.wait(harness.start(runs, None, work))
        log = log_of(runs)
        told = f"process {first.pid}" in log or (work is not None and "exists" in log)
        problem = None if second.code == REFUSED and told else f"exit code {second.code}: {log}"
        yield Case(section="stop", name=name, problem=problem)
    os.kill(first.pid, signal.SIGCONT)
    harness.wait(first)
    problem = harness.differs(runs)
    yield Case(section="stop", name="the first of two processes", problem=problem)


def _train_again(harness: Harness, runs: Any) -> int:
    from coterie import launch
    from faults.world import settings

    launch.train(settings(harness.world, runs))
    return 0


def frozen(harness: Harness) -> Iterator[Case]:
    """Stopped for a while and let go on (a laptop that slept)."""
    runs = harness.folder("frozen")
    attempt = harness.start(runs)
    pause: Callable[[Attempt, int], None] = lambda process, number: os.kill(process.pid, number)  # noqa: E731
    for steps in (1, 2, 3):
        while len(read_chain(runs / "chain")) < steps and attempt.code is None:
            time.sleep(0.005)
        pause(attempt, signal.SIGSTOP)
        time.sleep(0.3)
        pause(attempt, signal.SIGCONT)
    harness.wait(attempt)
    problem = harness.differs(runs)
    yield Case(section="stop", name="frozen three times", problem=problem)
