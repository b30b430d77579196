"""Rollouts with nothing but what credit reads: rewards, parts, lengths, steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from coterie.types import Context, Group, Outcome, Rollout, StepReward, StopReason, Turn


def attempt(
    name: str,
    reward: float,
    *,
    length: int = 3,
    parts: Mapping[str, float | None] | None = None,
    steps: Sequence[tuple[int, float]] = (),
) -> Rollout:
    turn = Turn(
        prompt_tokens=(1, 2),
        tokens=(7,) * length,
        sampler_logprobs=(-1.0,) * length,
        temperature=1.0,
        stop_reason=StopReason.STOP,
        version=0,
    )
    context = Context(
        prompt_id=name.partition("#")[0],
        task="t",
        difficulty=None,
        version=0,
        prompt_length=2,
        completion_length=length,
        stop_reason=StopReason.STOP,
    )
    return Rollout(
        id=name,
        sample=0,
        turns=(turn,),
        completion="",
        reward=reward,
        reward_parts=parts or {"r": reward},
        step_rewards=tuple(StepReward(end=end, value=value) for end, value in steps),
        outcome=Outcome.OK,
        context=context,
    )


def batch(
    rewards: Sequence[Sequence[float]], lengths: Sequence[Sequence[int]] | None = None
) -> tuple[list[Group], dict[str, Rollout]]:
    """Groups p0, p1, … with members p0#0, p0#1, …"""
    rollouts = [
        attempt(f"p{g}#{k}", reward, length=3 if lengths is None else lengths[g][k])
        for g, group in enumerate(rewards)
        for k, reward in enumerate(group)
    ]
    return grouped(rollouts), {rollout.id: rollout for rollout in rollouts}


def grouped(rollouts: Sequence[Rollout]) -> list[Group]:
    keys = list(dict.fromkeys(rollout.context.prompt_id for rollout in rollouts))
    by_key = [(key, [rollout for rollout in rollouts if rollout.context.prompt_id == key]) for key in keys]
    return [
        Group(
            scale="prompt",
            key=key,
            members=tuple(rollout.id for rollout in members),
            rewards=tuple(rollout.reward or 0.0 for rollout in members),
        )
        for key, members in by_key
    ]
