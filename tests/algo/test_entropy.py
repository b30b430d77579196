from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.algo.entropy import AdaptiveEntropy, EntropyState, entropy_term, top_entropy_mask, top_entropy_threshold
from coterie.algo.losses import policy_loss
from loss_parts import gradient, leaf, number, objective_of, one_rollout


@settings(deadline=None)
@given(st.lists(st.floats(0, 10), min_size=1, max_size=40), st.floats(0.01, 1))
def test_the_threshold_is_the_interpolated_quantile(values, share):
    want = np.quantile(np.array(values), 1 - share)
    assert top_entropy_threshold(number(*values), share) == pytest.approx(want, abs=1e-9)


def test_a_fifth_of_ten_tokens_is_two():
    entropies = number(*range(10))
    mask = top_entropy_mask(entropies, top_entropy_threshold(entropies, 0.2))
    assert mask.tolist() == [False] * 8 + [True] * 2


def test_tokens_tied_with_the_threshold_are_all_kept():
    entropies = number(0, 1, 1, 1)
    assert top_entropy_mask(entropies, top_entropy_threshold(entropies, 0.25)).tolist() == [False, True, True, True]


def test_the_whole_share_keeps_all_and_no_tokens_keep_none():
    entropies = number(3, 1, 2)
    assert top_entropy_mask(entropies, top_entropy_threshold(entropies, 1)).all()
    assert top_entropy_threshold(number(), 0.2) == math.inf
    with pytest.raises(ValueError, match="share = 0 must lie in"):
        top_entropy_threshold(entropies, 0)


def test_the_bonus_pays_for_the_mean_entropy_of_the_tokens_that_count():
    entropy = leaf(1.0, 2.0, 4.0)
    now = leaf(-1.0, -1.0, -1.0)
    mask = torch.tensor([True, False, True])
    shares = torch.full((3,), 0.5, dtype=torch.float64)
    inputs = one_rollout(
        logprobs=now,
        advantages=torch.zeros(3, dtype=torch.float64),
        policy_mask=mask,
        entropy=entropy,
        entropy_weights=shares,
    )
    out = policy_loss(inputs, objective_of(entropy_bonus=0.1, correction="none"))
    assert out.loss.item() == pytest.approx(-0.1 * 2.5)
    assert out.terms["entropy"].item() == pytest.approx(-0.25)
    assert gradient(out.loss, entropy).tolist() == pytest.approx([-0.05, 0, -0.05])
    assert entropy_term(entropy, shares, mask).item() == 2.5
    with pytest.raises(ValueError, match=r"entropy_bonus = 0\.1 needs entropies"):
        policy_loss(one_rollout(logprobs=now), objective_of(entropy_bonus=0.1))


def test_the_controller_pays_only_while_entropy_is_at_or_below_its_target():
    controller = AdaptiveEntropy(target=0.2, delta=0.005, high=0.012)
    state = EntropyState()
    assert controller.bonus(state) == 0  # nothing measured yet
    history = []
    for entropy in (0.1, 0.2, 0.1, 0.3, 0.1):
        state = controller.update(state, entropy)
        history.append((round(state.coefficient, 6), round(controller.bonus(state), 6)))
    assert history == [(0.005, 0.005), (0.01, 0.01), (0.012, 0.012), (0.007, 0.0), (0.012, 0.012)]
    assert controller.update(EntropyState(coefficient=0.001), 9.0).coefficient == 0
    with pytest.raises(ValueError, match="delta > 0"):
        AdaptiveEntropy(target=0.2, delta=0)
