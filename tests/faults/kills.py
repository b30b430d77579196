"""SIGKILL at every named point and at random moments, once or several times in a row."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

from faults.child import Prepare, log_of
from faults.harness import Harness, Trial
from faults.points import INTERRUPTED, WHILE_RESUMING, WHILE_TRAINING, Point, count_all, die_at


def at_points(
    harness: Harness, passes: int, *, stride: int = 1, first: int = 0, always: bool = False
) -> Iterator[Trial]:
    """Up to `passes` passes of every point (the first, the last, and some between), each in a run of its own.

    Args:
        stride: only every so manieth point, from the number `first` on.
        always: also those that are marked so.
    """

    def some(points: list[Point]) -> list[Point]:
        return [p for k, p in enumerate(points) if k % stride == first or (p.always and always)]

    for point, nth in chosen(harness, some(WHILE_TRAINING), None, "count", passes):
        yield reached(harness.trial(f"{point.name}, pass {nth}", [die_at(point, nth)]), 1)
    before = die_at(INTERRUPTED, 3)
    for point, nth in chosen(harness, some(WHILE_RESUMING), before, "count-resume", passes):
        yield reached(harness.trial(f"resume, {point.name}, pass {nth}", [before, die_at(point, nth)]), 2)


def chosen(
    harness: Harness, points: list[Point], first: Prepare | None, name: str, passes: int
) -> Iterator[tuple[Point, int]]:
    """Points with the passes to try, counted in a run that is left alone.

    Args:
        first: a trap for an attempt before it; what is counted is the resume.
    """
    runs = harness.root / name
    runs.mkdir(exist_ok=True)
    if first is not None:
        harness.wait(harness.start(runs, first))
    file = runs / "passes"
    done = harness.wait(harness.start(runs, count_all(points, str(file))))
    assert done.code == 0, f"the run that only counts failed: {log_of(runs)}"
    counted = Counter(map(int, file.read_text().split()))
    for index, point in enumerate(points):
        total = counted[index]
        if not total:
            raise AssertionError(f"the point {point.name!r} is never passed: it would prove nothing")
        chosen = {1 + round(k * (total - 1) / max(1, passes - 1)) for k in range(passes)}
        yield from ((point, nth) for nth in sorted(chosen))


def reached(trial: Trial, kills: int) -> Trial:
    """A point that was not reached is a failure: nothing was tried."""
    if trial.divergence is None and len(trial.deaths) != kills:
        trial.divergence = f"{len(trial.deaths)} of {kills} kills happened"
    return trial


def at_random(harness: Harness, count: int, seed: int) -> Iterator[Trial]:
    """Trials with one to three kills in a row at uniform moments, until `count` kills have happened."""
    draw = random.Random(seed)
    happened = number = 0
    while happened < count:
        number += 1
        row = [draw.choice([draw.random()] * 7 + [-draw.random()]) for _ in range(draw.choice([1, 1, 2, 3]))]
        trial = harness.trial(f"random {number}", row)
        happened += len(trial.deaths)
        yield trial
