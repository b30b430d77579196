"""Replayed groups with the credit they were given, and the two files of a checkpoint that hold them.

replay.safetensors  tokens [T] int32: each rollout's tokens, its first prompt's included
                    sampler_logprobs [N] float64, advantages [N or 1 a rollout] float64
replay.json         format, names of reward and reference, and of each group and rollout what is no array
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from coterie.runs.state_files import StateFiles
from coterie.types import Context, Credit, Group, Outcome, Rollout, StopReason, Turn

FILES = StateFiles("replay", "the replayed groups")
FORMAT = 1


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
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    credits = [credit for group in groups for credit in group.credits]
    arrays = {
        "tokens": _joined(
            [[*rollout.turns[-1].prompt_tokens, *rollout.turns[-1].tokens] for rollout in rollouts], np.int32
        ),
        "sampler_logprobs": _joined(
            [turn.sampler_logprobs for rollout in rollouts for turn in rollout.turns], np.float64
        ),
        "advantages": _joined([np.atleast_1d(credit.advantage) for credit in credits], np.float64),
    }
    facts = {"format": FORMAT, "names": dict(names), "groups": [_group_facts(group) for group in groups]}
    FILES.write(folder, arrays, facts)


def _joined(parts: Sequence[Any], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *(np.asarray(part, dtype=dtype) for part in parts)])


def _group_facts(group: ReplayGroup) -> dict[str, Any]:
    members = [
        {
            "id": rollout.id,
            "sample": rollout.sample,
            "prompt": rollout.context.prompt_id,
            "task": rollout.context.task,
            "version": rollout.context.version,
            "reward": rollout.reward,
            "outcome": str(rollout.outcome),
            "turns": [
                {
                    "prompt": len(turn.prompt_tokens),
                    "own": len(turn.tokens),
                    "temperature": turn.temperature,
                    "stop_reason": str(turn.stop_reason),
                    "version": turn.version,
                }
                for turn in rollout.turns
            ],
            "advantages": len(credit.advantage) if isinstance(credit.advantage, tuple) else None,
            "clip": [credit.clip_low, credit.clip_high],
        }
        for rollout, credit in zip(group.rollouts, group.credits, strict=True)
    ]
    return {"key": group.key, "version": group.version, "members": members}


def read(folder: Path) -> tuple[list[ReplayGroup], dict[str, str]]:
    """Groups and names as they were written.

    Raises:
        CheckpointError: a file is missing or damaged, or of another format.
    """
    with FILES.reading(folder) as (arrays, facts):
        if facts["format"] != FORMAT:
            raise ValueError(f"its format is {facts['format']!r}, this version of coterie reads {FORMAT}")
        source = _Source(arrays)
        groups = [_group(group_facts, source) for group_facts in facts["groups"]]
        source.require_end()
        return groups, dict(facts["names"])


class _Source:
    """The arrays, read from front to back."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays = arrays
        self.done = dict.fromkeys(arrays, 0)

    def take(self, name: str, count: int) -> tuple[Any, ...]:
        start = self.done[name]
        self.done[name] = start + count
        values = self.arrays[name][start : start + count]
        if len(values) != count:
            raise ValueError(f"{name} ends {count - len(values)} numbers too early")
        return tuple(values.tolist())

    def require_end(self) -> None:
        left = {name: len(array) - self.done[name] for name, array in self.arrays.items()}
        if any(left.values()):
            raise ValueError(f"numbers are left over: {left}")


def _group(facts: Mapping[str, Any], source: _Source) -> ReplayGroup:
    members = [_member(member_facts, source) for member_facts in facts["members"]]
    return ReplayGroup(
        key=facts["key"],
        version=facts["version"],
        rollouts=tuple(rollout for rollout, _ in members),
        credits=tuple(credit for _, credit in members),
    )


def _member(facts: Mapping[str, Any], source: _Source) -> tuple[Rollout, Credit]:
    last = facts["turns"][-1]
    tokens = source.take("tokens", last["prompt"] + last["own"])
    turns = tuple(
        Turn(
            prompt_tokens=tokens[: turn["prompt"]],
            tokens=tokens[turn["prompt"] : turn["prompt"] + turn["own"]],
            sampler_logprobs=source.take("sampler_logprobs", turn["own"]),
            temperature=turn["temperature"],
            stop_reason=StopReason(turn["stop_reason"]),
            version=turn["version"],
        )
        for turn in facts["turns"]
    )
    rollout = Rollout(
        id=facts["id"],
        sample=facts["sample"],
        turns=turns,
        completion="",
        reward=facts["reward"],
        reward_parts={},
        outcome=Outcome(facts["outcome"]),
        context=Context(
            prompt_id=facts["prompt"],
            task=facts["task"],
            difficulty=None,
            version=facts["version"],
            prompt_length=len(turns[0].prompt_tokens),
            completion_length=sum(len(turn.tokens) for turn in turns),
            stop_reason=turns[-1].stop_reason,
        ),
    )
    count = facts["advantages"]
    values = source.take("advantages", 1 if count is None else count)
    low, high = facts["clip"]
    advantage = values[0] if count is None else values
    return rollout, Credit(rollout_id=rollout.id, advantage=advantage, clip_low=low, clip_high=high, replayed=True)
