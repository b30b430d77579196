"""Wait policy of the compute threads, switched while a process runs: spinning alone, sleeping beside busy programs.

The threads of a matrix product meet at a barrier after it. On a quiet machine a thread that arrives early should spin:
waking a sleeping one takes longer than most products. Beside a busy program it should sleep: it spins on the core that
the late thread, which the scheduler has set aside, waits for. GNU OpenMP reads its environment once, so the policy
cannot be changed through it; but it spins for 100 rounds instead of 300,000 as long as its threads outnumber the
processors (`gomp_throttled_spin_count_var`; libgomp/env.c, libgomp/config/linux/wait.h). Threads that only exist make
it do so. The number of threads that compute, and with it every sum, stays what it is.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import torch

from coterie import machine

PERIOD = 0.1
"""Seconds between two looks."""
BUSY, QUIET = 0.3, 0.1
"""Seconds a second that the threads, taken together, wait for a processor: above the first others want the processors,
under the second nobody does. Measured on two cores: 0.005 alone, 0.7 beside one busy program, 0.5 there once threads
sleep."""
PATIENCE = 10
"""Quiet looks after which threads spin again."""

_TASKS = Path("/proc/self/task")
_ELEMENTS = 1 << 20
"""Of a sum that torch divides among all threads."""


def processor_wait() -> float | None:
    """Seconds that the living threads of this process were ready to run and had no processor, since they started,
    summed over the threads; None where the system does not say. Of Linux's schedstat."""
    total, counted = 0, False
    try:
        tasks = os.listdir(_TASKS)
    except OSError:
        return None
    for task in tasks:
        try:
            total += int((_TASKS / task / "schedstat").read_text().split()[1])
            counted = True
        except (OSError, IndexError, ValueError):  # the thread ended; or the kernel keeps no such file
            continue
    return total / 1e9 if counted else None


def waited_since(start: float | None) -> float:
    """Seconds of `processor_wait` since it was `start`; 0 where the system does not say."""
    now = processor_wait()
    return 0.0 if now is None or start is None else max(0.0, now - start)


class Contention:
    """Decides from looks at `processor_wait` whether others want the processors; with hysteresis, so that the gaps
    between short programs do not count as quiet."""

    def __init__(self) -> None:
        self.busy = False
        self._quiet_looks = 0

    def look(self, share: float) -> bool:
        """True if others want the processors.

        Args:
            share: seconds of waiting a second since the last look, summed over the threads.
        """
        if share > BUSY:
            self.busy, self._quiet_looks = True, 0
        elif share < QUIET:
            self._quiet_looks += 1
            self.busy = self.busy and self._quiet_looks < PATIENCE
        else:
            self._quiet_looks = 0
        return self.busy


class IdleThreads:
    """OpenMP threads that do nothing but exist: one or more teams, each parked after a first sum.

    Args:
        teams: how many; see `teams_needed`.
    """

    def __init__(self, teams: int) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._park, daemon=True, name="idle") for _ in range(teams)]
        for thread in self._threads:
            thread.start()

    def _park(self) -> None:
        torch.ones(_ELEMENTS).add_(1)  # makes a team of this thread's own, of as many threads as torch uses
        self._stop.wait()

    def end(self) -> None:
        """End them; their teams end with them."""
        self._stop.set()
        for thread in self._threads:
            thread.join()


def teams_needed(count: int, processors: int) -> int:
    """Idle teams of `count` threads with which OpenMP has more threads than processors; a team's first is not counted.

    >>> teams_needed(2, 2), teams_needed(8, 16), teams_needed(1, 2)
    (1, 2, 0)
    """
    return 0 if count < 2 else max(0, processors - count) // (count - 1) + 1


class WaitPolicy:
    """Thread that looks and switches, from `start` on for as long as the process lives."""

    def __init__(self) -> None:
        self.sleeps = False
        """Idle compute threads sleep at once; else they spin."""
        self.switches = 0
        """Times that it changed."""
        self._contention = Contention()
        self._idle: IdleThreads | None = None
        self._watch: threading.Thread | None = None

    def start(self) -> None:
        """Begin to look, where there is anything to switch: more than one thread, GNU OpenMP, and no wait policy in the
        environment. Calling it again changes nothing."""
        if self._watch is None and torch.get_num_threads() > 1 and machine.adapts() and processor_wait() is not None:
            self._watch = threading.Thread(target=self._run, daemon=True, name="wait policy")
            self._watch.start()

    def switch(self, sleeps: bool) -> None:
        """Let idle threads sleep, or spin."""
        if sleeps and self._idle is None:
            processors = len(os.sched_getaffinity(0))
            self._idle = IdleThreads(teams_needed(torch.get_num_threads(), processors))
        elif not sleeps and self._idle is not None:
            self._idle.end()
            self._idle = None
        self.switches += sleeps != self.sleeps
        self.sleeps = sleeps

    def _run(self) -> None:
        waited, looked = processor_wait(), time.monotonic()
        while True:
            time.sleep(PERIOD)
            now, total = time.monotonic(), processor_wait()
            if total is None or waited is None:
                return
            # The total falls when threads end, whose waiting it no longer counts.
            share = max(0.0, total - waited) / (now - looked)
            waited, looked = total, now
            sleeps = self._contention.look(share)
            if sleeps != self.sleeps:
                self.switch(sleeps)


WAIT_POLICY = WaitPolicy()
"""That of this process."""
