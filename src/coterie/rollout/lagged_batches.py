"""Batches that were sampled ahead of the update that trains on them, and the two files of a checkpoint that hold them.

batches.parquet  a row a rollout, in the columns of the rollout files; `step` is the number of its batch
batches.json     format, step, and of each batch all that is no rollout
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from coterie.errors import CheckpointError
from coterie.rollout.collector import Experience
from coterie.rollout.sampler import StepBatch
from coterie.runs.durable import json_dumps, json_loads, write_file
from coterie.runs.rows import RolloutRecord, from_row, schema, to_row
from coterie.types import Group, Prompt

ROWS, FACTS = "batches.parquet", "batches.json"
FORMAT = 1
_MEASURED = (
    "generate_seconds",
    "reward_seconds",
    "abandoned_tokens",
    "environment_seconds",
    "waited_seconds",
)
"""Fields of an experience that are numbers."""


def write(folder: Path, step: int, batches: Sequence[StepBatch]) -> None:
    """Put the two files into a checkpoint's folder; `read` gives back equal batches.

    Args:
        step: steps done: the first batch is that of the next one.

    Raises:
        RunError: the disk refused, or a rollout cannot be stored.
    """
    rows = [to_row(number, record) for number, batch in enumerate(batches) for record in _records(batch)]
    # Exact log-probs: the ratio of the update depends on every bit of them.
    pq.write_table(pa.Table.from_pylist(rows, schema=schema(exact=True)), folder / ROWS, compression="zstd")
    facts = {"format": FORMAT, "step": step, "batches": [_facts(batch) for batch in batches]}
    write_file(folder / FACTS, json_dumps(facts).encode())


def _records(batch: StepBatch) -> list[RolloutRecord]:
    prompts = {prompt.id: prompt for prompt in batch.experience.prompts}
    return [
        RolloutRecord(
            prompt=prompts[rollout.context.prompt_id], rollout=rollout, credit=None, logprobs=None, seconds=None
        )
        for rollout in batch.experience.rollouts
    ]


def _facts(batch: StepBatch) -> dict[str, Any]:
    experience = batch.experience
    return {
        "prompts": [prompt.id for prompt in experience.prompts],
        "abandoned": [prompt.id for prompt in experience.abandoned],
        "measured": {name: getattr(experience, name) for name in _MEASURED},
        "groups": [asdict(group) for group in batch.groups],
        "cursor": batch.cursor,
        "pending": list(batch.pending),
        "metrics": dict(batch.metrics),
    }


def read(folder: Path, prompts: Mapping[str, Prompt]) -> tuple[int, list[StepBatch]]:
    """Step and batches as they were written.

    Args:
        prompts: those of the training data, by their ids.

    Raises:
        CheckpointError: a file is missing or damaged, or of another format.
    """
    try:
        facts = json_loads((folder / FACTS).read_bytes())
        if facts["format"] != FORMAT:
            raise ValueError(f"its format is {facts['format']!r}, this version of coterie reads {FORMAT}")
        rows = pq.read_table(folder / ROWS).to_pylist()
        batches = [_batch(item, _of(rows, number), prompts) for number, item in enumerate(facts["batches"])]
        if sum(len(batch.experience.rollouts) for batch in batches) != len(rows):
            raise ValueError("rollouts of no batch are left over")
        return int(facts["step"]), batches
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"cannot read the batches sampled ahead in {folder}: {error}") from error


def _of(rows: Sequence[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    return [row for row in rows if row["step"] == number]


def _batch(facts: Mapping[str, Any], rows: Sequence[dict[str, Any]], prompts: Mapping[str, Prompt]) -> StepBatch:
    return StepBatch(
        experience=Experience(
            prompts=tuple(prompts[name] for name in facts["prompts"]),
            rollouts=tuple(from_row(row).rollout for row in rows),
            abandoned=tuple(prompts[name] for name in facts["abandoned"]),
            **{name: facts["measured"][name] for name in _MEASURED},
        ),
        groups=[_group(**group) for group in facts["groups"]],
        cursor=facts["cursor"],
        pending=tuple(facts["pending"]),
        metrics=facts["metrics"],
    )


def _group(members: Sequence[str], rewards: Sequence[float], **fields: Any) -> Group:
    return Group(members=tuple(members), rewards=tuple(rewards), **fields)
