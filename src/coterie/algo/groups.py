"""Which rollouts are compared with each other. A scale is a name plus a key on `Context`; order means nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from coterie.types import Context, Credit, Group, Rollout

Key = Callable[[Context], str]


def by_key(rollouts: Iterable[Rollout], scale: str, key: Key) -> list[Group]:
    """Groups of the usable rollouts that share a key, in the order in which the keys first appear.

    Args:
        rollouts: any number, in any order; errors are left out.
        scale: name of the scale, recorded in each group.
        key: reads the context only, never the reward.
    """
    members: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        if rollout.outcome.usable:
            members.setdefault(key(rollout.context), []).append(rollout)
    return [
        Group(
            scale=scale,
            key=name,
            members=tuple(rollout.id for rollout in group),
            rewards=tuple(_reward(rollout) for rollout in group),
        )
        for name, group in members.items()
    ]


def by_prompt(rollouts: Iterable[Rollout]) -> list[Group]:
    """Plain GRPO: attempts at the same prompt under the same policy version."""
    return by_key(rollouts, "prompt", lambda context: f"{context.prompt_id}@{context.version}")


def informative(groups: Iterable[Group], credits: Sequence[Credit]) -> list[Credit]:
    """The credits of groups in which some member has an advantage: what is left when groups without variance are taken
    out of every denominator, as ScaleRL does.

    >>> pair = [Group(scale="prompt", key=key, members=(f"{key}1", f"{key}2"), rewards=(0, 1)) for key in "ab"]
    >>> said = {"a1": -0.5, "a2": 0.5, "b1": 0.0, "b2": 0.0}
    >>> all_ = [Credit(rollout_id=name, advantage=one, clip_low=0.2, clip_high=0.2) for name, one in said.items()]
    >>> [credit.rollout_id for credit in informative(pair, all_)]
    ['a1', 'a2']
    """
    moving = {credit.rollout_id for credit in credits if not credit.silent}
    kept = {name for group in groups if not moving.isdisjoint(group.members) for name in group.members}
    return [credit for credit in credits if credit.rollout_id in kept]


def _reward(rollout: Rollout) -> float:
    if rollout.reward is None:
        raise ValueError(
            f"rollout {rollout.id} is {rollout.outcome} but has no reward; an error belongs in its outcome"
        )
    return rollout.reward
