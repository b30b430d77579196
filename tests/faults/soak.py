"""A run of many steps that is killed again and again, and one that is left alone and watched: nothing may grow."""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from coterie import launch
from coterie.train.grpo import Trainer
from coterie.train.step import StepResult
from faults.cases import Case
from faults.child import log_of, orphans
from faults.harness import Attempt, Harness
from faults.world import NAME, divergence, end_state, read_chain, settings

EVERY, KEEP = 4, 2
GROWTH = 8.0
"""MiB that a process may be larger in the last quarter of the run than in the second; a short run is still filling its
caches."""
LONG = 100
"""Steps from which memory is judged."""
SPARE = 2
"""File descriptors or threads that may come and go."""


def soak(harness: Harness, steps: int, seed: int) -> Iterator[Case]:
    """The same run twice: left alone, then killed every few steps until it is done.

    Args:
        steps: of the run.
    """
    alone = harness.folder("soak alone")
    watched = alone / "watched"
    done = harness.wait(harness.start(alone, lambda: _watch(watched), lambda: _go_on(harness, alone, steps)))
    if done.code != 0:
        yield Case(section="soak", name="left alone", problem=f"exit code {done.code}: {log_of(alone)}")
        return
    facts, problem = _flat([json.loads(line) for line in watched.read_text().splitlines()])
    yield Case(section="soak", name="nothing grows", problem=problem, facts={"steps": steps, **facts})
    golden = {link.step: link.hash for link in read_chain(alone / "chain")}
    runs = harness.folder("soak killed")
    kills, left, last = _killed(harness, runs, steps, random.Random(seed))
    problem = f"exit code {last.code}: {log_of(runs)}" if last.code else None
    problem = problem or divergence(golden, end_state(alone / NAME), read_chain(runs / "chain"), runs / NAME)
    problem = problem or (f"{left} processes outlived their run" if left else None)
    yield Case(section="soak", name="killed every few steps", problem=problem, facts={"steps": steps, "kills": kills})


def _go_on(harness: Harness, runs: Path, steps: int) -> int:
    if (runs / NAME / "config.toml").exists():
        launch.resume(NAME, runs=runs)
    else:
        often = {"checkpoint": {"every": EVERY, "keep": KEEP}, "eval": {"samples": 1, "k": 1, "every": 5 * EVERY}}
        launch.train(settings(harness.world, runs, steps=steps, **often))
    return 0


def _killed(harness: Harness, runs: Path, steps: int, draw: random.Random) -> tuple[int, int, Attempt]:
    """Kills, processes that outlived them, and the attempt that came to the end."""
    kills = left = 0
    while True:
        done = len(read_chain(runs / "chain"))
        more = draw.randint(EVERY + 1, 3 * EVERY)  # at least one checkpoint further each time, so it ends
        attempt = harness.start(runs, None, lambda: _go_on(harness, runs, steps))
        while len(read_chain(runs / "chain")) < done + more:
            if os.waitid(os.P_PID, attempt.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                return kills, left, harness.wait(attempt)
            time.sleep(0.002)
        time.sleep(draw.random() * 0.05)
        os.kill(attempt.pid, signal.SIGKILL)
        if harness.wait(attempt).code != -signal.SIGKILL:
            return kills, left, attempt
        kills += 1
        left += orphans(runs)


def _watch(file: Path) -> None:
    """From now on, each step of this process appends what the process holds."""
    inner = Trainer.record

    def record(self: Trainer, result: StepResult) -> None:
        inner(self, result)
        run = self.recorder.run.path
        usage = {
            "mib": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20,
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": len(os.listdir("/proc/self/task")),
            "children": len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()),
            "leftovers": sum(1 for _ in run.rglob(".tmp-*")),
            "checkpoints": len(list((run / "checkpoints").iterdir())),
        }
        with file.open("a") as out:
            out.write(json.dumps(usage) + "\n")

    Trainer.record = record


def _flat(rows: list[dict[str, float]]) -> tuple[dict[str, float], str | None]:
    """Growth between the second and the last quarter, and what is wrong with it."""
    quarter = max(1, len(rows) // 4)
    facts: dict[str, float] = {}
    problem = None
    for name in rows[0]:
        before, after = (
            statistics.median(row[name] for row in part) for part in (rows[quarter:][:quarter], rows[-quarter:])
        )
        facts[name] = round(after - before, 2)
        if after - before > (SPARE if name != "mib" else GROWTH if len(rows) >= LONG else float("inf")):
            problem = f"{name} grew from {before:g} to {after:g}"
    if max(row["leftovers"] for row in rows) > 0 or max(row["checkpoints"] for row in rows) > KEEP:
        problem = problem or "temporary files or old checkpoints stay"
    return facts, problem
