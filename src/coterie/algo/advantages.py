"""From groups to credit: how much better was each rollout than the attempts it is compared with?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from coterie.types import Credit, Group

EPSILON = 1e-6
"""Added to the standard deviation, as verl does; DeepSeekMath does not say."""


def group_advantages(rewards: Sequence[float] | np.ndarray, *, scale: bool = True) -> np.ndarray:
    """Group-relative advantage, DeepSeekMath §4.1.2: (r - mean) / std with the sample standard deviation (ddof = 1).

    Args:
        rewards: [G] at least two.
        scale: False leaves out the division (Dr. GRPO).

    Returns:
        [G] float64; exactly zero where all rewards are equal.

    Raises:
        ValueError: fewer than two rewards: one attempt has nobody to be compared with.

    >>> group_advantages([1, 0, 0, 1]).round(3).tolist()
    [0.866, -0.866, -0.866, 0.866]
    >>> group_advantages([1, 0, 0, 0], scale=False).tolist()
    [0.75, -0.25, -0.25, -0.25]
    """
    values = np.asarray(rewards, dtype=np.float64)
    if values.size < 2:
        raise ValueError(f"a group of {values.size} has no baseline; expected at least 2 rollouts a prompt")
    centred = values - values.mean()
    spread = values.std(ddof=1)
    if np.ptp(values) < 1e-8:
        return np.zeros_like(values)
    return centred / (spread + EPSILON) if scale else centred


def credit_groups(groups: Iterable[Group], *, scale: bool, clip_low: float, clip_high: float) -> list[Credit]:
    """One credit per member of each group; the clip bounds travel with it as data."""
    return [
        Credit(
            rollout_id=member,
            advantage=float(advantage),
            clip_low=clip_low,
            clip_high=clip_high,
            contributions={group.scale: float(advantage)},
        )
        for group in groups
        for member, advantage in zip(group.members, group_advantages(group.rewards, scale=scale), strict=True)
    ]
