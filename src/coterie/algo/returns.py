"""Token rewards, their sums, and whitening: the arithmetic of REINFORCE++ (arXiv 2501.03262).

Token arrays are compact: [C] holds the tokens that the policy sampled, those of all turns end to end. What the
environment said in between is simply absent, so no mask can be forgotten.
"""

from __future__ import annotations

import numpy as np

from coterie.algo.scales import EPSILON, SMALLEST


def kl_in_reward(old: np.ndarray, reference: np.ndarray, beta: float) -> np.ndarray:
    """[C] token rewards -beta · k1, k1 = old - reference log-prob of the sampled token.

    >>> kl_in_reward(np.array([-1.0, -2.0]), np.array([-1.5, -1.0]), 0.1).tolist()
    [-0.05, 0.1]
    """
    return -beta * (np.asarray(old, dtype=np.float64) - np.asarray(reference, dtype=np.float64))


def returns_to_go(token_rewards: np.ndarray, gamma: float = 1.0) -> np.ndarray:
    """[C] → [C]: G_t = r_t + gamma G_(t+1).

    >>> returns_to_go(np.array([0.0, 0.5, 1.0])).tolist()
    [1.5, 1.5, 1.0]
    """
    rewards = np.asarray(token_rewards, dtype=np.float64)
    if gamma == 1:
        return np.cumsum(rewards[::-1])[::-1]
    out, running = np.empty_like(rewards), 0.0
    for t in range(len(rewards) - 1, -1, -1):
        running = rewards[t] + gamma * running
        out[t] = running
    return out


def whiten(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(x - mean) / (std + 1e-6) under weights that count: [n], [n] → [n].

    The variance divides by the sum of the weights less 1, so weights of 1 give the sample standard deviation, and the
    number of tokens as weight that over tokens. Where there is no spread, nothing is divided; where the mean is only
    rounding, nothing is subtracted, so that an advantage of 0 stays one.
    """
    total = float(weights.sum())
    if not total > 0:
        return values
    mean = float((weights * values).sum()) / total
    if abs(mean) <= 1e-12 * float(np.abs(values).max()):
        mean = 0.0
    centred = values - mean
    variance = float((weights * centred**2).sum()) / (total - 1) if total > 1 else 0.0
    deviation = float(np.sqrt(variance))
    return centred / (deviation + EPSILON) if deviation > SMALLEST else centred
