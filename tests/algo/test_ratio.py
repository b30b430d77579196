from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from coterie.algo.losses import policy_loss
from coterie.algo.tokens import RATIOS, importance_ratio, log_ratio, segment_any, segment_mean, segment_sum
from loss_parts import gradient, leaf, number, objective_of, one_rollout, step

LOGS = (0.3, -0.1, 0.2)
SAME = torch.zeros(3, dtype=torch.int64)
EVERY = torch.ones(3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("level", "want"),
    [("token", (1.3499, 0.9048, 1.2214)), ("sequence", (1.1426,) * 3), ("sequence_token", (1.1426,) * 3)],
)
def test_the_worked_numbers_of_each_level(level, want):
    ratio = importance_ratio(level, number(*LOGS), number(*LOGS), SAME, EVERY)
    assert ratio.tolist() == pytest.approx(want, abs=5e-5)


def test_the_product_of_the_ratios_is_the_length_th_power_of_the_sequence_ratio():
    ratio = importance_ratio("sequence", number(*LOGS), number(*LOGS), SAME, EVERY)
    assert math.prod(ratio.tolist()) == pytest.approx(1.4918, abs=5e-5)


@pytest.mark.parametrize("level", RATIOS)
def test_on_policy_every_ratio_is_exactly_one_and_its_gradient_the_policy_gradient(level):
    now = leaf(-0.3, -1.2, -2.0, -0.1)
    inputs = one_rollout(logprobs=now, advantages=torch.full((4,), -0.7, dtype=torch.float64))
    out = policy_loss(inputs, objective_of(ratio=level, correction="none"))
    assert out.ratio.tolist() == [1, 1, 1, 1]
    torch.testing.assert_close(gradient(out.loss, now), -inputs.advantages * inputs.weights)


@pytest.mark.parametrize("loss", ["clip", "unclipped", "sapo", "cispo"])
def test_gspo_token_has_the_gradient_of_gspo_where_the_advantage_is_constant(loss):
    inputs = replace(step(3), policy_mask=None)
    gradients = [
        gradient(policy_loss(inputs, objective_of(ratio=level, loss=loss, correction="none")).loss, inputs.logprobs)
        for level in ("sequence", "sequence_token")
    ]
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[0], gradients[1])


def test_gspo_token_follows_advantages_that_differ_by_token():
    inputs = replace(step(3, token_advantages=True), policy_mask=None)
    both = [
        gradient(
            policy_loss(inputs, objective_of(ratio=level, loss="unclipped", correction="none")).loss, inputs.logprobs
        )
        for level in ("sequence", "sequence_token")
    ]
    assert not torch.allclose(both[0], both[1])
    assert both[0].sum().item() == pytest.approx(both[1].sum().item())


def test_sums_over_rollouts_stay_inside_them_and_survive_what_is_not_counted():
    owner = torch.tensor([0, 0, 1, 2])
    assert segment_sum(number(1, 2, 3, 4), owner).tolist() == [3, 3, 3, 4]
    counted = torch.tensor([True, False, False, True])
    infinite = number(1, math.inf, math.nan, 4)
    assert segment_mean(infinite, owner, counted).tolist() == [1, 1, 0, 4]
    assert segment_any(torch.tensor([False, True, False, False]), owner).tolist() == [True, True, False, False]


def test_huge_log_ratios_are_clamped_and_have_no_gradient():
    now = leaf(0.0, 0.0)
    log_ratios = log_ratio(now, number(-900, 900))
    assert log_ratios.tolist() == [20, -20]
    assert gradient(log_ratios.sum(), now).tolist() == [0, 0]


def test_an_unknown_level_is_named():
    with pytest.raises(ValueError, match=r"ratio = 'word' is unknown; expected one of \['token'"):
        importance_ratio("word", number(1), number(1), SAME[:1], EVERY[:1])
