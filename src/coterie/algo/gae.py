"""Generalised advantage estimation (arXiv 1506.02438) over the tokens that the policy sampled.

Arrays are compact, [C]: environment tokens between turns are absent, which is the same as carrying the running
sums through them unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from coterie.algo.returns import whiten as whitened
from coterie.config.objective import CriticConfig
from coterie.types import Credit, Rollout


def policy_lam(config: CriticConfig, length: int) -> float:
    """Lambda of the policy's advantages for a rollout of `length` trained tokens; it grows with them where
    `length_alpha` is set (VAPO, arXiv 2504.05118)."""
    if config.length_alpha is None:
        return config.lam
    return max(0.0, 1 - 1 / (config.length_alpha * length)) if length else 0.0


def gae(rewards: np.ndarray, values: np.ndarray, *, gamma: float = 1.0, lam: float = 0.95) -> np.ndarray:
    """[C], [C] → [C]: A_t = delta_t + gamma lam A_(t+1), delta_t = r_t + gamma V_(t+1) - V_t; after the end V = 0.

    >>> gae(np.array([0, 0, 1.0]), np.array([0.5, 0.6, 0.8]), lam=0.95).round(4).tolist()
    [0.4705, 0.39, 0.2]
    """
    rewards, values = np.asarray(rewards, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if rewards.shape != values.shape:
        raise ValueError(f"{rewards.size} token rewards and {values.size} values; expected one value per trained token")
    deltas = rewards + gamma * np.append(values[1:], 0.0) - values if values.size else values
    out, running = np.empty_like(deltas), 0.0
    for t in range(len(deltas) - 1, -1, -1):
        running = deltas[t] + gamma * lam * running
        out[t] = running
    return out


def credit_with_critic(
    rollouts: Sequence[Rollout],
    values: Mapping[str, np.ndarray],
    config: CriticConfig,
    *,
    whiten: bool,
    clip_low: float,
    clip_high: float,
    token_rewards: Mapping[str, np.ndarray] | None = None,
) -> list[Credit]:
    """PPO's credit: an advantage, a target and the critic's value for every trained token.

    The rollout's reward is that of its last token; targets are the raw advantages plus the values, and only then are
    advantages whitened.

    Args:
        rollouts: of the batch, each with a reward; those without trained tokens get no credit.
        values: [C] per rollout id, the critic's at the start of the update.
        whiten: shift and scale the advantages over all trained tokens of the batch; the targets never are.
        token_rewards: [C] per rollout id, beside the outcome's; see `kl_in_reward`.
    """
    trained = [rollout for rollout in rollouts if rollout.trained_tokens]
    advantages, targets = [], []
    for rollout in trained:
        rewards = np.zeros(rollout.trained_tokens)
        if token_rewards is not None and rollout.id in token_rewards:
            rewards = rewards + token_rewards[rollout.id]
        if rollout.reward is None:
            raise ValueError(f"rollout {rollout.id} is {rollout.outcome} and has no reward; leave it out")
        rewards[-1] += rollout.reward
        critic_values = np.asarray(values[rollout.id], dtype=np.float64)
        lam = policy_lam(config, len(rewards))
        advantages.append(gae(rewards, critic_values, gamma=config.gamma, lam=lam))
        raw = (
            gae(rewards, critic_values, gamma=config.gamma, lam=config.value_lam)
            if config.value_lam != lam
            else advantages[-1]
        )
        targets.append(raw + critic_values)
    if whiten and trained:
        flat = np.concatenate(advantages)
        cuts = np.cumsum([len(advantage) for advantage in advantages])[:-1]
        advantages = np.split(whitened(flat, np.ones_like(flat)), cuts)
    return [
        Credit(
            rollout_id=rollout.id,
            advantage=tuple(advantage.tolist()),
            clip_low=clip_low,
            clip_high=clip_high,
            contributions={"critic": float(advantage.mean())},
            returns=tuple(target.tolist()),
            values=tuple(np.asarray(values[rollout.id], dtype=np.float64).tolist()),
        )
        for rollout, advantage, target in zip(trained, advantages, targets, strict=True)
    ]
