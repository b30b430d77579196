"""PPO's credit and its value losses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from attempts import attempt
from hypothesis import given
from hypothesis import strategies as st

from coterie.algo.gae import credit_with_critic, gae, policy_lam
from coterie.algo.value_losses import binary_value_loss, explained_variance, squared_value_loss
from coterie.config.objective import CriticConfig

SERIES = st.lists(
    st.tuples(st.booleans(), st.floats(-2, 2, width=16), st.floats(-2, 2, width=16)), min_size=1, max_size=12
)
WEIGHT = torch.tensor([1.0], dtype=torch.float64)


def masked_gae(rewards: np.ndarray, values: np.ndarray, mask: np.ndarray, gamma: float, lam: float) -> np.ndarray:
    """Over all tokens, the environment's too: its tokens carry the next value and the running sum through."""
    out = np.zeros(len(values))
    following = running = 0.0
    for t in range(len(values) - 1, -1, -1):
        if mask[t]:
            running = rewards[t] + gamma * following - values[t] + gamma * lam * running
            following = values[t]
            out[t] = running
    return out


def test_worked_numbers() -> None:
    rewards, values = np.array([0, 0, 1.0]), np.array([0.5, 0.6, 0.8])
    np.testing.assert_allclose(gae(rewards, values, lam=0.95), [0.4705, 0.39, 0.2])
    np.testing.assert_allclose(gae(rewards, values, lam=0.95) + values, [0.9705, 0.99, 1])
    np.testing.assert_allclose(gae(rewards, values, lam=1.0), [0.5, 0.4, 0.2])
    with pytest.raises(ValueError, match="3 token rewards and 2 values"):
        gae(rewards, values[:2])
    assert gae(np.zeros(0), np.zeros(0)).size == 0


@given(SERIES, st.floats(0, 1), st.floats(0, 1))
def test_leaving_observation_tokens_out_is_skipping_them(
    series: list[tuple[bool, float, float]], gamma: float, lam: float
) -> None:
    mask = np.array([sampled for sampled, _, _ in series])
    rewards = np.array([r if sampled else 0.0 for sampled, r, _ in series])
    values = np.array([v for _, _, v in series])
    whole = masked_gae(rewards, values, mask, gamma, lam)
    np.testing.assert_allclose(gae(rewards[mask], values[mask], gamma=gamma, lam=lam), whole[mask], atol=1e-12)


@given(SERIES, st.floats(0, 1))
def test_lambda_one_is_the_return_less_the_value(series: list[tuple[bool, float, float]], gamma: float) -> None:
    rewards, values = np.array([r for _, r, _ in series]), np.array([v for _, _, v in series])
    returns = [sum(gamma ** (k - t) * rewards[k] for k in range(t, len(rewards))) for t in range(len(rewards))]
    np.testing.assert_allclose(gae(rewards, values, gamma=gamma, lam=1.0), np.array(returns) - values, atol=1e-9)


def test_targets_are_raw_and_only_then_are_advantages_whitened() -> None:
    rollouts = [attempt("p#0", 1.0, length=3), attempt("p#1", 0.0, length=2)]
    values = {"p#0": np.array([0.5, 0.6, 0.8]), "p#1": np.array([0.5, 0.25])}
    credits = credit_with_critic(
        rollouts, values, CriticConfig(value_lam=0.95), whiten=True, clip_low=0.2, clip_high=0.3
    )
    np.testing.assert_allclose(np.array(credits[0].returns), [0.9705, 0.99, 1])
    assert credits[0].values == (0.5, 0.6, 0.8)
    raw = np.array([0.4705, 0.39, 0.2, -0.25 + 0.95 * -0.25, -0.25])
    whitened = np.concatenate([member.advantage for member in credits])
    np.testing.assert_allclose(whitened, (raw - raw.mean()) / raw.std(ddof=1), rtol=1e-5)
    config = CriticConfig(value_lam=0.95)
    plain = credit_with_critic(rollouts, values, config, whiten=False, clip_low=0.2, clip_high=0.3)
    np.testing.assert_allclose(np.concatenate([member.advantage for member in plain]), raw)
    assert plain[0].clip_high == 0.3


