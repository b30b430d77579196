"""Tokens that Clip-Cov and KL-Cov choose, by hand-worked numbers and by their definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from coterie.algo.entropy import covariant_tokens, token_covariances
from coterie.algo.losses import policy_loss
from coterie.config.objective import ObjectiveConfig
from loss_parts import gradient, leaf, number, one_rollout, uncorrected

LOGPROBS = np.array([-0.1, -2.0, -0.2, -3.7])  # mean -1.5
ADVANTAGES = np.array([1.5, -0.5, -2.5, 1.5])  # mean 0
COVARIANCES = [2.1, 0.25, -3.25, -3.3]


def chosen(covariances: list[float], seed: int = 0, **choices: object) -> list[bool]:
    settings = ObjectiveConfig.model_validate(choices)
    return covariant_tokens(np.array(covariances), settings, np.random.default_rng(seed)).tolist()


def test_covariances_by_hand() -> None:
    assert token_covariances(LOGPROBS, ADVANTAGES).tolist() == pytest.approx(COVARIANCES)
    both = np.cov(LOGPROBS, ADVANTAGES, bias=True)[0, 1]
    assert token_covariances(LOGPROBS, ADVANTAGES).mean() == pytest.approx(both)
    assert token_covariances(np.zeros(0), np.zeros(0)).tolist() == []


def test_kl_cov_takes_the_highest_and_at_least_one() -> None:
    assert chosen(COVARIANCES, loss="kl_cov") == [True, False, False, False]
    assert chosen(COVARIANCES, loss="kl_cov", kl_cov_ratio=0.5) == [True, True, False, False]
    assert chosen(COVARIANCES, loss="kl_cov", kl_cov_ratio=0.74) == [True, True, False, False]
    assert chosen([], loss="kl_cov") == []


def test_clip_cov_draws_between_its_bounds() -> None:
    assert chosen(COVARIANCES, loss="clip_cov", clip_cov_ratio=1.0) == [True, False, False, False]
    assert chosen(COVARIANCES, loss="clip_cov", clip_cov_ub=2.0) == [False] * 4
    wide = {"loss": "clip_cov", "clip_cov_lb": -4.0, "clip_cov_ratio": 0.5}
    draws = [chosen(COVARIANCES, seed, **wide) for seed in range(40)]
    assert {sum(draw) for draw in draws} == {2}
    assert all(any(draw[token] for draw in draws) for token in range(4))
    assert chosen(COVARIANCES, loss="clip") == [False] * 4


def test_bounds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match=r"clip_cov_lb = 6.0 must be smaller than clip_cov_ub = 5.0"):
        ObjectiveConfig(clip_cov_lb=6.0)


def test_the_losses_by_hand() -> None:
    ratios = (1.5, 0.9, 1.1)
    now = leaf(*(math.log(ratio) - 1 for ratio in ratios))
    inputs = one_rollout(
        logprobs=now,
        old_logprobs=number(-1, -1, -1),
        advantages=number(1, 1, -1),
        weights=number(1, 1, 1),
        covariant=torch.tensor([False, True, True]),
    )
    clip = policy_loss(inputs, uncorrected(loss="clip_cov"))
    assert -clip.loss.item() == pytest.approx(1.2)  # the first is clipped at 1.2, the chosen two are left out
    assert gradient(clip.loss, now).tolist() == [0, 0, 0]
    assert (clip.clipped_high.tolist(), clip.clipped_low.tolist()) == ([True, True, False], [False, False, True])
    penalised = policy_loss(inputs, uncorrected(loss="kl_cov", ppo_kl_coef=2.0))
    expected = 1.5 + (0.9 - 2 * -math.log(0.9)) + (-1.1 - 2 * math.log(1.1))
    assert -penalised.loss.item() == pytest.approx(expected)
    assert (-gradient(penalised.loss, now)).tolist() == pytest.approx([1.5, 0.9 + 2, -1.1 - 2])


def test_positive_advantages_count_less() -> None:
    now = leaf(-1, -1, -1)
    inputs = one_rollout(logprobs=now, advantages=number(2, -3, 0), weights=number(1, 1, 1))
    loss = policy_loss(inputs, uncorrected(positive_weight=0.1)).loss
    assert (-gradient(loss, now)).tolist() == pytest.approx([0.2, -3, 0])
