"""The metrics of one step, from what was collected and what the update did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from coterie.collect import Experience
from coterie.policy.learner import UpdateReport
from coterie.train.evaluation import CORRECT
from coterie.types import Group


def step_metrics(
    experience: Experience,
    groups: Sequence[Group],
    report: UpdateReport,
    seconds: Mapping[str, float],
    *,
    part: str,
) -> dict[str, float]:
    """Named floats, all finite. `time/*` and `speed/*` depend on the machine; all others repeat bit for bit."""
    return {
        **_rewards(experience),
        **_groups(experience, groups, part),
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


def _groups(experience: Experience, groups: Sequence[Group], part: str) -> dict[str, float]:
    """Shares of groups: `solved` every member correct, `none` no member, `mixed` the rest.

    Correct is what the evaluation calls correct. `zero_variance` is about the whole reward: such a group teaches
    nothing.
    """
    if not groups:
        return {}
    correct = {rollout.id: (rollout.reward_parts.get(part) or 0.0) >= CORRECT for rollout in experience.rollouts}
    hits = [sum(correct[member] for member in group.members) / len(group.members) for group in groups]
    count = len(groups)
    return {
        "groups/solved": sum(share == 1 for share in hits) / count,
        "groups/none": sum(share == 0 for share in hits) / count,
        "groups/mixed": sum(0 < share < 1 for share in hits) / count,
        "groups/zero_variance": sum(group.zero_variance for group in groups) / count,
    }


def _lengths(experience: Experience) -> dict[str, float]:
    lengths = [rollout.context.completion_length for rollout in experience.rollouts]
    cut = [rollout.stop_reason.truncated for rollout in experience.rollouts]
    return {
        "length/mean": float(np.mean(lengths)),
        "length/max": float(np.max(lengths)),
        "truncated": float(np.mean(cut)),
    }
