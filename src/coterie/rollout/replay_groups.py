"""Replayed groups with the credit they were given, and the two files of a checkpoint that hold them.

replay.parquet  a row a rollout, in the columns of the rollout files; `step` is the number of its group
replay.json     format, names of reward and reference, and key and policy version of each group
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coterie.errors import CheckpointError
from coterie.runs.durable import json_dumps, json_loads, write_file
from coterie.runs.rows import RolloutRecord, from_row, schema, to_row
from coterie.types import Context, Credit, Group, Prompt, Rollout

ROWS, FACTS = "replay.parquet", "replay.json"
FORMAT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayGroup:
    """A group as it was trained on. Its members' credit holds its statistics; nothing else is ever made of it."""

    key: str
    version: int
    """Policy version that sampled it."""
    rollouts: tuple[Rollout, ...]
    """Those that were trained on, without their texts."""
    credits: tuple[Credit, ...]
    """One for each, marked as replayed."""

    @classmethod
    def of(cls, group: Group, rollouts: Mapping[str, Rollout], credits: Mapping[str, Credit]) -> ReplayGroup:
        """The part of a fresh group that is kept; members without credit took no part in the update, and take none
        later."""
        trained = [name for name in group.members if name in credits]
        return cls(
            key=group.key,
            version=min((rollouts[name].context.version for name in trained), default=0),
            rollouts=tuple(_lean(rollouts[name]) for name in trained),
            credits=tuple(replace(credits[name], replayed=True, contributions={}) for name in trained),
        )

    @property
    def advantages(self) -> np.ndarray:
        """[G] mean size of each rollout's advantage over its tokens."""
        return np.array([np.abs(credit.advantage).mean() if credit.advantage != () else 0.0 for credit in self.credits])

    @property
    def surprise(self) -> float:
        """Mean size of the advantages: what the priority is made of."""
        return float(self.advantages.mean()) if self.credits else 0.0


def _lean(rollout: Rollout) -> Rollout:
    """The rollout without all that another update does not need."""
    context = rollout.context
    return replace(
        rollout,
        turns=tuple(replace(turn, state=None, reward=0.0) for turn in rollout.turns),
        completion="",
        messages=(),
        reward_parts={},
        step_rewards=(),
        context=Context(
            prompt_id=context.prompt_id,
            task=context.task,
            difficulty=None,
            version=context.version,
            prompt_length=context.prompt_length,
            completion_length=context.completion_length,
            stop_reason=context.stop_reason,
        ),
    )


def write(folder: Path, groups: Sequence[ReplayGroup], names: Mapping[str, str]) -> None:
    """Put the two files into a checkpoint's folder; `read` gives back equal groups.

    Args:
        names: what the credits depend on: the reward, the reference.

    Raises:
        RunError: the disk refused.
    """
    rows = [
        to_row(number, _record(rollout, credit))
        for number, group in enumerate(groups)
        for rollout, credit in zip(group.rollouts, group.credits, strict=True)
    ]
    # Exact log-probs: the ratio of a later update, and so a resumed run, depends on every bit of them.
    pq.write_table(pa.Table.from_pylist(rows, schema=schema(exact=True)), folder / ROWS, compression="zstd")
    facts = {
        "format": FORMAT,
        "names": dict(names),
        "groups": [{"key": group.key, "version": group.version} for group in groups],
    }
    write_file(folder / FACTS, json_dumps(facts).encode())


def _record(rollout: Rollout, credit: Credit) -> RolloutRecord:
    prompt = Prompt(id=rollout.context.prompt_id, messages=(), answer=None, task=rollout.context.task)
    return RolloutRecord(prompt=prompt, rollout=rollout, credit=credit, logprobs=None, seconds=None)


def read(folder: Path) -> tuple[list[ReplayGroup], dict[str, str]]:
    """Groups and names as they were written.

    Raises:
        CheckpointError: a file is missing or damaged, or of another format.
    """
    try:
        facts = json_loads((folder / FACTS).read_bytes())
        if facts["format"] != FORMAT:
            raise ValueError(f"its format is {facts['format']!r}, this version of coterie reads {FORMAT}")
        rows = pq.read_table(folder / ROWS).to_pylist()
        records = [(row["step"], from_row(row)) for row in rows]
        groups = [_group(item, [r for k, r in records if k == number]) for number, item in enumerate(facts["groups"])]
        if sum(len(group.rollouts) for group in groups) != len(records):
            raise ValueError("rollouts of no group are left over")
        return groups, dict(facts["names"])
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"cannot read the replayed groups in {folder}: {error}") from error


def _group(facts: Mapping[str, Any], records: Sequence[RolloutRecord]) -> ReplayGroup:
    if not records:
        raise ValueError(f"the group {facts['key']!r} has no rollouts")
    return ReplayGroup(
        key=facts["key"],
        version=facts["version"],
        rollouts=tuple(record.rollout for record in records),
        credits=tuple(replace(record.credit, replayed=True) for record in records if record.credit is not None),
    )
