"""Comparison of settings at an equal budget of rollouts or of seconds of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from coterie.stats import t_interval
from coterie.sweep.results import CellResult, EvalPoint
from coterie.text import interval_text
from coterie.types import PASS

LEAST = 3
"""Fewest evaluations of a run that is compared."""

Cost = Callable[[EvalPoint], float | None]
COSTS: Mapping[str, Cost] = {
    "rollouts": lambda point: point.rollouts,
    "seconds": lambda point: point.seconds,
    "CPU seconds": lambda point: point.cpu_seconds,
}
"""Costs until an evaluation, by name; seconds are those of training steps. A cost that a run did not record is left out
of the comparison."""

NOTE = (
    "Held-out {metric}, averaged over what every run could spend, so that it counts how much was learned how "
    "early; differences{points} seed by seed. Seconds are those of training steps. Means with Student's 95 % "
    "interval."
)


def mean_result(evals: Sequence[EvalPoint], cost: Cost, limit: float) -> float:
    """Held-out result (pass@1 or mean reward) averaged over the first `limit` rollouts or seconds: the area under the
    learning curve, divided by `limit`.

    Between two evaluations the result is taken to move in a straight line.
    """
    spent = np.array([cost(point) for point in evals], dtype=np.float64)
    values = np.array([point.value for point in evals], dtype=np.float64)
    inside = spent < limit
    xs = np.append(spent[inside], limit)
    return float(np.trapezoid(np.interp(xs, spent, values), xs) / limit)


def markdown(settings: Mapping[str, Sequence[CellResult]]) -> str:
    """Markdown table that compares every setting with the first, seed by seed; empty for a single setting.

    Runs that failed, or that were evaluated less than three times, take no part.
    """
    curves = {
        label: {result.cell.seed: result.evals for result in results if not result.error and len(result.evals) >= LEAST}
        for label, results in settings.items()
    }
    curves = {label: by_seed for label, by_seed in curves.items() if by_seed}
    if len(curves) < 2:
        return ""
    ends = [evals[-1] for by_seed in curves.values() for evals in by_seed.values()]
    spent = {name: [value for end in ends if (value := cost(end)) is not None] for name, cost in COSTS.items()}
    limits = {name: min(values) for name, values in spent.items() if len(values) == len(ends)}
    first = next(iter(curves))
    metric = next(result.metric for results in settings.values() for result in results)
    scale, digits = (100, 1) if metric == PASS else (1, 3)
    head = " | ".join(f"first {limits[name]:.0f} {name} | more than `{first}`" for name in limits)
    lines = [f"| setting | seeds | {head} |", "| --- | --: |" + " --- | --- |" * len(limits)]
    means = {
        name: {
            label: {seed: mean_result(evals, COSTS[name], limit) for seed, evals in by_seed.items()}
            for label, by_seed in curves.items()
        }
        for name, limit in limits.items()
    }
    for label, by_seed in curves.items():
        cells = [f"`{label}`", str(len(by_seed))]
        for by_label in means.values():
            areas, baseline = by_label[label], by_label[first]
            more = [areas[seed] - baseline[seed] for seed in areas if seed in baseline and label != first]
            cells.append(interval_text(t_interval(list(areas.values())), scale, digits))
            cells.append(interval_text(t_interval(more) if more else None, scale, digits, sign="+"))
        lines.append("| " + " | ".join(cells) + " |")
    words = ("accuracy in %", " in points,") if metric == PASS else ("reward", "")
    return "\n".join(lines) + f"\n\n{NOTE.format(metric=words[0], points=words[1])}\n"
