from __future__ import annotations

import pytest
import torch

from coterie.algo.losses import off_policy_keep, policy_loss
from loss_parts import gradient, leaf, number, objective_of, one_rollout

OWNER = torch.tensor([0, 0, 1, 1])
EVERY = torch.ones(4, dtype=torch.bool)


def test_only_wrong_rollouts_that_the_policy_left_are_dropped():
    now = number(-1.0, -3.0, -1.0, -1.2)  # mean distance 1.0 and 0.1
    sampler = number(-1.0, -1.0, -1.0, -1.0)
    for advantage, want in ((-1.0, [False, False, True, True]), (1.0, [True] * 4), (0.0, [True] * 4)):
        assert off_policy_keep(now, sampler, torch.full((4,), advantage), OWNER, EVERY, 0.5).tolist() == want
    assert off_policy_keep(now, sampler, -torch.ones(4), OWNER, EVERY, 1.0).all()  # at the bound it stays


def test_a_dropped_rollout_keeps_its_kl():
    now = leaf(-3.0, -3.0)
    inputs = one_rollout(
        logprobs=now,
        old_logprobs=now.detach(),
        sampler_logprobs=number(-1.0, -1.0),
        reference_logprobs=number(-2.0, -2.0),
        advantages=number(-1.0, -1.0),
    )
    out = policy_loss(inputs, objective_of(off_policy_mask=0.5, correction="none"))
    assert out.active.tolist() == [False, False]
    assert out.loss.item() == 0
    assert gradient(out.loss, now).tolist() == [0, 0]
    with_kl = policy_loss(inputs, objective_of(off_policy_mask=0.5, correction="none", kl_beta=0.1))
    assert with_kl.loss.item() == with_kl.terms["kl"].item() > 0


def test_a_negative_distance_is_refused():
    with pytest.raises(ValueError, match=r"off_policy_mask\n *Input should be greater than 0"):
        objective_of(off_policy_mask=-1)
