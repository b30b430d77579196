"""A growth curve as a picture: seconds and memory, each with its ideal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from coterie.board.figure import COLORS, INK, canvas, save, style_axis

if TYPE_CHECKING:
    from benchmarks.peers.growth import Curve, Point


_COLORS = dict(zip(("generate", "update", "peak"), COLORS, strict=False))
_MIB = 1 << 20


def draw(
    file: Path, curve: Curve, points: Sequence[Point], ideal: Callable[[Sequence[Point], str], list[float]]
) -> bool:
    """Write the PNG; False without matplotlib."""
    figure = canvas(9, 3.8)
    if figure is None:
        return False
    time, memory = figure.subplots(1, 2)
    xs = [point.x for point in points]
    for axis, names, scale in ((time, ("generate", "update"), 1), (memory, ("peak",), _MIB)):
        for name in names:
            axis.plot(
                xs,
                [getattr(point, name) / scale for point in points],
                "o-",
                color=_COLORS[name],
                label=name,
                markersize=4,
            )
            ideals = [value / scale for value in ideal(points, name)]
            axis.plot(xs, ideals, "--", color=_COLORS[name], alpha=0.6, linewidth=1, label=f"{name}, ideal")
        axis.set_xlabel(curve.axis)
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        style_axis(axis)
        axis.legend(frameon=False, fontsize=8)
    memory.plot(xs, [point.loaded / _MIB for point in points], ":", color=INK, linewidth=1)
    time.set_ylabel("seconds")
    memory.set_ylabel("peak memory, MiB (dotted: before the step)")
    figure.suptitle(curve.title, fontsize=11, x=0.012, ha="left")
    return save(figure, file)
