"""Baselines that need no memory: the siblings, everyone else in the batch, and James-Stein between the two."""

from __future__ import annotations

import numpy as np

from coterie.algo.grouping.rollouts import Groups
from coterie.algo.grouping.state import Floats


def group_mean(groups: Groups) -> Floats:
    """[N] plain GRPO: the mean of the group, own reward included, so it shrinks the signal by 1 - 1/G (1 for G = 1)."""
    plain = np.bincount(groups.of, groups.rewards, minlength=groups.size.size) / np.maximum(groups.size, 1)
    return plain[groups.of]


def sibling_mean(groups: Groups) -> Floats:
    """[N] RLOO: the mean of the other rollouts of the group; a lone rollout gets the mean of history."""
    return np.where(groups.lone, groups.known, groups.siblings)


def batch_mean(groups: Groups) -> Floats:
    """[N] the mean of all other rollouts of the batch; history where there are none."""
    if groups.of.size < 2:
        return np.full(groups.of.size, groups.known)
    weights = groups.weights
    rest = weights.sum() - weights
    return ((weights @ groups.rewards) - weights * groups.rewards) / rest


def james_stein(groups: Groups) -> Floats:
    """[N] two-level leave-one-out shrinkage, JS2 (2511.03710 eq. 10-16), for ragged groups:

    b_ij = (1 - lam_i) mu_i^{-j} + lam_i mubar_{-i},   lam_i = ((n-1)/n) v_{-i} / (v_{-i} + s_{-i})

    v and s (noise of a group mean, spread of the group means) leave the own prompt out, so nothing depends on the own
    reward. v is averaged over the groups that have at least two rollouts; a lone rollout gets mubar_{-i}, a lone group
    its siblings. Numbers: rows [1,0],[1,1],[0,0] give [0,1 | .6667,.6667 | .3333,.3333].
    """
    count = groups.size.size
    if count < 2:
        return sibling_mean(groups)
    mean, size = groups.mean, groups.size
    deviation = (groups.rewards - mean[groups.of]) ** 2
    noisy = size > 1
    noise = np.where(noisy, np.bincount(groups.of, deviation, minlength=count) / np.maximum(size * (size - 1), 1), 0.0)
    rest = (mean.sum() - mean) / (count - 1)
    others = noisy.sum() - noisy
    v = np.maximum(noise.sum() - noise, 0.0) / np.maximum(others, 1)
    # mean over k != i of (mu_k - mubar_{-i})²: the second moment without i, less the square of the mean without i.
    s = np.maximum(((mean**2).sum() - mean**2) / (count - 1) - rest**2, 0.0)
    total = v + s
    lam = np.where(total > 1e-12, (count - 1) / count * v / np.maximum(total, 1e-12), 0.0)
    lam = lam[groups.of]
    return np.where(groups.lone, rest[groups.of], (1 - lam) * np.nan_to_num(groups.siblings) + lam * rest[groups.of])
