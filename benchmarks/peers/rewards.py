"""Rewards that depend on no engine, so that both sides train the same share of zero-variance groups.

A prompt's pass rate is drawn from Beta(1/2, 1/2), the shape that binary rewards have in practice (most prompts nearly
always pass or nearly always fail), and each rollout passes with that rate.
"""

from __future__ import annotations

import math

import numpy as np

from coterie.rng import generator

PEER_EPSILON = 1e-4
"""TRL adds this to the standard deviation; both sides get the same advantages, so it is used for both."""


def draw(prompts: int, group_size: int, *, seed: int) -> np.ndarray:
    """Rewards of one step.

    Returns:
        [prompts, group_size] of 0.0 and 1.0; the same numbers for the same arguments, on any machine. At least one
        group has variance.
    """
    target = min(prompts - 1, round(expected_share(group_size) * prompts))
    attempt = 0
    while True:
        rewards = attempt_at(prompts, group_size, generator("bench-rewards", seed, attempt))
        if round(zero_variance_share(rewards) * prompts) == target:
            return rewards
        attempt += 1


def attempt_at(prompts: int, group_size: int, random: np.random.Generator) -> np.ndarray:
    """One draw of the rule, whatever its share of zero-variance groups."""
    rates = random.beta(0.5, 0.5, size=(prompts, 1))
    return (random.random((prompts, group_size)) < rates).astype(np.float64)


def expected_share(group_size: int) -> float:
    """E[p^G + (1 - p)^G] under Beta(1/2, 1/2): how many groups have no variance on average.

    >>> [round(expected_share(size), 3) for size in (4, 8, 16)]
    [0.547, 0.393, 0.28]
    """
    return 2 * math.comb(2 * group_size, group_size) / 4**group_size


def zero_variance_share(rewards: np.ndarray) -> float:
    """Share of groups (rows) whose rewards are all equal."""
    return float(np.mean(np.ptp(rewards, axis=1) == 0))


def advantages(rewards: np.ndarray) -> np.ndarray:
    """[prompts, group_size] as TRL's `scale_rewards="group"` computes them: (r - mean) / (std + 1e-4), ddof = 1.

    >>> advantages(np.array([[1.0, 0.0, 0.0, 1.0]])).round(3).tolist()
    [[0.866, -0.866, -0.866, 0.866]]
    """
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    return centred / (rewards.std(axis=1, ddof=1, keepdims=True) + PEER_EPSILON)
