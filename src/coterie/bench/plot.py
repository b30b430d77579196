"""The ratios as a picture. matplotlib is imported here only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coterie.bench.summary import lines
from coterie.bench.tables import NAMES

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLORS = {"trl": "#0072B2", "vllm": "#D55E00"}


def draw(found: dict[str, Any], path: Path) -> bool:
    """Bars of how many times better coterie did, with the range over the rounds; False without matplotlib or data."""
    bars = [
        (f"{result['case']['name']}: {line.what}, {line.unit}", peer, ratio)
        for result in found["cases"]
        for line in lines(result)
        if line.what != "update, same rollouts" or line.unit == "s"
        for peer, ratio in line.better.items()
    ]
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError:
        return False
    if not bars:
        return False
    figure = Figure(figsize=(9, 1.2 + 0.3 * len(bars)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    places = range(len(bars))
    middles = [ratio.median for _, _, ratio in bars]
    errors = [[r.median - r.low for _, _, r in bars], [r.high - r.median for _, _, r in bars]]
    axis.barh(places, middles, xerr=errors, color=[_COLORS[peer] for _, peer, _ in bars], height=0.7, ecolor="#333333")
    axis.set_yticks(places, [label for label, _, _ in bars])
    axis.invert_yaxis()
    axis.axvline(1.0, color="#333333", linewidth=0.8)
    axis.set_xlabel("times better than the peer (1 = the same); bar: median, line: lowest to highest round")
    peers = dict.fromkeys(peer for _, peer, _ in bars)
    axis.legend(handles=[Patch(color=_COLORS[peer], label=NAMES[peer]) for peer in peers], frameon=False)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    figure.savefig(path)
    return True
