"""Differences between the stages of a pipeline over several seeds: the mean of the seeds, paired by held-out prompt.

python recipes/differences.py cold reason runs/research-0 runs/research-1 runs/research-2
python recipes/differences.py first last runs/composed-0 runs/composed-1 runs/composed-2

Of single runs, `first` and `last` are their evaluations.
"""

from __future__ import annotations

import sys
from pathlib import Path

from coterie.runs.inspect import compare_items
from coterie.runs.metrics import EvalItem, MetricsDB
from coterie.stages.records import read_record
from coterie.text import difference_text
from coterie.types import PASS, POOLED


def main(before: str, after: str, folders: list[str]) -> int:
    """Print a line for each evaluation that both stages have in all of the folders; the exit code."""
    stages = [[_items(Path(folder), stage) for folder in folders] for stage in (before, after)]
    for name in sorted(set.intersection(*(set(items) for seeds in stages for items in seeds))):
        first, second = (_over_seeds([items[name] for items in seeds]) for seeds in stages)
        test = compare_items(first, second, PASS)
        if test is not None:
            change = difference_text(PASS, test)
            shares = f"{_share(first):.1f} → {_share(second):.1f} %"
            print(f"{name} ({test.prompts} prompts, {len(folders)} seeds): {shares}, {change}")
    return 0


def _items(folder: Path, stage: str) -> dict[str, list[EvalItem]]:
    """Evaluation → its held-out prompts, of one stage of one pipeline; task → those of one evaluation of a run."""
    database = folder / "metrics.sqlite"
    if database.is_file():
        return _items_of_run(database, {"first": 0, "last": -1}[stage])
    record = read_record(folder, stage)
    measured = record.evaluations if record is not None and record.evaluations else {}
    return {name: [EvalItem(**item) for item in facts.get("items", ())] for name, facts in measured.items()}


def _items_of_run(file: Path, place: int) -> dict[str, list[EvalItem]]:
    """Task, or `POOLED` for all of them, → its held-out prompts, of the evaluation at this place."""
    with MetricsDB.reader(file) as database:
        step = sorted({result.step for result in database.evals()})[place]
        items = {POOLED: database.eval_items(step)}
    for item in items[POOLED]:
        items.setdefault(item.task, []).append(item)
    return items


def _over_seeds(seeds: list[list[EvalItem]]) -> list[EvalItem]:
    """One item a prompt, with the attempts of all seeds."""
    counts: dict[tuple[str, str], tuple[int, int]] = {}
    for item in (item for items in seeds for item in items):
        correct, samples = counts.get((item.task, item.prompt_id), (0, 0))
        counts[item.task, item.prompt_id] = (correct + item.correct, samples + item.samples)
    return [EvalItem(task=task, prompt_id=name, correct=c, samples=n) for (task, name), (c, n) in counts.items()]


def _share(items: list[EvalItem]) -> float:
    return 100 * sum(item.correct for item in items) / sum(item.samples for item in items)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
