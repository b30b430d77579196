"""How many of the held-out programs that pass the six hidden tests also pass sixty further ones.

python recipes/code/further.py runs/code-0 runs/code-1 runs/code-2
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import functions
import pyarrow.parquet

from coterie.rewards.programs import code

EDGES: dict[str, tuple[Any, ...]] = {
    "numbers": ([], [0], [-1], [-3, -5], [10], [5], [99], [100, 101], [12, 12], [-10, -15, 3]),
    "text": ("", " ", "a", "A", "7", "AEIOU", "aa", "B2b", "  x ", "zZ"),
    "words": (
        *([], ["a"], ["S"], ["sass"], ["Apple", "Apple"]),
        *(["four", "fours"], ["abc"], ["sun", "sun"], ["Salt"], ["tree"]),
    ),
}
"""Inputs that the hidden tests hardly have: nothing, a single item, no item or every item that meets the condition."""
DRAWN = 50


def further(row: dict[str, Any]) -> list[dict[str, str]]:
    """Tests of a function beyond its hidden ones: edges, and inputs drawn as theirs are."""
    family = row["setup"].split("(")[1].split(")")[0]
    draw = random.Random(f"further {row['function']}")
    inputs = [*EDGES[family], *(functions.draw_input(family, draw) for _ in range(DRAWN))]
    scope: dict[str, Any] = {}
    exec(row["answer"], scope)  # of the recipe's parts alone
    name = row["function"]
    return [{"call": f"{name}({value!r})", "expected": repr(scope[name](value))} for value in inputs]


def main(runs: list[str]) -> int:
    """Print a line for each evaluation of the runs; the exit code."""
    by_setup = {row["setup"].strip(): row for row in functions.rows("heldout")}
    for run in runs:
        for file in sorted((Path(run) / "evals").glob("step_*.parquet")):
            table = pyarrow.parquet.read_table(file, columns=["prompt", "completion", "reward_parts"]).to_pylist()
            passing = [record for record in table if json.loads(record["reward_parts"])["solved"] == 1]
            rows = [by_setup[_setup(record["prompt"])] for record in passing]
            columns = ([further(row) for row in rows], [row["setup"] for row in rows])
            kept = code([record["completion"] for record in passing], *columns, seconds=5.0)
            correct = sum(value == 1 for value in kept)
            print(
                f"{Path(run).name} {file.stem}: of {len(table)} programs {len(passing)} pass the hidden tests, "
                f"{correct} ({100 * correct / len(table):.1f} %) the further ones, too"
            )
    return 0


def _setup(prompt: str) -> str:
    """Head and docstring in a recorded prompt."""
    return json.loads(prompt)[-1]["content"].split("```python\n")[1].removesuffix("```").strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
