from __future__ import annotations

import numpy as np
import pytest

from coterie.algo.aggregation import LOSS_AGG_MODES, token_weights


@pytest.mark.parametrize(
    ("how", "want"),
    [
        ("seq-mean-token-mean", 0.5),
        ("token-mean", 0.2),
        ("seq-mean-token-sum-norm", 0.1),
        ("seq-mean-token-sum", 1.0),
        ("prompt-mean", 0.2),
    ],
)
def test_two_rollouts_of_two_and_eight_tokens_the_first_all_ones(how, want):
    weights = token_weights([2, 8], [0, 0], how, max_tokens=10)
    assert weights[0] * 2 * 1.0 + weights[1] * 8 * 0.0 == pytest.approx(want)


def test_by_prompt_is_the_mean_over_prompts_of_their_token_means():
    lengths, prompts = [2, 8, 5], [7, 7, 3]
    assert token_weights(lengths, prompts, "prompt-mean").tolist() == pytest.approx([1 / 20, 1 / 20, 1 / 10])


@pytest.mark.parametrize("how", ["seq-mean-token-mean", "token-mean", "prompt-mean"])
def test_a_mean_of_ones_is_one(how):
    lengths = [3, 1, 4, 1, 5]
    assert token_weights(lengths, [0, 0, 1, 1, 2], how) @ np.array(lengths) == pytest.approx(1)


@pytest.mark.parametrize("how", LOSS_AGG_MODES)
def test_a_rollout_without_tokens_is_in_no_denominator(how):
    with_empty = token_weights([2, 0, 8, 0], [0, 0, 0, 1], how, max_tokens=10)
    without = token_weights([2, 8], [0, 0], how, max_tokens=10)
    assert with_empty.tolist() == [without[0], 0, without[1], 0]


@pytest.mark.parametrize("how", LOSS_AGG_MODES)
def test_no_rollouts_have_no_weights(how):
    assert token_weights([], [], how, max_tokens=10).shape == (0,)
    assert token_weights([0], [0], how, max_tokens=10).tolist() == [0]


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="max_tokens = 0; 'seq-mean-token-sum-norm' needs"):
        token_weights([1], [0], "seq-mean-token-sum-norm")
    with pytest.raises(ValueError, match="how = 'median' is unknown"):
        token_weights([1], [0], "median")  # ty: ignore[invalid-argument-type]
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(1,\)"):
        token_weights([1, 2], [0], "token-mean")
    with pytest.raises(ValueError, match=r"lengths\[1\] = -2 is negative"):
        token_weights([1, -2], [0, 0], "token-mean")
