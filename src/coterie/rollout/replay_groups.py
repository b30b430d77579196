"""Replayed groups with the credit they were given, and the two files of a checkpoint that hold them.

The JSON file has the names of reward and reference, and key and policy version of each group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from coterie.runs.rollout_state import RolloutFiles
from coterie.runs.rows import RolloutRecord
from coterie.types import Context, Credit, Group, Prompt, Rollout

FILES = RolloutFiles(stem="replay", what="the replayed groups", parts="groups", format=2)


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
    parts = [
        [_record(rollout, credit) for rollout, credit in zip(group.rollouts, group.credits, strict=True)]
        for group in groups
    ]
    facts = [{"key": group.key, "version": group.version} for group in groups]
    FILES.write(folder, parts, {"names": dict(names), "groups": facts})


def _record(rollout: Rollout, credit: Credit) -> RolloutRecord:
    prompt = Prompt(id=rollout.context.prompt_id, messages=(), answer=None, task=rollout.context.task)
    return RolloutRecord(prompt=prompt, rollout=rollout, credit=credit, logprobs=None, seconds=None)


def read(folder: Path) -> tuple[list[ReplayGroup], dict[str, str]]:
    """Groups and names as they were written.

    Raises:
        CheckpointError: a file is missing or damaged, or of another format.
    """
    with FILES.reading(folder) as (facts, parts):
        return [_group(*pair) for pair in zip(facts["groups"], parts, strict=True)], dict(facts["names"])


def _group(facts: Mapping[str, Any], records: Sequence[RolloutRecord]) -> ReplayGroup:
    if not records:
        raise ValueError(f"the group {facts['key']!r} has no rollouts")
    return ReplayGroup(
        key=facts["key"],
        version=facts["version"],
        rollouts=tuple(record.rollout for record in records),
        credits=tuple(replace(record.credit, replayed=True) for record in records if record.credit is not None),
    )
