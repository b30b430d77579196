"""Baselines: the reward that each rollout's reward is compared with.

A baseline that the rollout's own reward cannot move leaves the gradient unbiased.

Axis letters: G members of a group (ragged), B rollouts of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from coterie.types import Context


def sum_of_others(values: np.ndarray) -> np.ndarray:
    """[n, …] → [n, …]: leave-one-out sums over the first axis, exact to the last bit.

    The sum before plus the sum after: `values.sum() - values` would keep the rounding of the value itself, which ruins
    a small sum beside a large value.

    >>> sum_of_others(np.array([1.0, 2.0, 4.0])).tolist()
    [6.0, 5.0, 3.0]
    """
    before, after = np.zeros(values.shape), np.zeros(values.shape)
    before[1:] = np.cumsum(values[:-1], axis=0)
    after[:-1] = np.cumsum(values[:0:-1], axis=0)[::-1]
    return before + after


def js2(rewards: Sequence[np.ndarray]) -> list[np.ndarray]:
    """James-Stein baseline with two-level leave-one-out shrinkage (arXiv 2511.03710, eq. 10-16): each prompt's mean,
    drawn towards the mean of the other prompts. Unbiased, since nothing in it depends on the rollout itself.

    b_ij = (1 - lam_i) mu_i^(-j) + lam_i mubar_(-i), lam_i = (n-1)/n · v_(-i) / (v_(-i) + s_(-i)): v is the mean
    variance of the other groups' means, s the spread of those means. The paper has groups of one size; ragged groups
    enter v and s with their own size, each group once.

    Args:
        rewards: [G] per group, n groups. One group alone: leave-one-out.

    >>> [b.round(4).tolist() for b in js2([np.array([1.0, 0.0]), np.array([1.0, 1.0]), np.array([0.0, 0.0])])]
    [[0.0, 1.0], [0.6667, 0.6667], [0.3333, 0.3333]]
    """
    for group in rewards:
        if group.size < 2:
            raise ValueError(f"a group of {group.size} has no js2 baseline; expected at least 2 rollouts a prompt")
    leave_one_out = [sum_of_others(group) / (group.size - 1) for group in rewards]
    count = len(rewards)
    if count < 2:
        return leave_one_out
    means = np.array([group.mean() for group in rewards])
    noise = np.array([group.var(ddof=1) / group.size for group in rewards])
    elsewhere, noise = sum_of_others(means) / (count - 1), sum_of_others(noise) / (count - 1)
    out = []
    for index, (group_baseline, mean, v) in enumerate(zip(leave_one_out, elsewhere, noise, strict=True)):
        s = float(np.mean((np.delete(means, index) - mean) ** 2))
        shrink = (count - 1) / count * v / (v + s) if v + s > 0 else 0.0
        out.append((1 - shrink) * group_baseline + shrink * mean)
    return out


ZERO_VARIANCE = 1e-8
"""Rewards of a group that differ by less are equal."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """The scored rollouts of a group: the input of baselines and scales."""

    rewards: np.ndarray
    """[G] float64, finite."""
    lengths: np.ndarray
    """[G] float64, trained tokens."""
    contexts: tuple[Context, ...] = ()
    """[G], for baselines that use more than the batch; empty where there are none."""

    @property
    def zero_variance(self) -> bool:
        return self.rewards.size > 0 and float(np.ptp(self.rewards)) < ZERO_VARIANCE


Baseline = Callable[[Sequence[Scored]], list[np.ndarray]]
"""Groups of the batch → the baseline of each member, [G] per group. Raises ValueError where it is not defined."""


def _in_group(baseline: Callable[[Scored], np.ndarray]) -> Baseline:
    """Baseline computed group by group. In a zero-variance group it is the reward, so that nothing is learned from
    rounding."""

    def every(groups: Sequence[Scored]) -> list[np.ndarray]:
        for group in groups:
            if group.rewards.size < 2:
                raise ValueError(
                    f"a group of {group.rewards.size} has no baseline; expected at least 2 rollouts a prompt, or a "
                    "baseline over the batch"
                )
        return [group.rewards.copy() if group.zero_variance else baseline(group) for group in groups]

    every.__doc__ = baseline.__doc__
    return every


def _group_mean(group: Scored) -> np.ndarray:
    """Mean of the group, own reward included (DeepSeekMath §4.1.2): the gradient shrinks by (1 - 1/G)."""
    return np.full_like(group.rewards, group.rewards.mean())


def _leave_one_out(group: Scored) -> np.ndarray:
    """Mean of the group's other members (RLOO, arXiv 2402.14740): unbiased."""
    return sum_of_others(group.rewards) / (group.rewards.size - 1)


def _length_weighted(group: Scored) -> np.ndarray:
    """OPO (arXiv 2505.23585) without the own rollout: sum of L_j r_j over sum of L_j, j ≠ i. The squared score
    function grows about as the length L, so this is near the baseline of least variance; unbiased."""
    weight = sum_of_others(group.lengths)
    plain = _leave_one_out(group)
    return np.divide(sum_of_others(group.lengths * group.rewards), weight, out=plain, where=weight > 0)


def _second_best(group: Scored) -> np.ndarray:
    """pass@k training of arXiv 2503.19595: only the best attempt gets r_max - r_second, all others 0; two attempts
    that tie get 0. The baseline of attempt i is what the best of G would have been without it, up to the constant
    that makes the others 0, so the gradient (summed over the group) is that of E[max of G]."""
    baseline = group.rewards.copy()
    second, best = np.argsort(group.rewards, kind="stable")[-2:]
    baseline[best] = group.rewards[second]
    return baseline


def _batch_mean(groups: Sequence[Scored]) -> list[np.ndarray]:
    """Mean of all other rollouts of the batch: unbiased, also for groups of one. REINFORCE++ itself subtracts the mean
    over tokens, own ones included: that is baseline = "none" with whiten = "tokens"."""
    rewards = np.concatenate([group.rewards for group in groups])
    if rewards.size < 2:
        raise ValueError(f"a batch of {rewards.size} rollouts has no baseline; expected at least 2")
    baseline = sum_of_others(rewards) / (rewards.size - 1)
    if float(np.ptp(rewards)) < ZERO_VARIANCE:
        baseline = rewards
    return np.split(baseline, np.cumsum([group.rewards.size for group in groups])[:-1])


def _none(groups: Sequence[Scored]) -> list[np.ndarray]:
    """Zero: plain REINFORCE."""
    return [np.zeros_like(group.rewards) for group in groups]


def _js2(groups: Sequence[Scored]) -> list[np.ndarray]:
    return js2([group.rewards for group in groups])


_js2.__doc__ = js2.__doc__

BASELINES: dict[str, Baseline] = {
    "group_mean": _in_group(_group_mean),
    "leave_one_out": _in_group(_leave_one_out),
    "length_weighted": _in_group(_length_weighted),
    "second_best": _in_group(_second_best),
    "batch_mean": _batch_mean,
    "js2": _js2,
    "none": _none,
}
"""Names of `advantage.baseline`, beside a user's function."""
