from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.algo.sampling import filter_logits, sample
from coterie.rng import generator, uniforms
from coterie.types import SampleKey


def key(**changed: object) -> SampleKey:
    defaults = {"seed": 1, "version": 2, "prompt": "q/3", "sample": 4, "turn": 0}
    return SampleKey(**defaults | changed)  # ty: ignore[invalid-argument-type]


def test_streams_are_named_by_their_counters() -> None:
    assert uniforms(key(), 5).tolist() == uniforms(key(), 9)[:5].tolist()
    others = [key(seed=2), key(version=3), key(prompt="q/4"), key(sample=5), key(turn=1)]
    assert len({uniforms(sample_key, 1)[0] for sample_key in [key(), *others]}) == 6


def test_counters_do_not_run_into_each_other() -> None:
    assert generator("a", 12, 3).random() != generator("a", 1, 23).random()
    assert generator(1).random() != generator("1").random()


@settings(deadline=None, max_examples=60)
@given(
    size=st.sampled_from([1, 3, 511, 512, 513, 1300]),
    seed=st.integers(0, 1000),
    draw=st.floats(0, 1, exclude_max=True),
    spread=st.sampled_from([0.1, 1.0, 30.0]),
)
def test_it_is_the_inverse_of_the_cumulative_distribution(size: int, seed: int, draw: float, spread: float) -> None:
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, size)) * spread)
    token, logprob = sample(logits, torch.tensor([draw], dtype=torch.float64), 0.7, 0, 1.0)
    probabilities = torch.softmax(logits[0] / 0.7, -1)
    upto = probabilities[: int(token) + 1].sum()
    assert float(upto - probabilities[token]) - 1e-9 <= draw <= float(upto) + 1e-9
    assert logprob.item() == pytest.approx(float(torch.log(probabilities[token])), abs=1e-9)


def test_frequencies_follow_the_softmax() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    draws = torch.from_numpy(generator("test").random(20_000))
    tokens, _ = sample(logits.expand(20_000, -1), draws, 1.0, 0, 1.0)
    shares = torch.bincount(tokens, minlength=4) / 20_000
    torch.testing.assert_close(shares, torch.softmax(logits[0], -1), atol=0.01, rtol=0)


def test_the_largest_draw_never_leaves_the_support() -> None:
    logits = torch.full((1, 2000), float("-inf"))
    logits[0, 700] = 0.0
    for draw in (0.0, 0.5, 1 - 2**-53):
        token, logprob = sample(logits, torch.tensor([draw], dtype=torch.float64), 1.0, 0, 1.0)
        assert token.item() == 700
        assert logprob.item() == 0.0


def test_filters_keep_the_likeliest() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    assert torch.isfinite(filter_logits(logits, 2, 1.0)).tolist() == [[True, True, False, False]]
    assert torch.isfinite(filter_logits(logits, 0, 0.75)).tolist() == [[True, True, False, False]]
    assert torch.isfinite(filter_logits(logits, 0, 0.81)).tolist() == [[True, True, True, False]]
    _, logprob = sample(logits, torch.tensor([0.0], dtype=torch.float64), 1.0, 2, 1.0)
    assert logprob.item() == pytest.approx(np.log(0.5 / 0.8), abs=1e-6)
