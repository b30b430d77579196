"""Where the seconds of runs went: means over their steps, by part, from the recorded metrics."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from coterie.errors import RunError
from coterie.phases import EMBED, STEP
from coterie.runs.metrics import MetricsDB

COUNTS = (("rollouts", "rollouts"), ("tokens/generated", "sampled tokens"), ("tokens/trained", "trained tokens"))
CPU = "time/cpu"
"""Family of the metrics of CPU seconds."""
SEED = re.compile(r"--seed-\d+$")
"""End of the names of a sweep's runs, behind the arm's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Means over the steps of one run, or of all seeds of an arm."""

    name: str
    folder: Path
    """That the runs are in."""
    runs: int
    steps: int
    """Over which the means are taken, in all."""
    seconds: dict[str, float]
    """Part → seconds a step; only what was recorded."""
    cpu_seconds: dict[str, float]
    """The same on the processors, over all threads of the process."""
    counts: dict[str, float]
    """Heading of `COUNTS` → number a step."""

    def spent(self) -> dict[tuple[str, ...], float]:
        """Seconds a step by path, see `coterie.phases.PATHS`."""
        return STEP.spent(self.seconds) | EMBED.spent(self.seconds)

    def cpu_spent(self) -> dict[tuple[str, ...], float]:
        """CPU seconds a step by path; empty for a run that recorded none."""
        return STEP.spent(self.cpu_seconds) | EMBED.spent(self.cpu_seconds)


def run_timing(run: Path, skip: int) -> Timing:
    """The timing of one run.

    Args:
        skip: first steps that are left out: they set things up.

    Raises:
        RunError: no step after those was recorded.
    """
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        series = database.all_series()
    measured = {name: [value for step, value in points if step > skip] for name, points in series.items()}
    steps = len(measured.get("time/step", ()))
    if not steps:
        raise RunError(f"{run} has no timing: no step after step {skip} was recorded; train longer, or lower --skip")

    def by_part(family: str) -> dict[str, float]:
        return {
            part: sum(measured[name]) / steps
            for part in (*STEP.names(), *EMBED.names())
            if measured.get(name := f"{family}/{part}")
        }

    return Timing(
        name=run.name,
        folder=run.parent,
        runs=1,
        steps=steps,
        seconds=by_part("time"),
        cpu_seconds=by_part(CPU),
        counts={heading: sum(measured[name]) / steps for name, heading in COUNTS if measured.get(name)},
    )


def arms(timings: Sequence[Timing]) -> list[Timing]:
    """Runs of a sweep that differ in the seed alone, taken together; others stay as they are, and those of two folders
    apart: where their names are the same, each has its folder before it."""
    by_arm: dict[tuple[Path, str], list[Timing]] = {}
    for timing in timings:
        by_arm.setdefault((timing.folder, SEED.sub("", timing.name)), []).append(timing)
    merged = [members[0] if len(members) == 1 else _together(name, members) for (_, name), members in by_arm.items()]
    counts = Counter(timing.name for timing in merged)
    return [
        timing if counts[timing.name] == 1 else replace(timing, name=str(timing.folder / timing.name))
        for timing in merged
    ]


def _together(name: str, members: Sequence[Timing]) -> Timing:
    steps = sum(member.steps for member in members)

    def mean(column: str) -> dict[str, float]:
        keys = dict.fromkeys(key for member in members for key in getattr(member, column))
        return {key: sum(getattr(m, column).get(key, 0.0) * m.steps for m in members) / steps for key in keys}

    return Timing(
        name=name,
        folder=members[0].folder,
        runs=len(members),
        steps=steps,
        seconds=mean("seconds"),
        cpu_seconds=mean("cpu_seconds"),
        counts=mean("counts"),
    )
