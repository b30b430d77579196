"""Writes what a sweep found: table, picture, numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from coterie.runs.durable import json_dumps, write_file
from coterie.sweep import budget
from coterie.sweep.grid import Cell
from coterie.sweep.plot import draw
from coterie.sweep.result import CellResult, read
from coterie.sweep.table import by_setting, markdown


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
    write_file(out / "sweep-results.json", json_dumps([one.numbers() for one in results]).encode())
    numeric = next((key for key, values in vary.items() if len(values) > 1 and all(map(_is_number, values))), None)
    draw(out / "sweep.png", results, numeric)
    return results, text


def _is_number(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False
