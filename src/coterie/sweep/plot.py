"""A sweep as a picture: learning curves with their spread, and what depends on a varied number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coterie.algo.statistics import t_interval
from coterie.runs.pictures import COLORS, canvas, dress, save
from coterie.sweep.result import CellResult
from coterie.sweep.table import by_setting, over_seeds

STYLES = ("-", "--", ":", "-.")
SMOOTH = 5
"""Steps of the moving average that is drawn."""


def draw(file: Path, results: Sequence[CellResult], numeric: str | None) -> bool:
    """Write the picture.

    Args:
        numeric: a varied setting whose values are numbers: what depends on it is drawn beside the curves.

    Returns:
        False without matplotlib, or without results.
    """
    figure = canvas(11 if numeric else 7, 4.2)
    if figure is None or not results:
        return False
    axes = figure.subplots(1, 2 if numeric else 1, squeeze=False)[0]
    _curves(axes[0], by_setting(results))
    if numeric:
        _dependence(axes[1], results, numeric)
    return save(figure, file)


def _curves(axis: Any, settings: Mapping[str, Sequence[CellResult]]) -> None:
    for index, (label, found) in enumerate(settings.items()):
        color, style = COLORS[index % len(COLORS)], STYLES[index // len(COLORS) % len(STYLES)]
        length = min((len(one.rewards) for one in found if not one.error), default=0)
        if not length:
            continue
        width = min(SMOOTH, length)
        kernel = np.ones(width) / width
        smooth = [np.convolve(one.rewards[:length], kernel, "valid") for one in found if not one.error]
        points = [t_interval(column) for column in np.array(smooth).T]
        steps = np.arange(width, length + 1)
        axis.plot(steps, [point.value for point in points], style, color=color, label=f"{label} (n = {len(smooth)})")
        if len(smooth) > 1:
            low, high = [point.low for point in points], [point.high for point in points]
            axis.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
    axis.set_xlabel("step")
    axis.set_ylabel(f"training reward, mean of {SMOOTH} steps (band: 95 % over seeds)")
    dress(axis)
    axis.legend(frameon=False, fontsize=8)


def _dependence(axis: Any, results: Sequence[CellResult], numeric: str) -> None:
    """Held-out accuracy after training (reward where there is none) against the varied number."""
    lines: dict[str, dict[float, list[CellResult]]] = {}
    for one in results:
        words = [f"{key}={value}" for key, value in one.cell.choice if key != numeric]
        rest = " ".join([*filter(None, [one.cell.arm]), *words])
        number = float(dict(one.cell.choice)[numeric])
        lines.setdefault(rest or "as it is", {}).setdefault(number, []).append(one)
    for index, (label, found) in enumerate(lines.items()):
        xs = sorted(found)
        points = [over_seeds(found[x], lambda one: one.area if one.after is None else one.after) for x in xs]
        kept = [(x, point) for x, point in zip(xs, points, strict=True) if point is not None]
        values = [point.value for _, point in kept]
        low = [point.value - point.low for _, point in kept]
        high = [point.high - point.value for _, point in kept]
        color = COLORS[index % len(COLORS)]
        axis.errorbar([x for x, _ in kept], values, [low, high], fmt="o-", color=color, capsize=3, label=label)
    axis.set_xscale("log")
    axis.set_xlabel(numeric)
    axis.set_ylabel("held-out pass@1 after training (bars: 95 % over seeds)")
    axis.set_ylim(bottom=0)
    dress(axis)
    axis.legend(frameon=False, fontsize=8)
