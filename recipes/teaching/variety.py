"""How many different problems a run's held-out sheets have: each may be distinct in itself, and all of them the same.

python recipes/teaching/variety.py runs/teaching-0 runs/teaching-1 runs/teaching-2
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.parquet
import worksheet


def main(runs: list[str]) -> int:
    """Print a line for each evaluation of the runs; the exit code."""
    for run in runs:
        for file in sorted((Path(run) / "evals").glob("step_*.parquet")):
            texts = pyarrow.parquet.read_table(file, columns=["completion"])["completion"].to_pylist()
            print(f"{Path(run).name} {file.stem}: {variety(texts)}")
    return 0


def variety(texts: list[str]) -> str:
    """Number of sheets, of the problems in them, and of different ones, up to the order of what may be swapped."""
    problems = [line.pair for text in texts for line in worksheet.read(text, 1).lines if line]
    return f"{len(texts)} sheets, {len(problems)} problems, {len(set(problems))} different ones"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
