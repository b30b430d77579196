"""Shared parts of all pictures. matplotlib is optional and imported only to draw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from coterie.runs.durable import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""Okabe and Ito's colours, which colour-blind readers can tell apart; grey last."""
INK, FAINT = "#333333", "#DDDDDD"


def canvas(width: float, height: float) -> Figure | None:
    """An empty figure of this size in inches, without a window; None where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def style_axis(axis: Axes, *, grid: Literal["both", "x", "y"] = "both") -> None:
    """Remove the frame at the top and right, and put a faint grid behind the curves."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(INK)
    axis.tick_params(colors=INK)
    axis.grid(axis=grid, color=FAINT, linewidth=0.8)
    axis.set_axisbelow(True)


def centred_mean(values: Sequence[float], span: int) -> list[float]:
    """Centred moving average over `span` (odd) values; near the ends over fewer, but as many on either side.

    A mean of the preceding values would lag behind the curve.

    >>> centred_mean([0.0, 3.0, 0.0, 3.0], 3)
    [0.0, 1.0, 2.0, 3.0]
    """
    halves = (min(span // 2, at, len(values) - 1 - at) for at in range(len(values)))
    return [sum(values[at - half : at + half + 1]) / (2 * half + 1) for at, half in enumerate(halves)]


def save(figure: Figure, file: Path) -> bool:
    """Write the picture, whole or not at all, and return True.

    Raises:
        RunError: the disk refused.
    """
    with replacing(file) as tmp:
        figure.savefig(tmp, format=file.suffix.removeprefix(".") or "png")
    return True
