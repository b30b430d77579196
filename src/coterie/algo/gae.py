"""Generalised advantage estimation (arXiv 1506.02438) over the tokens that the policy sampled.

Arrays are compact, [C]: environment tokens between turns are absent, which is the same as carrying the running
sums through them unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

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


def explained_variance(returns: np.ndarray, values: np.ndarray) -> float:
    """1 - Var(returns - values) / Var(returns): 1 for a perfect critic, 0 for a constant, below 0 for one that harms.

    0 where the returns do not vary.
    """
    returns, values = np.asarray(returns, dtype=np.float64), np.asarray(values, dtype=np.float64)
    whole = float(returns.var()) if returns.size else 0.0
    return 1 - float((returns - values).var()) / whole if whole > 1e-12 else 0.0


# Value losses: squared error, with the clipping of PPO or without, or cross-entropy for 0/1 rewards.


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueLoss:
    """Value loss of a set of tokens."""

    loss: Tensor
    """Scalar: the sum of weight times error, so that parts of a batch add up to the whole."""
    clipped: Tensor
    """[N] bool: tokens whose gradient the clip really zeroed."""


def squared_value_loss(
    values: Tensor, returns: Tensor, weights: Tensor, *, old_values: Tensor | None = None, clip: float | None = None
) -> ValueLoss:
    """Half the squared error: the sum of weights · ½ max((v - G)², (v_old + clamp(v - v_old, ±clip) - G)²).

    The maximum makes the loss larger, never smaller: clipping slows the critic down, and off is a sensible default.

    Args:
        values: [N] the critic now, with gradient.
        returns: [N] targets.
        weights: [N] share of the optimizer step's global denominator.
        old_values: [N] the critic at the start of the update; needed to clip.
        clip: how far a value may move from the old one; None does not clip.
    """
    error = (values - returns) ** 2
    clipped = torch.zeros_like(values, dtype=torch.bool)
    if clip is not None:
        if old_values is None or not clip > 0:
            raise ValueError(f"clip = {clip} needs old_values and must be above 0")
        moved = values - old_values
        bounded = (old_values + moved.clamp(-clip, clip) - returns) ** 2
        clipped = (bounded > error) & (moved.abs() > clip)
        error = torch.maximum(error, bounded)
    return ValueLoss(loss=0.5 * (weights * error).sum(), clipped=clipped)


def binary_value_loss(logits: Tensor, returns: Tensor, weights: Tensor) -> ValueLoss:
    """Cross-entropy for returns from 0 to 1: the critic's value is sigmoid(logit), and cannot leave that range.

    Args:
        logits: [N] with gradient.
        returns: [N] targets, from 0 to 1; those outside are taken as the nearer end.
        weights: [N] as above.
    """
    error = F.binary_cross_entropy_with_logits(logits, returns.clamp(0, 1), reduction="none")
    return ValueLoss(loss=(weights * error).sum(), clipped=torch.zeros_like(logits, dtype=torch.bool))
