"""The metrics of one step, from what was collected and what the update did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from coterie.collect import Experience
from coterie.policy.learner import UpdateReport
from coterie.types import Group


def step_metrics(
    experience: Experience, groups: Sequence[Group], report: UpdateReport, seconds: Mapping[str, float]
) -> dict[str, float]:
    """Named floats, all finite. `time/*` and `speed/*` depend on the machine; all others repeat bit for bit."""
    return {
        **_rewards(experience),
        **_groups(groups),
        **_lengths(experience),
        **report.metrics,
        "tokens/generated": float(experience.tokens),
        "errors": float(len(experience.errors)),
        **{f"time/{name}": value for name, value in seconds.items()},
        "time/generate": experience.generate_seconds,
        "time/reward": experience.reward_seconds,
        "speed/generate": experience.tokens / max(experience.generate_seconds, 1e-9),
        "speed/update": report.metrics.get("tokens/trained", 0.0) / max(seconds["update"], 1e-9),
    }


def _rewards(experience: Experience) -> dict[str, float]:
    rewards = [rollout.reward for rollout in experience.rollouts if rollout.reward is not None]
    if not rewards:
        return {}
    found = {"reward/mean": float(np.mean(rewards)), "reward/std": float(np.std(rewards))}
    parts: dict[str, list[float]] = {}
    for rollout in experience.rollouts:
        for label, value in rollout.reward_parts.items():
            if value is not None:
                parts.setdefault(label, []).append(value)
    return found | {f"reward/part/{label}": float(np.mean(values)) for label, values in parts.items()}


def _groups(groups: Sequence[Group]) -> dict[str, float]:
    """Shares of groups: `solved` all at the best reward of the step, `none` all at the worst, `mixed` the rest."""
    if not groups:
        return {}
    best = max(max(group.rewards) for group in groups)
    worst = min(min(group.rewards) for group in groups)
    flat = [group for group in groups if group.zero_variance]
    # Where every reward of the step is equal, nothing says whether that is good: count it as unsolved unless positive.
    solved = sum(group.rewards[0] >= best - 1e-8 and (best > worst or best > 0) for group in flat)
    none = sum(group.rewards[0] <= worst + 1e-8 for group in flat) if best > worst else len(flat) - solved
    count = len(groups)
    return {
        "groups/solved": solved / count,
        "groups/none": none / count,
        "groups/mixed": (count - len(flat)) / count,
        "groups/zero_variance": len(flat) / count,
    }


def _lengths(experience: Experience) -> dict[str, float]:
    lengths = [rollout.context.completion_length for rollout in experience.rollouts]
    cut = [rollout.stop_reason.truncated for rollout in experience.rollouts]
    return {
        "length/mean": float(np.mean(lengths)),
        "length/max": float(np.max(lengths)),
        "truncated": float(np.mean(cut)),
    }
