"""Rollouts summed up by task, region, prompt or step."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from coterie.errors import RunError
from coterie.experience.selection import Selection, sort_by
from coterie.experience.stored import readable

KEYS = {"task": "task", "region": "region", "prompt": "prompt_id", "step": "step"}
"""What `--by` may name → its column."""
EQUAL = 1e-8
"""Rewards of a group that differ by less are all the same, as in `Group.zero_variance`."""


def summarise(selection: Selection, by: str, *, sort: str | None = None, limit: int | None = None) -> pa.Table:
    """One row a key, and a run where there are several: rollouts, mean reward, its standard deviation, share of groups
    without variance, mean length (tokens), mean |advantage|, mean expected reward.

    Groups are the usable rollouts of a prompt in a step, two or more; filters that choose among their members do not
    change what counts as one.

    Raises:
        RunError: `by` is none of `KEYS`, or a file is damaged.
    """
    if by not in KEYS:
        raise RunError(f"rollouts can be summed up by {', '.join(KEYS)}, not by {by!r}")
    key = KEYS[by]
    keys = [*(["run"] if len(selection.stored.folders) > 1 else []), key]
    columns = [*dict.fromkeys((*keys, "prompt_id", "reward", "completion_length", "advantage", "expected"))]
    table = selection.table(columns)
    with readable():
        table = table.append_column("size", pc.call_function("abs", [table["advantage"]]))
        found = table.group_by(keys, use_threads=False).aggregate(
            [
                ([], "count_all"),
                ("prompt_id", "count_distinct"),
                ("reward", "mean"),
                ("reward", "stddev"),
                ("completion_length", "mean"),
                ("size", "mean"),
                ("expected", "mean"),
            ]
        )
        silent = _silent(selection, keys)
        shares = [silent.get(tuple(row.values())) for row in found.select(keys).to_pylist()]
        found = found.append_column("zero", pa.array(shares, pa.float64()))
        named = {
            "rollouts": "count_all",
            "prompts": "prompt_id_count_distinct",
            "reward": "reward_mean",
            "spread": "reward_stddev",
            "zero_variance": "zero",
            "length": "completion_length_mean",
            "abs_advantage": "size_mean",
            "expected": "expected_mean",
        }
        found = pa.table({**{name: found[name] for name in keys}, **{new: found[old] for new, old in named.items()}})
        found = sort_by(sort_by(found, key), keys[0])
    found = found if sort is None else sort_by(found, sort)
    return found if limit is None else found.slice(0, limit)


def _silent(selection: Selection, keys: list[str]) -> dict[tuple[object, ...], float | None]:
    """Share of groups whose rewards are all the same, by the keys."""
    columns = list(dict.fromkeys((*keys, "run", "step", "prompt_id", "reward")))
    table = selection.table(columns, groups=True)
    by_group = list(dict.fromkeys((*keys, "run", "step", "prompt_id")))
    groups = table.group_by(by_group, use_threads=False).aggregate(
        [("reward", "min"), ("reward", "max"), ("reward", "count")]
    )
    groups = groups.filter(ds.field("reward_count") >= 2)
    spans = zip(groups["reward_max"].to_pylist(), groups["reward_min"].to_pylist(), strict=True)
    groups = groups.append_column("zero", pa.array([float(high - low < EQUAL) for high, low in spans], pa.float64()))
    shares = groups.group_by(keys, use_threads=False).aggregate([("zero", "mean")])
    return {tuple(row[name] for name in keys): row["zero_mean"] for row in shares.to_pylist()}
