"""Engine services that are killed, hang, or lose their run: every run must be the golden one, made in one process.

Runs with a lag and on two learner ranks have golden runs of their own.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from coterie.build import services
from coterie.cluster import engine_service
from coterie.cluster.engine_pool import EnginePool
from coterie.cluster.frames import Frames
from coterie.cluster.hosts import ChildService, Host, WeightMemory
from coterie.config.schema import RunConfig
from coterie.train.recorder import Recorder
from faults.cases import Case, of_trial
from faults.child import REFUSED, Prepare, log_of
from faults.harness import Harness
from faults.kills import at_random, chosen, reached
from faults.points import INTERRUPTED, RANK_LOST, RESUMING_A_LAG, WITH_A_LAG, Point, die_at, do_at
from faults.world import NAME

CLUSTER = {"host": "processes", "timeout_s": 60.0, "restarts": 1000}
PAUSE_S = 0.25
"""Mean time between two kills at random moments."""


def losses(harness: Harness, kills: int, passes: Sequence[int], seed: int, *, whole: bool) -> Iterator[Case]:
    """Services lost at these passes and at random moments, until `kills` have happened.

    Args:
        whole: also what takes processes of their own, which start for seconds.
    """
    before, host = harness.changed, services.host_for
    try:
        harness.changed = {**before, "cluster": CLUSTER}
        yield unharmed(harness, "a service in a process of its own, killed at pass 20", at_pass(20, kill))
        if whole:
            for trial in at_random(harness, max(4, kills // 8), seed):
                yield of_trial("services", replace(trial, name=f"the run is killed, {trial.name}"))
        services.host_for = _forks  # ty: ignore[invalid-assignment]
        for number in passes:
            yield unharmed(harness, f"killed at pass {number}", at_pass(number, kill))
        yield from random_kills(harness, kills, seed, _murderous)
        yield _too_often(harness)
        harness.changed["cluster"] = CLUSTER | {"timeout_s": 0.5}
        for number in passes[:: max(1, len(passes) // 4)]:
            yield unharmed(harness, f"frozen at pass {number}", at_pass(number, freeze))
    finally:
        harness.changed, services.host_for = before, host


def with_a_lag(root: Path, kills: int, passes: Sequence[int], points: int, seed: int) -> Iterator[Case]:
    """Runs with `engine.lag = 1`: killed at named points and at random moments, and their services killed.

    Args:
        points: every so manieth point is tried.
    """
    host = services.host_for
    services.host_for = _forks  # ty: ignore[invalid-assignment]
    try:
        harness = Harness(root, {"cluster": CLUSTER, "engine": {"max_num_seqs": 4, "lag": 1}})
        for point, nth in chosen(harness, WITH_A_LAG[::points], None, "count", min(2, len(passes))):
            trial = reached(harness.trial(f"lag, {point.name}, pass {nth}", [die_at(point, nth)]), 1)
            yield of_trial("services", replace(trial, name=f"lag: killed, {point.name}, pass {nth}"))
        before = die_at(INTERRUPTED, 4)
        for point, nth in chosen(harness, RESUMING_A_LAG[::points], before, "count-resume", 1):
            trial = reached(harness.trial(f"lag, resume, {point.name}", [before, die_at(point, nth)]), 2)
            yield of_trial("services", replace(trial, name=f"lag: killed twice, {point.name}"))
        for trial in at_random(harness, kills, seed):
            yield of_trial("services", replace(trial, name=f"lag: {trial.name}"))
        for number in passes:
            yield unharmed(harness, f"lag: service killed at pass {number}", at_pass(number, kill))
    finally:
        services.host_for = host


def on_ranks(root: Path, points: int) -> Iterator[Case]:
    """Runs on two learner ranks of which the second is killed: they end by a named error, and go on."""
    host = services.host_for
    services.host_for = _forks  # ty: ignore[invalid-assignment]
    try:
        harness = Harness(root, {"cluster": {**CLUSTER, "learners": 2, "threads": 1}})
        for point in RANK_LOST[::points]:
            yield _rank_lost(harness, point)
    finally:
        services.host_for = host


def _rank_lost(harness: Harness, point: Point) -> Case:
    name = f"learner rank 1 killed, {point.when} in rank 0: {point.name}"
    runs = harness.folder(f"rank {point.name}")
    kill = partial(_kill_fork, "learner-1")
    first = harness.wait(harness.start(runs, do_at(point, 3 if point.when == "after" else 1, kill)))
    log = log_of(runs)
    if first.code != REFUSED or "learner rank 1" not in log:
        return Case(section="services", name=name, problem=f"exit code {first.code}: {log}")
    return Case(section="services", name=name, problem=harness.goes_on(runs), facts={"rank_kills": 1})


def _kill_fork(name: str) -> None:
    os.kill(ForkHost.pids[name], signal.SIGKILL)


def _forks(config: RunConfig, recorder: Recorder | None, names: Sequence[str], **options: Any) -> Host:
    return ForkHost()


def kill(service: ChildService) -> None:
    """SIGKILL."""
    os.kill(service.process.pid, signal.SIGKILL)


def freeze(service: ChildService) -> None:
    """SIGSTOP: it hangs."""
    os.kill(service.process.pid, signal.SIGSTOP)


def at_pass(number: int, deed: Callable[[ChildService], None]) -> Prepare:
    """A trap: in the run's pass of that number, the service has been asked and has not answered."""

    def act(count: int, service: ChildService) -> None:
        if count == number:
            deed(service)

    return after_messages(act)


