"""Optimal token baseline (OTB, arXiv 2602.07078): a baseline for every token, from the other rollouts of the prompt.

Axis letters: G members of a group (ragged), C trained tokens of one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from coterie.algo.baselines import Scored, sum_of_others
from coterie.algo.scales import SCALES
from coterie.types import Group, Rollout

OPTIMAL_TOKEN = "optimal_token"
"""Name of `advantage.baseline`."""


def score_norms(logprobs: Sequence[float]) -> np.ndarray:
    """[C] → [C]: (1 - p)² of each token, its squared score norm up to a factor of two.

    A token's score with respect to the logits is onehot - π, and ‖onehot - π‖² = (1 - p)² + Σ_others π² lies between
    (1 - p)² and 2 (1 - p)². The exact one, 1 - 2p + Σ_v π_v² in the paper, needs the whole distribution.

    Args:
        logprobs: log p of each trained token as sampled, at most 0.
    """
    return np.square(np.expm1(np.asarray(logprobs, dtype=np.float64)))


def token_energies(logprobs: Sequence[float]) -> np.ndarray:
    """[C] → [C]: Σ_{j ≤ t} (1 - p_j)², the squared norm of the score of the tokens so far; the paper's realised energy.

    Args:
        logprobs: see `score_norms`.

    >>> token_energies([0.0, float(np.log(0.5)), float(np.log(0.5))]).tolist()
    [0.0, 0.25, 0.5]
    """
    return np.cumsum(score_norms(logprobs))


def optimal_token_baselines(rewards: np.ndarray, energies: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Baseline of token t of member i: Σ_{j ≠ i} W_jt r_j / Σ_{j ≠ i} W_jt over the members that have a token t (eq. 9
    of the paper, with the rollout itself left out, so that the gradient stays unbiased).

    Where no other member has a token t, or their energies are 0, the mean of the others (the paper and verl: 0 there).

    Args:
        rewards: [G], at least two.
        energies: [C] of each member, not decreasing.

    >>> energies = [np.array([1.0, 1.0]), np.array([3.0, 4.0]), np.array([1.0])]
    >>> [baseline.tolist() for baseline in optimal_token_baselines(np.array([0.0, 1.0, 0.0]), energies)]
    [[0.75, 1.0], [0.0, 0.0], [0.75]]
    """
    if rewards.size < 2:
        raise ValueError(
            f"a group of {rewards.size} has no optimal_token baseline; expected at least 2 rollouts a prompt"
        )
    weights = np.zeros((rewards.size, max(len(row) for row in energies)))
    for row, energy in zip(weights, energies, strict=True):
        row[: len(energy)] = energy
    total, weighted = sum_of_others(weights), sum_of_others(weights * rewards[:, None])
    mean = np.broadcast_to((sum_of_others(rewards) / (rewards.size - 1))[:, None], weights.shape)
    baselines = np.divide(weighted, total, out=mean.copy(), where=total > 0)
    return [row[: len(energy)] for row, energy in zip(baselines, energies, strict=True)]


def token_advantages(groups: Sequence[Group], rollouts: Mapping[str, Rollout], scale: str) -> list[np.ndarray]:
    """[C] (reward - baseline of the token) / scale of every member of every group; exactly 0 in a zero-variance group.

    Args:
        scale: name in `SCALES`.
    """
    members = [[rollouts[name] for name in group.members] for group in groups]
    scored = [
        Scored(
            rewards=np.array(group.rewards, dtype=np.float64),
            lengths=np.array([rollout.trained_tokens for rollout in row], dtype=np.float64),
        )
        for group, row in zip(groups, members, strict=True)
    ]
    advantages: list[np.ndarray] = []
    for group, row, size in zip(scored, members, SCALES[scale](scored), strict=True):
        sampled = [[p for turn in rollout.turns for p in turn.sampler_logprobs] for rollout in row]
        # A rollout without a trained token has one advantage, as everywhere else.
        baselines = optimal_token_baselines(group.rewards, [token_energies(tokens or [0.0]) for tokens in sampled])
        centred = [reward - baseline for reward, baseline in zip(group.rewards, baselines, strict=True)]
        advantages += [0 * values if group.zero_variance else values / size for values in centred]
    return advantages
