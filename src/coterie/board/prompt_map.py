"""The map of prompts: their stored embeddings on two axes, and what came of each through the run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from coterie.board.region_pages import STEPS, spread
from coterie.board.rollout_pages import StepFiles
from coterie.runs import parquet, prompts
from coterie.runs.durable import json_loads
from coterie.runs.query import readable
from coterie.text import safe_text

MOST = 1500
"""Prompts on the map, evenly spread over those that were stored."""
FILES = 240
"""Step files of prompts that are read of a run that has more, evenly spread."""
COLUMNS = ("prompt_id", "task", "prompt", "embedding_kind", "embedding")
SNIPPET = 120
"""Characters of a prompt."""
MEANS = ("reward", "expected", "advantage", "past_pass")


def principal_plane(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along the two directions of largest variance: eigenvectors of the vectors' products, or of their
    columns' where those are fewer, which is many times faster than a singular value decomposition.

    The larger end of each axis is the one with the larger coordinate by absolute value, so that equal vectors give
    equal maps on every machine.

    Args:
        vectors: [P, E]

    Returns:
        [P, 2] coordinates, and [2] the share of the variance along each axis; zeros where there is no variance.
    """
    centred = np.asarray(vectors, dtype=np.float64) - np.mean(vectors, axis=0, dtype=np.float64)
    count, width = centred.shape
    tall = width <= count
    squares, directions = np.linalg.eigh(centred.T @ centred if tall else centred @ centred.T)
    kept = min(2, len(squares))
    squares, directions = np.maximum(squares[::-1][:kept], 0.0), directions[:, ::-1][:, :kept]
    places = np.zeros((count, 2))
    places[:, :kept] = centred @ directions if tall else directions * np.sqrt(squares)
    largest = places[np.argmax(np.abs(places), axis=0), np.arange(2)]
    places *= np.where(largest < 0, -1.0, 1.0)
    shares = np.zeros(2)
    total = float((centred**2).sum())
    if total > 0:
        shares[:kept] = squares / total
    return places, shares


def prompt_map(files: StepFiles, run: Path) -> dict[str, Any]:
    """Every prompt's place, and its visits: step, mean reward, expectation, advantage, pass rate before, and region.

    Returns:
        `prompts` (each with `x`, `y`, `task`, `text` and `visits`, lists of one value a visit), `regions` (names that
        visits point to by number), `steps`, `shares` of the variance along the axes, `kind` of the embedding,
        `left_out` prompts of those that were read, and `files`: how many were read of how many there are. No prompts
        where a run stored no embeddings.
    """
    stored = parquet.steps(run / "prompts")
    chosen = spread(stored, FILES)
    table, kind, left_out = _chosen(prompts.read_columns(run / "prompts", chosen, COLUMNS))
    empty: dict[str, Any] = {"prompts": [], "regions": [], "steps": [], "shares": [0.0, 0.0], "kind": kind}
    empty |= {"left_out": left_out, "files": [len(chosen), len(stored)]}
    if len(table) < 3:
        return empty
    places, shares = principal_plane(_vectors(table, len(table["embedding"][0])))
    steps = spread(parquet.steps(run / "rollouts"), STEPS)
    regions: dict[str, int] = {}
    visits = _visits(files, run, steps, regions, set(table["prompt_id"].to_pylist()))
    rows = table.select(["prompt_id", "task", "prompt"]).to_pylist()
    return empty | {
        "prompts": [
            {
                "id": row["prompt_id"],
                "task": safe_text(row["task"]),
                "text": _last_words(row["prompt"]),
                "x": round(float(place[0]), 5),
                "y": round(float(place[1]), 5),
                "visits": visits.get(row["prompt_id"], {}),
            }
            for row, place in zip(rows, places, strict=True)
        ],
        "regions": [safe_text(name) for name in regions],
        "steps": steps,
        "shares": [float(share) for share in shares],
    }


def _vectors(table: pa.Table, width: int) -> np.ndarray:
    """The embeddings as an array [P, width]."""
    return np.asarray(table["embedding"].combine_chunks().flatten(), dtype=np.float64).reshape(-1, width)


def _chosen(table: pa.Table) -> tuple[pa.Table, str, int]:
    """The prompts with an embedding of the most frequent kind, `MOST` at most; the kind, and how many are left out."""
    widths: Any = pc.call_function("list_value_length", [table["embedding"]])
    described = list(zip(table["embedding_kind"].to_pylist(), widths.to_pylist(), strict=True))
    kinds = Counter(described)
    if not kinds:
        return table, "", 0
    kind, width = kinds.most_common(1)[0][0]
    places = [place for place, facts in enumerate(described) if facts == (kind, width)] if width else []
    usable = np.isfinite(_vectors(table.take(places), width or 1)).all(axis=1)
    fits = np.array(places, dtype=np.int64)[usable].tolist()
    kept = spread(fits, MOST)
    return table.take(kept), str(kind), len(table) - len(kept)


def _visits(
    files: StepFiles, run: Path, steps: list[int], regions: dict[str, int], names: set[str]
) -> dict[str, dict[str, list[Any]]]:
    """Of each prompt its visits as columns; `regions` gets a number for each region that is met."""
    table = files.together(run / "rollouts", steps)
    with readable():
        table = table.filter(pc.field("prompt_id").isin(sorted(names)))
        measured = [(column, "mean") for column in MEANS]
        means = table.group_by(["step", "prompt_id", "region"], use_threads=False).aggregate(measured)
    visits: dict[str, dict[str, list[Any]]] = {}
    for row in means.to_pylist():
        region = row["region"]
        visit = visits.setdefault(row["prompt_id"], {key: [] for key in ("step", *MEANS, "region")})
        visit["step"].append(row["step"])
        for column in MEANS:
            visit[column].append(None if row[f"{column}_mean"] is None else round(row[f"{column}_mean"], 4))
        visit["region"].append(None if region is None else regions.setdefault(region, len(regions)))
    return visits


def _last_words(messages: str) -> str:
    """The beginning of a prompt's last message."""
    try:
        return safe_text(str(json_loads(messages)[-1]["content"])[:SNIPPET])
    except (ValueError, LookupError, TypeError):
        return ""
