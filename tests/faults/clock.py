"""A wall clock that jumps by hours, backwards too, and another time zone in the middle of a run."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta, tzinfo

from coterie.runs import directory
from coterie.runs.inspect import summary
from coterie.runs.metrics import MetricsDB
from faults.cases import Case
from faults.harness import Harness
from faults.world import NAME, STEPS

JUMPS = (0, 3600, -3600, 86_400 * 400, -86_400 * 400)
"""Seconds; daylight saving, a clock that was set, a battery that was empty."""


def jumps(harness: Harness) -> Iterator[Case]:
    """Every look at the clock jumps: nothing but dates may depend on it."""
    runs = harness.folder("clock")
    problem = harness.unharmed(runs, _jumping)
    if problem is None:
        with closing(MetricsDB.reader(runs / NAME / "metrics.sqlite")) as database:
            metrics = {
                (step, name): value for step in range(STEPS + 1) for name, value in database.step_metrics(step).items()
            }
        negative = [key for key, value in metrics.items() if key[1].startswith(("time/", "speed/")) and value < 0]
        problem = f"negative durations: {negative}" if negative else None
        summary(runs / NAME)
    yield Case(section="clock", name="every look at the clock jumps", problem=problem)


def _jumping() -> None:
    real, offsets, zones = time.time, itertools.cycle(JUMPS), itertools.cycle(("UTC", "Pacific/Apia", "America/Adak"))

    def jumped() -> float:
        os.environ["TZ"] = next(zones)
        time.tzset()
        return real() + next(offsets)

    class Jumping(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Jumping:
            return super().now(tz) + timedelta(seconds=next(offsets))

    time.time = jumped  # ty: ignore[invalid-assignment]
    directory.datetime = Jumping  # ty: ignore[invalid-assignment]
