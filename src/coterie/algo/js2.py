"""The James-Stein baseline: each prompt's own mean, drawn towards the mean of the other prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coterie.algo.leave_one_out import others


def js2(rewards: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Two-level leave-one-out shrinkage (arXiv 2511.03710, eq. 10-16): unbiased, since neither the own reward nor the
    shrinkage that is applied to it depends on the own rollout.

    b_ij = (1 - lam_i) mu_i^(-j) + lam_i mubar_(-i), lam_i = (n-1)/n · v_(-i) / (v_(-i) + s_(-i)): v is the mean
    variance of the other groups' means, s the spread of those means. The paper has groups of one size; ragged groups
    enter v and s with their own size, each group once.

    Args:
        rewards: [G] per group, n groups. One group has nobody to be drawn to: leave-one-out then.

    Raises:
        ValueError: a group of one, which has no mean without itself.

    >>> [b.round(4).tolist() for b in js2([np.array([1.0, 0.0]), np.array([1.0, 1.0]), np.array([0.0, 0.0])])]
    [[0.0, 1.0], [0.6667, 0.6667], [0.3333, 0.3333]]
    """
    for group in rewards:
        if group.size < 2:
            raise ValueError(f"a group of {group.size} has no js2 baseline; expected at least 2 rollouts a prompt")
    own = [others(group) / (group.size - 1) for group in rewards]
    count = len(rewards)
    if count < 2:
        return own
    means = np.array([group.mean() for group in rewards])
    noise = np.array([group.var(ddof=1) / group.size for group in rewards])
    elsewhere, noise = others(means) / (count - 1), others(noise) / (count - 1)
    out = []
    for index, (mine, mean, v) in enumerate(zip(own, elsewhere, noise, strict=True)):
        s = float(np.mean((np.delete(means, index) - mean) ** 2))
        shrink = (count - 1) / count * v / (v + s) if v + s > 0 else 0.0
        out.append((1 - shrink) * mine + shrink * mean)
    return out
