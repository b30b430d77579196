"""What a run's held-out lessons earn part by part, and for which grade their explanations are written.

python recipes/teaching/lesson_levels.py runs/lesson/cold runs/lesson/reason

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

import lesson
import pyarrow.parquet

WORKED = tuple(text for texts in lesson.EXPLANATIONS.values() for text in texts)


def main(runs: list[str]) -> int:
    """Print a few lines for each evaluation of the runs; the exit code."""
    for run in runs:
        for file in sorted((Path(run) / "evals").glob("step_*.parquet")):
            columns = ["prompt", "completion", "reward_parts"]
            rows = pyarrow.parquet.read_table(file, columns=columns).to_pylist()
            print(f"{Path(run).name} {file.stem}: {parts([json.loads(row['reward_parts']) for row in rows])}")
            texts = defaultdict(list)
            for row in rows:
                grade = re.findall(r"for grade (\d+)\.", json.loads(row["prompt"])[-1]["content"])[-1]
                texts[int(grade)].append(lesson.read(row["completion"]).explanation)
            for grade, explanations in sorted(texts.items()):
                print(f"  grade {grade}: {levels(explanations)}")
    return 0


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
