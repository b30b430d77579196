"""Report of a sweep: its files, and a picture of learning curves and of the result by a varied number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from coterie.board.figure import COLORS, canvas, centred_mean, save, style_axis
from coterie.runs.durable import json_dumps, write_file
from coterie.stats import t_interval
from coterie.sweep import budget
from coterie.sweep.grid import Cell
from coterie.sweep.results import CellResult, by_setting, markdown, over_seeds, read

STYLES = ("-", "--", ":", "-.")
MAX_INSIDE = 6
"""Most settings whose legend is inside a panel; a longer one is below it."""
SMOOTH = 5
"""Steps of the centred moving average that is drawn; odd."""


def draw(file: Path, results: Sequence[CellResult], numeric: str | None) -> bool:
    """Write the picture of a sweep.

    Args:
        numeric: a varied setting with numbers as values; the result is drawn against it, beside the curves.

    Returns:
        False without matplotlib, or without results.
    """
    settings = by_setting(results)
    panels: list[Callable[[Any], None]] = [partial(_curves, settings=settings)]
    if any(len(result.evals) > 2 for result in results):
        panels.append(partial(_heldout, settings=settings))
    if numeric:
        panels.append(partial(_dependence, results=results, numeric=numeric))
    figure = canvas(2.5 + 4.5 * len(panels), 4.2 + (0.12 * len(settings) if len(settings) > MAX_INSIDE else 0.0))
    if figure is None or not results:
        return False
    for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        panel(axis)
        style_axis(axis)
        labels = axis.get_legend_handles_labels()[1]
        if not labels:
            continue  # one line, whose varied setting is the axis
        crowded = len(labels) > MAX_INSIDE
        place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14), "ncols": 2} if crowded else {}
        axis.legend(frameon=False, fontsize=8, **place)
    return save(figure, file)


def _curves(axis: Any, settings: Mapping[str, Sequence[CellResult]]) -> None:
    low = top = 0.0
    for (label, results), (color, style) in zip(settings.items(), _line_styles(), strict=False):
        length = min((len(result.rewards) for result in results if not result.error), default=0)
        if not length:
            continue
        smooth = [centred_mean(result.rewards[:length], SMOOTH) for result in results if not result.error]
        _band(axis, np.arange(1, length + 1), np.array(smooth), label, color, style)
        top = max(top, float(np.max(smooth)))
        low = min(low, float(np.min(smooth)))
    # The interval of a few seeds may be far wider than anything that was measured.
    axis.set_ylim(1.05 * low, 1.05 * top or 1.0)
    axis.set_xlabel("step")
    axis.locator_params(axis="x", integer=True)
    axis.set_ylabel(f"training reward, {SMOOTH}-step mean (band: 95 %)")


def _heldout(axis: Any, settings: Mapping[str, Sequence[CellResult]]) -> None:
    """Held-out results against rollouts, since a step may sample more in one setting than in another."""
    low = top = 0.0
    for (label, results), (color, style) in zip(settings.items(), _line_styles(), strict=False):
        whole = [result.evals for result in results if not result.error]
        count = min(map(len, whole), default=0)
        if count:
            spent = np.mean([[point.rollouts for point in evals[:count]] for evals in whole], axis=0)
            values = np.array([[point.value for point in evals[:count]] for evals in whole])
            _band(axis, spent, values, label, color, style)
            top, low = max(top, float(values.max())), min(low, float(values.min()))
    axis.set_xlabel("rollouts sampled")
    axis.set_ylabel(f"held-out {_metric(settings)} (band: 95 %)")
    axis.set_ylim(1.05 * low, 1.05 * top or 1.0)


def _metric(settings: Mapping[str, Sequence[CellResult]]) -> str:
    """Metric of the sweep, the same for all results."""
    return next(result.metric for results in settings.values() for result in results)


def _line_styles() -> Iterator[tuple[str, str]]:
    """Endless cycle of (color, line style), the same for a setting in every panel."""
    return cycle((color, style) for style in STYLES for color in COLORS)


def _band(axis: Any, xs: np.ndarray, curves: np.ndarray, label: str, color: str, style: str) -> None:
    """Mean over seeds of curves [seeds, x], with its interval from three seeds on."""
    points = [t_interval(column) for column in curves.T]
    axis.plot(xs, [point.value for point in points], style, color=color, label=f"{label} (n = {len(curves)})")
    if len(curves) > 2:
        low, high = [point.low for point in points], [point.high for point in points]
        axis.fill_between(xs, low, high, color=color, alpha=0.15, linewidth=0)


def _dependence(axis: Any, results: Sequence[CellResult], numeric: str) -> None:
    """Held-out result after training (training reward where there is none) against the varied number."""
    lines: dict[str, dict[float, list[CellResult]]] = {}
    for result in results:
        words = [f"{key}={value}" for key, value in result.cell.choice if key != numeric]
        rest = " ".join([*filter(None, [result.cell.arm]), *words])
        number = float(dict(result.cell.choice)[numeric])
        lines.setdefault(rest, {}).setdefault(number, []).append(result)
    for index, (label, by_value) in enumerate(lines.items()):
        xs = sorted(by_value)
        points = [over_seeds(by_value[x], _outcome) for x in xs]
        kept = [(x, point) for x, point in zip(xs, points, strict=True) if point is not None]
        values = [point.value for _, point in kept]
        low = [point.value - point.low for _, point in kept]
        high = [point.high - point.value for _, point in kept]
        color = COLORS[index % len(COLORS)]
        axis.errorbar([x for x, _ in kept], values, [low, high], fmt="o-", color=color, capsize=3, label=label or None)
    axis.set_xscale("log")
    axis.set_xlabel(numeric)
    axis.set_ylabel(f"held-out {results[0].metric} at the end (bars: 95 %)")
    if not any(_outcome(result) < 0 for result in results):
        axis.set_ylim(bottom=0)


def _outcome(result: CellResult) -> float:
    """Held-out result after training, or the mean training reward where there is none."""
    return result.area if result.after is None else result.after


def write(
    out: Path, cells: Sequence[Cell], vary: Mapping[str, Sequence[str]], reach: float | None = None
) -> tuple[list[CellResult], str]:
    """`sweep.md`, `sweep-results.json` and `sweep.png` in the folder; returns the results and the table.

    Args:
        reach: held-out result (pass@1, or the reward where it is graded) of which the table says when it was reached.
    """
    results = read(out, cells)
    text = "\n".join(filter(None, [markdown(results, reach), budget.markdown(by_setting(results))]))
    write_file(out / "sweep.md", text.encode())
    write_file(out / "sweep-results.json", json_dumps([result.numbers() for result in results]).encode())
    numeric = next((key for key, values in vary.items() if len(values) > 1 and all(map(_is_number, values))), None)
    draw(out / "sweep.png", results, numeric)
    return results, text


def _is_number(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False
