"""Prompts near a prompt, by the embeddings that the runs stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from coterie.errors import RunError


@dataclass(frozen=True, slots=True, eq=False)
class Similar:
    """The nearest prompts."""

    found: Mapping[tuple[str, str], float]
    """(run, prompt id) → cosine, 1 for the prompt itself."""

    def where(self) -> pc.Expression:
        """Their rollouts, and perhaps others of the same ids in another run, which `mark` drops."""
        return ds.field("prompt_id").isin(sorted({name for _, name in self.found}))

    def mark(self, table: pa.Table, column: str) -> pa.Table:
        """The rows of these prompts, with their similarity in a new column."""
        keys = zip(table["run"].to_pylist(), table["prompt_id"].to_pylist(), strict=True)
        marks = pa.array([self.found.get(key) for key in keys], pa.float64())
        return table.append_column(column, marks).filter(ds.field(column).is_valid())


def nearest(prompts: pa.Table, name: str, count: int) -> Similar:
    """The `count` prompts nearest to `name` in each run that has it, by cosine.

    Only embeddings of the same kind are compared. A policy's are centred first: all its hidden states share a large
    common part, beside which what tells prompts apart is small.

    Args:
        prompts: `Stored.prompts`.

    Raises:
        RunError: no run stored such a prompt.
    """
    ids = prompts["prompt_id"].to_pylist()
    if name not in ids:
        near = get_close_matches(name, dict.fromkeys(ids), n=3) or list(dict.fromkeys(ids))[:3]
        there = f"the nearest names are {', '.join(near)}" if near else "these runs stored no prompts at all"
        raise RunError(f"no prompt {name!r} was stored with an embedding; {there}")
    found: dict[tuple[str, str], float] = {}
    for run in dict.fromkeys(prompts["run"].to_pylist()):
        own = prompts.filter(ds.field("run") == run)
        mine = own.filter(ds.field("prompt_id") == name)
        if len(mine):
            found |= {(run, other): value for other, value in _in_run(own, mine, count)}
    return Similar(found)


def _in_run(own: pa.Table, mine: pa.Table, count: int) -> list[tuple[str, float]]:
    kind, width = mine["embedding_kind"][0].as_py(), len(mine["embedding"][0])
    own = own.filter(ds.field("embedding_kind") == kind)
    found = zip(own["prompt_id"].to_pylist(), (one.values.to_numpy() for one in own["embedding"]), strict=True)
    same = {other: vector for other, vector in found if vector.size == width}
    names, vectors = list(same), np.stack(list(same.values())).astype(np.float64)
    if kind == "policy":
        vectors -= vectors.mean(axis=0)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    at = names.index(mine["prompt_id"][0].as_py())
    cosines = vectors @ vectors[at]
    cosines[at] = np.inf  # first, whatever rounding says
    best = np.argsort(-cosines, kind="stable")[: max(count, 1)]
    return [(names[k], min(float(cosines[k]), 1.0)) for k in best]
