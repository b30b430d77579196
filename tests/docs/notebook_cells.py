"""Code cells of a notebook, run in order; `python tests/docs/notebook_cells.py` stores what they show.

Without Jupyter: a cell's last expression is its result, and what a cell prints is its stream.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coterie.runs.durable import write_file

TOUR = Path(__file__).parents[2] / "docs/tour.ipynb"


def code_cells(file: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The notebook, and its code cells."""
    notebook = json.loads(file.read_text(encoding="utf-8"))
    return notebook, [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run_cells(cells: list[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Of each cell what it printed and its result, in one namespace."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells:
        body = ast.parse("".join(cell["source"])).body
        last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(ast.Module(body, []), "<cell>", "exec"), namespace)
            value = None if last is None else eval(compile(ast.Expression(last.value), "<cell>", "eval"), namespace)
        yield printed.getvalue(), value


def outputs(printed: str, value: Any, number: int) -> list[dict[str, Any]]:
    """What a cell showed, as a notebook stores it."""
    shown: list[dict[str, Any]] = []
    if printed:
        shown.append({"output_type": "stream", "name": "stdout", "text": printed.splitlines(keepends=True)})
    if value is not None:
        data = {"text/plain": repr(value).splitlines(keepends=True)}
        if hasattr(value, "_repr_html_"):
            data["text/html"] = value._repr_html_().splitlines(keepends=True)
        shown.append({"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": data})
    return shown


def main(file: Path = TOUR) -> None:
    """Run the notebook and store its outputs."""
    notebook, cells = code_cells(file)
    for number, (cell, (printed, value)) in enumerate(zip(cells, run_cells(cells), strict=True), start=1):
        cell["execution_count"], cell["outputs"] = number, outputs(printed, value, number)
        print(f"cell {number}: {len(printed)} characters printed, {type(value).__name__}", file=sys.stderr)
    write_file(file, (json.dumps(notebook, indent=1, ensure_ascii=False) + "\n").encode())


if __name__ == "__main__":
    main()
