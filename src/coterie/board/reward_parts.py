"""Parts of the reward beside each other: how they go together over the rollouts of early and of late steps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from coterie.board.region_pages import spread
from coterie.board.rollout_pages import read
from coterie.errors import RunError
from coterie.runs import parquet
from coterie.runs.durable import json_loads
from coterie.stats import correlation

STEPS = 12
"""Steps that are read of either third of the run."""
MOST = 12
"""Parts, those that come first."""


def parts_together(run: Path) -> dict[str, Any]:
    """Correlations between the parts of the reward, over the rollouts of the first and of the last third of the steps.

    Returns:
        `parts`, and `pairs` with `first`, `second`, and for `early` and `late` the `correlation` (None where it has no
        meaning) over `rollouts` that both parts apply to.
    """
    steps = parquet.steps(run / "rollouts")
    third = max(1, len(steps) // 3)
    thirds = {"early": spread(steps[:third], STEPS), "late": spread(steps[-third:], STEPS)}
    rows = {name: _rows(run, chosen) for name, chosen in thirds.items()}
    parts = list(dict.fromkeys(label for scores in rows.values() for score in scores for label in score))[:MOST]
    pairs = []
    for first, second in combinations(parts, 2):
        pair: dict[str, Any] = {"first": first, "second": second}
        for name, scores in rows.items():
            columns = [[score.get(part) for score in scores] for part in (first, second)]
            value = correlation(*columns)
            pair[name] = {
                "correlation": None if value is None else round(value, 4),
                "rollouts": sum(None not in values for values in zip(*columns, strict=True)),
            }
        pairs.append(pair)
    return {"parts": parts, "pairs": pairs, "steps": {name: [min(s), max(s)] for name, s in thirds.items() if s}}


def _rows(run: Path, steps: Sequence[int]) -> list[dict[str, float | None]]:
    """The parts of every rollout of the steps; none of a step whose file is damaged."""
    scores: list[dict[str, float | None]] = []
    read_before: dict[str | None, dict[str, float | None]] = {}  # many rollouts have the same parts
    for step in steps:
        try:
            table = read(parquet.path_of(run / "rollouts", step), ["reward_parts"])
        except RunError:
            continue  # the page of rollouts names it
        for text in table["reward_parts"].to_pylist():
            score = read_before.get(text)
            if score is None:
                score = read_before[text] = _score(text)
            if score:
                scores.append(score)
    return scores


def _score(text: str | None) -> dict[str, float | None]:
    try:
        score = json_loads(text or "{}")
    except ValueError:
        return {}
    score = score if isinstance(score, dict) else {}
    return {part: value if isinstance(value, int | float) else None for part, value in score.items()}
