"""Which past groups are worth another update: whole groups, with their own statistics, while the policy is near."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from coterie.algo.grouping.draw import capped_shares, systematic
from coterie.algo.grouping.state import Floats, Ints
from coterie.algo.streams import generator


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PastGroup:
    """A recorded group as the selection sees it. Its rewards stay with it: they never join a fresh group's mean."""

    key: str
    version: int
    """Policy version that sampled it."""
    reward: str
    """Name of the reward function that scored it."""
    log_ratios: Floats
    """[G] mean per-token log(pi_now / pi_sampler) of each rollout; its exponential is the geometric ratio."""
    advantages: Floats
    """[G] as they were credited."""


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Chosen groups, with the chance each had."""

    chosen: Ints
    """[K] places in the sequence given, ascending."""
    inclusion: Floats
    """[K]"""


def replayable(
    group: PastGroup, *, version: int, reward: str, staleness: int = 4, low: float = 0.5, high: float = 2.0
) -> bool:
    """Past, not stale, scored by the reward in force, and every rollout's geometric ratio within [low, high].

    Every rollout, because a group without one of its members is another group with other statistics.
    """
    ratios = np.exp(np.clip(group.log_ratios, -20.0, 20.0))
    return bool(
        0 < version - group.version <= staleness
        and group.reward == reward
        and np.isfinite(group.log_ratios).all()
        and ((ratios >= low) & (ratios <= high)).all()
    )


def select_replay(
    groups: Sequence[PastGroup],
    count: int,
    *,
    version: int,
    reward: str,
    staleness: int = 4,
    low: float = 0.5,
    high: float = 2.0,
    half_life: float = 2.0,
    counters: tuple[str | int, ...],
) -> Selection:
    """At most `count` replayable groups, likelier the more surprising and the fresher they are.

    Priority is mean |advantage| · 2^(-age / half_life); a group that credits nothing is never replayed.

    Args:
        version, reward: those in force now.
        staleness: greatest age, in policy versions.
        low, high: limits of the geometric ratio.
        counters: name the draw; equal counters, equal draw.
    """
    ages = np.array([version - group.version for group in groups], dtype=np.float64)
    surprise = np.array(
        [np.abs(np.nan_to_num(group.advantages)).mean() if group.advantages.size else 0 for group in groups]
    )
    able = partial(replayable, version=version, reward=reward, staleness=staleness, low=low, high=high)
    fit = np.array([able(group) for group in groups], dtype=bool)
    open_to = np.flatnonzero(fit & (surprise > 1e-12)) if len(groups) else np.zeros(0, dtype=np.int64)
    count = min(count, open_to.size)
    if count <= 0:
        return Selection(np.zeros(0, dtype=np.int64), np.zeros(0))
    inclusion = capped_shares(surprise[open_to] * np.exp2(-ages[open_to] / half_life), float(count), 1.0)
    drawn = systematic(inclusion, count, generator("replay", *counters))
    return Selection(open_to[drawn], inclusion[drawn])
