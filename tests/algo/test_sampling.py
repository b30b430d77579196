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
    token, logprob, _ = sample(logits, torch.tensor([draw], dtype=torch.float64), 0.7, 0, 1.0)
    probabilities = torch.softmax(logits[0] / 0.7, -1)
    upto = probabilities[: int(token) + 1].sum()
    assert float(upto - probabilities[token]) - 1e-9 <= draw <= float(upto) + 1e-9
    assert logprob.item() == pytest.approx(float(torch.log(probabilities[token])), abs=1e-9)


def test_frequencies_follow_the_softmax() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    draws = torch.from_numpy(generator("test").random(20_000))
    tokens, _, _ = sample(logits.expand(20_000, -1), draws, 1.0, 0, 1.0)
    shares = torch.bincount(tokens, minlength=4) / 20_000
    torch.testing.assert_close(shares, torch.softmax(logits[0], -1), atol=0.01, rtol=0)


def test_the_largest_draw_never_leaves_the_support() -> None:
    logits = torch.full((1, 2000), float("-inf"))
    logits[0, 700] = 0.0
    for draw in (0.0, 0.5, 1 - 2**-53):
        token, logprob, _ = sample(logits, torch.tensor([draw], dtype=torch.float64), 1.0, 0, 1.0)
        assert token.item() == 700
        assert logprob.item() == 0.0


def test_filters_keep_the_likeliest() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    assert torch.isfinite(filter_logits(logits, 2, 1.0)).tolist() == [[True, True, False, False]]
    assert torch.isfinite(filter_logits(logits, 0, 0.75)).tolist() == [[True, True, False, False]]
    assert torch.isfinite(filter_logits(logits, 0, 0.81)).tolist() == [[True, True, True, False]]
    _, logprob, _ = sample(logits, torch.tensor([0.0], dtype=torch.float64), 1.0, 2, 1.0)
    assert logprob.item() == pytest.approx(np.log(0.5 / 0.8), abs=1e-6)


def entropies_by_hand(logits: torch.Tensor, temperature: float, top_k: int, top_p: float) -> list[float]:
    """In float64, from the sorted probabilities of each row."""
    values = []
    for row in logits.double().numpy():
        scaled = np.sort(row)[::-1] / (temperature or 1)
        shares = np.exp(scaled - scaled[0]) / np.exp(scaled - scaled[0]).sum()
        if temperature and top_k:
            shares = shares[shares >= shares[top_k - 1]]  # ties at the border stay
            shares = shares / shares.sum()
        if temperature and top_p < 1:
            shares = shares[np.cumsum(shares) - shares < top_p]
            shares = shares / shares.sum()
        shares = shares[shares > 0]
        values.append(float(-(shares * np.log(shares)).sum()))
    return values


SETTINGS = [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.3, 20, 1.0), (0.9, 0, 0.6), (1.0, 40, 0.8), (0.0, 20, 0.5)]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_entropies_are_those_of_the_distribution_sampled_from(
    dtype: torch.dtype, setting: tuple[float, int, float]
) -> None:
    """Flat, peaked and certain rows, of a vocabulary that is no multiple of a block, some of it impossible."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(40, 1300, generator=generator, dtype=torch.float64) * torch.logspace(-2, 2, 40)[:, None]
    logits[:, 100:200] = float("-inf")
    logits = logits.to(dtype)
    uniform = torch.rand(40, dtype=torch.float64, generator=generator)
    entropies = sample(logits, uniform, *setting)[2]
    assert entropies.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    np.testing.assert_allclose(entropies.numpy(), entropies_by_hand(logits, *setting), atol=tolerance, rtol=tolerance)
    assert entropies.min() >= 0


def sample_alone(logits: torch.Tensor, uniform: torch.Tensor, temperature: float, top_k: int, top_p: float):
    """Tokens and log-probabilities by the same operations without those of the entropy."""
    if temperature == 0:
        return logits.float().log_softmax(-1).max(-1)[::-1]
    weights = filter_logits(logits.float() / temperature, top_k, top_p)
    weights = weights.sub_(weights.amax(-1, keepdim=True)).exp_()
    weights = torch.nn.functional.pad(weights, (0, -weights.shape[-1] % 512)).unflatten(-1, (-1, 512))
    cumulative = weights.sum(-1).double().cumsum(-1)
    target = uniform * cumulative[:, -1]
    block = (cumulative <= target[:, None]).sum(-1)
    rows = torch.arange(len(logits))
    before = torch.where(block > 0, cumulative[rows, (block - 1).clamp(min=0)], 0.0)
    inside = weights[rows, block]
    offset = (inside.cumsum(-1, dtype=torch.float64) <= (target - before)[:, None]).sum(-1)
    return block * 512 + offset, torch.log(inside[rows, offset].double() / cumulative[:, -1]).float()


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_tokens_and_log_probs_are_those_without_entropies_to_the_last_bit(setting: tuple[float, int, float]) -> None:
    generator = torch.Generator().manual_seed(4)
    logits = 3 * torch.randn(300, 5000, generator=generator)
    uniform = torch.rand(300, dtype=torch.float64, generator=generator)
    tokens, logprobs, _ = sample(logits, uniform, *setting)
    expected = sample_alone(logits, uniform, *setting)
    assert torch.equal(tokens, expected[0])
    assert torch.equal(logprobs, expected[1])