def test_lambdas_are_decoupled_and_grow_with_the_length() -> None:
    rollout, values = attempt("p#0", 1.0, length=3), {"p#0": np.array([0.5, 0.6, 0.8])}
    (member,) = credit_with_critic([rollout], values, CriticConfig(), whiten=False, clip_low=0.2, clip_high=0.2)
    np.testing.assert_allclose(np.array(member.returns), [1, 1, 1])
    np.testing.assert_allclose(member.advantage, [0.4705, 0.39, 0.2])
    adaptive = CriticConfig(length_alpha=0.05)
    assert policy_lam(adaptive, 1000) == pytest.approx(0.98)
    assert policy_lam(adaptive, 10) == policy_lam(adaptive, 0) == 0


def test_kl_in_the_reward_is_added_token_by_token() -> None:
    rollout, values = attempt("p#0", 1.0, length=2), {"p#0": np.zeros(2)}
    config, rewards = CriticConfig(lam=1.0), {"p#0": np.array([-0.1, 0.2])}
    (member,) = credit_with_critic(
        [rollout], values, config, whiten=False, clip_low=0.2, clip_high=0.2, token_rewards=rewards
    )
    np.testing.assert_allclose(member.advantage, [1.1, 1.2])


def test_what_has_no_tokens_gets_no_credit_and_what_has_no_reward_is_refused() -> None:
    bounds: dict[str, Any] = {"whiten": True, "clip_low": 0.2, "clip_high": 0.2}
    assert credit_with_critic([attempt("p#0", 1.0, length=0)], {}, CriticConfig(), **bounds) == []
    lost = replace(attempt("p#0", 1.0, length=1), reward=None)
    with pytest.raises(ValueError, match="has no reward"):
        credit_with_critic([lost], {"p#0": np.zeros(1)}, CriticConfig(), **bounds)


def test_explained_variance() -> None:
    returns = np.array([0.0, 1.0, 2.0])
    assert explained_variance(returns, returns) == 1
    assert explained_variance(returns, np.full(3, 5.0)) == 0
    assert explained_variance(returns, -returns) < 0
    assert explained_variance(np.ones(3), returns) == 0


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_clipped_value_loss_on_the_worked_numbers() -> None:
    value_loss = squared_value_loss(column(0.9), column(1.0), WEIGHT, old_values=column(0.5), clip=0.2)
    assert value_loss.loss.item() == pytest.approx(0.045)
    assert value_loss.clipped.tolist() == [True]
    assert squared_value_loss(column(0.9), column(1.0), WEIGHT).loss.item() == pytest.approx(0.005)
    with pytest.raises(ValueError, match="needs old_values"):
        squared_value_loss(column(0.9), column(1.0), WEIGHT, clip=0.2)


def test_clipped_marks_exactly_the_tokens_without_a_gradient() -> None:
    rng = np.random.default_rng(0)
    values, returns, old = (torch.tensor(rng.normal(size=200)) for _ in range(3))
    values.requires_grad_()
    value_loss = squared_value_loss(values, returns, torch.full((200,), 1 / 200), old_values=old, clip=0.5)
    value_loss.loss.backward()
    assert values.grad is not None
    assert torch.equal(value_loss.clipped, values.grad == 0)
    assert 0 < value_loss.clipped.sum() < 200


def test_cutting_the_tokens_into_parts_adds_up_to_the_same_value_loss() -> None:
    values, returns = column(0.1, 0.5, -0.3, 2.0), column(1.0, 0.0, 0.5, 1.0)
    weights = torch.full((4,), 0.25, dtype=torch.float64)
    for loss in (squared_value_loss, binary_value_loss):
        whole = loss(values, returns, weights).loss
        parts = sum(loss(values[k], returns[k], weights[k]).loss for k in (slice(0, 1), slice(1, 4)))
        torch.testing.assert_close(whole, parts)


def test_cross_entropy_pulls_the_probability_to_the_return() -> None:
    logits = column(0.0, 2.0).requires_grad_()
    value_loss = binary_value_loss(logits, column(1.0, 0.25), column(1.0, 1.0))
    p = torch.sigmoid(logits.detach())
    want = -torch.log(p[0]) - (0.25 * torch.log(p[1]) + 0.75 * torch.log(1 - p[1]))
    torch.testing.assert_close(value_loss.loss.detach(), want)
    value_loss.loss.backward()
    torch.testing.assert_close(logits.grad, p - column(1.0, 0.25))
