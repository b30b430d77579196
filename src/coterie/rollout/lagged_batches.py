"""Batches that were sampled ahead of the update that trains on them, and the two files of a checkpoint that hold them.

The JSON file has the number of steps done, and of each batch all that is no rollout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from coterie.rollout.collector import Experience
from coterie.rollout.sampler import StepBatch
from coterie.runs.rollout_state import RolloutFiles
from coterie.runs.rows import RolloutRecord
from coterie.types import Group, Prompt

FILES = RolloutFiles(stem="batches", what="the batches sampled ahead", parts="batches", format=1)
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
    FILES.write(folder, list(map(_records, batches)), {"step": step, "batches": list(map(_facts, batches))})


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
    with FILES.reading(folder) as (facts, parts):
        batches = [_batch(item, part, prompts) for item, part in zip(facts["batches"], parts, strict=True)]
        return int(facts["step"]), batches


def _batch(facts: Mapping[str, Any], records: Sequence[RolloutRecord], prompts: Mapping[str, Prompt]) -> StepBatch:
    return StepBatch(
        experience=Experience(
            prompts=tuple(prompts[name] for name in facts["prompts"]),
            rollouts=tuple(record.rollout for record in records),
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
