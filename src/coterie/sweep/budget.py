"""Settings compared at what all of them could spend: the same rollouts, the same seconds of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from coterie.stats import t_interval
from coterie.sweep.results import CellResult, EvalPoint
from coterie.text import interval_text
from coterie.types import PASS

LEAST = 3
"""Evaluations without which a run has no curve to speak of."""

Cost = Callable[[EvalPoint], float]
COSTS: Mapping[str, Cost] = {"rollouts": lambda point: point.rollouts, "seconds": lambda point: point.seconds}
"""What an evaluation had cost until then; seconds are those of training steps."""

NOTE = (
    "Held-out {metric}, averaged over what every run could spend, so that it counts how much was learned how "
    "early; differences{points} seed by seed. Seconds are those of training steps. Means with Student's 95 % "
    "interval."
)


def mean_result(held: Sequence[EvalPoint], cost: Cost, limit: float) -> float:
    """The held-out result (pass@1 or mean reward), averaged over the first `limit` rollouts or seconds: how much was
    learned how early.

    Between two evaluations the result is taken to move in a straight line.
    """
    spent = np.array([cost(point) for point in held], dtype=np.float64)
    values = np.array([point.value for point in held], dtype=np.float64)
    inside = spent < limit
    xs = np.append(spent[inside], limit)
    return float(np.trapezoid(np.interp(xs, spent, values), xs) / limit)


def markdown(settings: Mapping[str, Sequence[CellResult]]) -> str:
    """A table that compares every setting with the first, seed by seed; empty where there is nothing to compare.

    Runs that failed, or that were evaluated less than three times, take no part.
    """
    curves = {
        label: {one.cell.seed: one.held for one in found if not one.error and len(one.held) >= LEAST}
        for label, found in settings.items()
    }
    curves = {label: found for label, found in curves.items() if found}
    if len(curves) < 2:
        return ""
    limits = {
        name: min(cost(held[-1]) for found in curves.values() for held in found.values())
        for name, cost in COSTS.items()
    }
    first = next(iter(curves))
    metric = next(one.metric for found in settings.values() for one in found)
    scale, digits = (100, 1) if metric == PASS else (1, 3)
    head = " | ".join(f"first {limits[name]:.0f} {name} | more than `{first}`" for name in COSTS)
    lines = [f"| setting | seeds | {head} |", "| --- | --: | --- | --- | --- | --- |"]
    means = {
        name: {
            label: {seed: mean_result(held, cost, limits[name]) for seed, held in found.items()}
            for label, found in curves.items()
        }
        for name, cost in COSTS.items()
    }
    for label, found in curves.items():
        cells = [f"`{label}`", str(len(found))]
        for by_label in means.values():
            own, beside = by_label[label], by_label[first]
            more = [own[seed] - beside[seed] for seed in own if seed in beside and label != first]
            cells.append(interval_text(t_interval(list(own.values())), scale, digits))
            cells.append(interval_text(t_interval(more) if more else None, scale, digits, sign="+"))
        lines.append("| " + " | ".join(cells) + " |")
    words = ("accuracy in %", " in points,") if metric == PASS else ("reward", "")
    return "\n".join(lines) + f"\n\n{NOTE.format(metric=words[0], points=words[1])}\n"
