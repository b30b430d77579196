"""Seconds to a level of held-out accuracy: the arms of a sweep against its first arm, seed by seed.

python benchmarks/grouping/clock.py SWEEP --first ARM --levels 0.3 0.4 0.5 [--without TASK …] [--plot PICTURE.png]

Accuracy is pooled over the held-out tasks but those in `--without`, which are reported by themselves: what was solved
from the start. CPU seconds are those of training steps, so that other programs hardly matter. Between two evaluations
accuracy is taken to move in a straight line. A run that never reaches a level counts with the seconds that both arms
spent with that seed, which favours the slower arm.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coterie.board.figure import COLORS, canvas, save, style_axis
from coterie.runs.metrics import MetricsDB
from coterie.runs.timing import CPU, SEED
from coterie.stats import t_interval
from coterie.text import interval_text

DRAWS = 10_000
"""Of the bootstrap over seeds."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Evaluations of one run."""

    seconds: np.ndarray
    """[E] CPU seconds of training until each."""
    accuracy: np.ndarray
    """[E] pooled over the tasks that count."""
    others: np.ndarray
    """[E] pooled over the tasks that were left out; NaN without any."""

    def reached(self, level: float, limit: float) -> float:
        """Seconds until the accuracy first reaches the level, at most `limit`."""
        above = np.flatnonzero(self.accuracy[1:] >= level)
        if not above.size:
            return limit
        after = above[0] + 1
        low, high = self.accuracy[after - 1], self.accuracy[after]
        share = (level - low) / (high - low) if high > low else 1.0
        start, end = self.seconds[after - 1], self.seconds[after]
        return float(min(start + np.clip(share, 0.0, 1.0) * (end - start), limit))

    def area(self, limit: float) -> float:
        """Accuracy averaged over the first `limit` seconds."""
        xs = np.append(self.seconds[self.seconds < limit], limit)
        return float(np.trapezoid(np.interp(xs, self.seconds, self.accuracy), xs) / limit)


def read(run: Path, without: set[str]) -> Curve:
    """The curve of a run that recorded CPU seconds."""
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        evals, steps = database.evals(), database.series(f"{CPU}/step")
    points: dict[int, dict[bool, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for result in evals:
        if result.pass_at_1 is not None and result.task != "all":
            points[result.step][result.task in without].append((result.prompts, result.pass_at_1.value))

    def pooled(parts: list[tuple[int, float]]) -> float:
        return sum(n * value for n, value in parts) / sum(n for n, _ in parts) if parts else float("nan")

    order = sorted(points)
    return Curve(
        seconds=np.array([sum(value for at, value in steps if at <= step) for step in order]),
        accuracy=np.array([pooled(points[step][False]) for step in order]),
        others=np.array([pooled(points[step][True]) for step in order]),
    )


def ratio(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Ratio of mean seconds with its 95 % bootstrap interval over seeds, both arms of a seed together."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, ours.size, (DRAWS, ours.size))
    draws = ours[rows].mean(axis=1) / theirs[rows].mean(axis=1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return f"{ours.mean() / theirs.mean():.2f} [{low:.2f}, {high:.2f}]"


def report(curves: dict[str, dict[int, Curve]], first: str, levels: list[float]) -> str:
    """Markdown table of all arms."""
    lines = [
        f"| setting | seeds | at the end, % | more than `{first}` | area, % | more | others, before → after, % |"
        + "".join(f" CPU s to {100 * level:g} % | ratio | reached |" for level in levels),
        "| --- | --: | --- | --- | --- | --- | --- |" + " --: | --- | --: |" * len(levels),
    ]
    for arm, by_seed in curves.items():
        seeds = sorted(set(by_seed) & set(curves[first]))
        limit = {seed: min(curves[first][seed].seconds[-1], by_seed[seed].seconds[-1]) for seed in seeds}
        mine, theirs = [by_seed[seed] for seed in seeds], [curves[first][seed] for seed in seeds]
        ends = np.array(
            [[at(curve, limit[seed]) for curve, seed in zip(arms, seeds, strict=True)] for arms in (mine, theirs)]
        )
        areas = np.array([[c.area(limit[s]) for c, s in zip(arms, seeds, strict=True)] for arms in (mine, theirs)])
        cells = [f"`{arm}`", str(len(seeds))]
        for values in (ends, areas):
            more = None if arm == first else t_interval(values[0] - values[1])
            cells += [interval_text(t_interval(values[0]), 100, 1), interval_text(more, 100, 1, sign="+")]
        before, after = (np.mean([curve.others[k] for curve in mine]) for k in (0, -1))
        cells.append(f"{100 * before:.0f} → {100 * after:.0f}")
        for level in levels:
            spent = np.array(
                [[c.reached(level, limit[s]) for c, s in zip(arms, seeds, strict=True)] for arms in (mine, theirs)]
            )
            hits = sum(bool((curve.accuracy[1:] >= level).any()) for curve in mine)
            cells += [f"{spent[0].mean():.0f}", "–" if arm == first else ratio(*spent), f"{hits}/{len(seeds)}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def at(curve: Curve, seconds: float) -> float:
    """Accuracy after so many seconds."""
    return float(np.interp(seconds, curve.seconds, curve.accuracy))


def draw(file: Path, curves: dict[str, dict[int, Curve]]) -> None:
    """Accuracy over CPU seconds, mean over seeds with its 95 % interval."""
    figure = canvas(6.5, 4.2)
    if figure is None:
        return
    axis = figure.subplots()
    for color, (arm, by_seed) in zip(COLORS, curves.items(), strict=False):
        xs = np.linspace(0, min(curve.seconds[-1] for curve in by_seed.values()), 40)
        rows = np.array([np.interp(xs, curve.seconds, curve.accuracy) for curve in by_seed.values()])
        points = [t_interval(column) for column in rows.T]
        axis.plot(xs, [100 * point.value for point in points], color=color, label=f"{arm} (n = {len(rows)})")
        if len(rows) > 2:
            low, high = ([100 * getattr(point, end) for point in points] for end in ("low", "high"))
            axis.fill_between(xs, low, high, color=color, alpha=0.15, linewidth=0)
    axis.set_xlabel("CPU seconds of training")
    axis.set_ylabel("held-out accuracy, % (band: 95 %)")
    style_axis(axis)
    axis.legend(frameon=False)
    save(figure, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--first", required=True, help="arm that the others are compared with, as in the runs' names")
    parser.add_argument("--levels", type=float, nargs="+", required=True)
    parser.add_argument("--without", nargs="*", default=[], help="held-out tasks that are reported by themselves")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    curves: dict[str, dict[int, Curve]] = defaultdict(dict)
    for done in sorted((options.sweep / "runs").glob("*/done.json")):
        name = done.parent.name
        curves[SEED.sub("", name)][int(name.rpartition("-")[2])] = read(done.parent, set(options.without))
    if options.first not in curves:
        parser.error(f"no finished run of {options.first!r}; there are {', '.join(curves)}")
    print(report(dict(curves), options.first, options.levels))
    if options.plot:
        draw(options.plot, dict(curves))


if __name__ == "__main__":
    main()
