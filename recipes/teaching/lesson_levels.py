"""What held-out lessons earn part by part, for which grade their explanations are written, and what training changed.

python recipes/teaching/lesson_levels.py runs/lesson-0/reason runs/lesson-1/reason runs/lesson-2/reason

The interval of the change is a bootstrap over requests, of which each counts with its mean over the runs.

The reward uses one readability formula. A second one, Coleman and Liau's, is no part of it.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import lesson
import pyarrow.parquet

from coterie.stats import bootstrap_interval

WORKED = tuple(text for texts in lesson.EXPLANATIONS.values() for text in texts)


Rows = list[dict[str, Any]]


def main(runs: list[str]) -> int:
    """Print a few lines for each evaluation of the runs, and the change that they have in common; the exit code."""
    changes = []
    for run in runs:
        evaluations = [read(file) for file in sorted((Path(run) / "evals").glob("step_*.parquet"))]
        for number, rows in enumerate(evaluations, 1):
            print(f"{run}, evaluation {number}: {parts([row['reward_parts'] for row in rows])}")
            for operation in ("addition", "subtraction"):
                chosen = [row["reward_parts"] for row in rows if f"{operation} problem" in row["request"]]
                print(f"  {operation}: {len(chosen)} lessons, {parts(chosen)}")
            for grade in lesson.GRADES:
                chosen = [lesson.read(row["completion"]).explanation for row in rows if row["grade"] == grade]
                print(f"  grade {grade}: {levels(chosen)}")
        if len(evaluations) > 1:
            changes.append(change(evaluations[0], evaluations[-1]))
    if changes:
        mean_change = {request: mean(row[request] for row in changes) for request in changes[0]}
        value, low, high = (100 * x for x in bootstrap_interval(list(mean_change.values()), seed=0))
        print(f"perfect, last less first: {value:+.1f} points [{low:+.1f}, {high:+.1f}], {len(changes)} runs")
    return 0


def read(file: Path) -> Rows:
    """The attempts of an evaluation with their request, its grade and the parts of the reward."""
    rows = pyarrow.parquet.read_table(file, columns=["prompt", "completion", "reward_parts"]).to_pylist()
    for row in rows:
        row["reward_parts"] = json.loads(row["reward_parts"])
        row["request"] = json.loads(row["prompt"])[-1]["content"]
        row["grade"] = int(re.findall(r"for grade (\d+)\.", row["request"])[-1])
    return rows


def change(before: Rows, after: Rows) -> dict[str, float]:
    """Request → change of its share of perfect lessons between two evaluations."""
    shares = []
    for rows in (before, after):
        attempts = defaultdict(list)
        for row in rows:
            attempts[row["request"]].append(row["reward_parts"]["perfect"])
        shares.append({request: mean(values) for request, values in attempts.items()})
    return {request: shares[1][request] - share for request, share in shares[0].items()}


def parts(rewards: Sequence[dict[str, float]]) -> str:
    """Mean of each part in per cent."""
    return ", ".join(f"{name} {100 * mean(reward[name] for reward in rewards):.1f}" for name in rewards[0])


def levels(explanations: Sequence[str]) -> str:
    """Mean readability by two formulas, and how many of the explanations are different ones, and how
    many stand in a worked lesson, whatever the names."""
    readable = [text for text in explanations if len(text.split()) >= lesson.FEWEST_WORDS]
    if not readable:
        return f"{len(explanations)} lessons, none with an explanation"
    index = mean(lesson.level(text) for text in readable)
    second = mean(lesson.textstat.textstat.coleman_liau_index(text) for text in readable)
    near = {
        grade: sum(abs(lesson.level(text) - grade) <= lesson.NEAR for text in readable) / len(explanations)
        for grade in lesson.GRADES
    }
    shares = ", ".join(f"{100 * share:.0f} % for grade {grade}" for grade, share in near.items())
    forms = [form(text) for text in readable]
    worked = {form(text.format(thing="toys", first="Eva", second="Omar")) for text in WORKED}
    copies = sum(text in worked for text in forms)
    return (
        f"{len(explanations)} lessons, {shares}; index {index:.1f}, Coleman-Liau {second:.1f}; "
        f"{len(set(forms))} different explanations, {100 * copies / len(forms):.0f} % as in a worked lesson"
    )


def form(text: str) -> str:
    """An explanation without its numbers, people and things."""
    return re.sub(r"\d+|\b[A-Z]\w+\b|\b\w+s\b", "", text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