def after_messages(deed: Callable[[int, ChildService], None]) -> Prepare:
    """A trap: a deed after each message to a service, by its number from 1 on."""

    def arm() -> None:
        inner, messages = EnginePool._post, 0

        def post(self: EnginePool, member: Any, *args: Any, **options: Any) -> None:
            nonlocal messages
            inner(self, member, *args, **options)
            messages += 1
            deed(messages, member.service)

        EnginePool._post = post

    return arm


def unharmed(harness: Harness, name: str, trap: Prepare, section: str = "services") -> Case:
    """A run in spite of a trap that loses a service."""
    runs = harness.folder(f"services {name}")
    problem = harness.unharmed(runs, trap)
    told = sum("a new one makes its" in log.read_text() for log in (runs / NAME / "logs").glob("attempt_*.log"))
    return Case(section=section, name=name, problem=problem or (None if told else "no service was lost"))


def random_kills(
    harness: Harness, kills: int, seed: int, trap: Callable[[Path, str], Prepare], section: str = "services"
) -> Iterator[Case]:
    """Runs whose services are killed every now and then, until `kills` have happened.

    Args:
        trap: of a file to which it adds a byte for each kill, and a seed.
    """
    happened = number = 0
    while happened < kills:
        number += 1
        runs = harness.folder(f"services random {number}")
        done = harness.wait(harness.start(runs, trap(runs / "kills", f"{seed} {number}")))
        problem = f"exit code {done.code}: {log_of(runs)}" if done.code else None
        problem = problem or harness.differs(runs)
        count = (runs / "kills").stat().st_size if (runs / "kills").exists() else 0
        happened += count
        yield Case(section=section, name=f"services, random {number}", problem=problem, facts={"service_kills": count})
        if number > 10 * kills:
            raise AssertionError("services are hardly ever killed: it would prove nothing")


def _murderous(file: Path, seed: str) -> Prepare:
    def arm() -> None:
        inner, pids, draw, over = EnginePool._start, [0], random.Random(seed), threading.Event()

        def start(self: EnginePool, member: Any) -> None:
            inner(self, member)
            pids[0] = member.service.process.pid

        def murder() -> None:
            while not over.wait(draw.expovariate(1 / PAUSE_S)):
                with suppress(ProcessLookupError):
                    if pids[0]:
                        os.kill(pids[0], signal.SIGKILL)
                        with file.open("ab") as kills:
                            kills.write(b".")
                pids[0] = 0

        EnginePool._start = start
        threading.Thread(target=murder, daemon=True).start()

    return arm


def _too_often(harness: Harness) -> Case:
    """The run ends by a named error, and goes on from its checkpoint."""
    harness.changed["cluster"] = CLUSTER | {"restarts": 1}
    runs, name = harness.folder("services too often"), "lost again and again"

    def act(count: int, service: ChildService) -> None:
        if count > 20:
            kill(service)

    first = harness.wait(harness.start(runs, after_messages(act)))
    log = log_of(runs)
    if first.code != REFUSED or "cluster.restarts allows 1" not in log:
        return Case(section="services", name=name, problem=f"exit code {first.code}: {log}")
    return Case(section="services", name=name, problem=harness.goes_on(runs))


class ForkHost(Host):
    """Services that are forks of this process, which has loaded all they need: they start in no time."""

    pids: ClassVar[dict[str, int]] = {}
    """Of the newest fork of each name."""

    def start(self, name: str, order: Mapping[str, Any], memory: WeightMemory | None = None) -> ChildService:
        ours, theirs = socket.socketpair()
        parent, pid = os.getpid(), os.fork()
        if pid == 0:
            try:
                os.setpgid(0, 0)
                kept = {0, 1, 2, theirs.fileno(), *(() if memory is None else memory.files)}
                for number in map(int, os.listdir("/proc/self/fd")):
                    if number not in kept:
                        with suppress(OSError):
                            os.close(number)  # above all the run's lock
                engine_service.main(theirs.fileno(), parent)
            finally:
                os._exit(0)
        theirs.close()
        self.pids[name] = pid
        process: Any = Fork(pid)
        service = ChildService(name=name, process=process, frames=Frames(ours), output=open(os.devnull, "rb"))  # noqa: SIM115
        service.send(order, 60.0)
        return service


@dataclass
class Fork:
    """What is used of `subprocess.Popen`."""

    pid: int
    code: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Of a process that has ended, or is about to."""
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code
