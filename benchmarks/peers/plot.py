"""The ratios as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.peers.summary import lines
from benchmarks.peers.tables import NAMES
from coterie.board.figure import COLORS, INK, canvas, save, style_axis

_COLORS = dict(zip(("trl", "vllm"), COLORS, strict=False))


def draw(results: dict[str, Any], path: Path) -> bool:
    """Bars of how many times better coterie did, with the range over the rounds; False without matplotlib or data."""
    bars = [
        (f"{result['case']['name']}: {line.what}, {line.unit}", peer, ratio)
        for result in results["cases"]
        for line in lines(result)
        if line.what != "update, same rollouts" or line.unit == "s"
        for peer, ratio in line.better.items()
    ]
    figure = canvas(9, 1.2 + 0.3 * len(bars))
    if figure is None or not bars:
        return False
    from matplotlib.patches import Patch

    axis = figure.subplots()
    style_axis(axis, grid="x")
    places = range(len(bars))
    middles = [ratio.median for _, _, ratio in bars]
    errors = [[r.median - r.low for _, _, r in bars], [r.high - r.median for _, _, r in bars]]
    axis.barh(places, middles, xerr=errors, color=[_COLORS[peer] for _, peer, _ in bars], height=0.7, ecolor=INK)
    axis.set_yticks(places, [label for label, _, _ in bars])
    axis.invert_yaxis()
    axis.axvline(1.0, color=INK, linewidth=0.8)
    axis.set_xlabel("times better than the peer (1 = the same); bar: median, line: lowest to highest round")
    peers = dict.fromkeys(peer for _, peer, _ in bars)
    axis.legend(handles=[Patch(color=_COLORS[peer], label=NAMES[peer]) for peer in peers], frameon=False)
    return save(figure, path)
