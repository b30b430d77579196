"""Decoding at static shapes: rows that fill a bucket change nothing, and the tokens are the engine's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.engines.base import Request, Sampling
from coterie.engines.embedded import EmbeddedEngine
from coterie.engines.static import StaticDecoder, length_bucket, row_bucket
from coterie.errors import EngineError
from coterie.policy.kv import KVPool
from coterie.policy.model import Policy
from coterie.rng import uniforms
from coterie.types import SampleKey
from tiny_models import KINDS, tiny_model, tiny_policy


def pool_for(policy: Policy, slots: int, capacity: int = 128) -> KVPool:
    config = policy.model.config.get_text_config()
    shape = (slots, config.num_key_value_heads, capacity, config.head_dim)
    made = KVPool(slots, capacity)
    for layer in range(config.num_hidden_layers):
        made.keys[layer] = torch.zeros(shape, dtype=policy.dtype)
        made.values[layer] = torch.zeros(shape, dtype=policy.dtype)
    return made


def decoder_for(policy: Policy, slots: int, **how: Any) -> StaticDecoder:
    return StaticDecoder(policy, pool_for(policy, slots, how.pop("capacity", 128)), **how)


def feed(decoder: StaticDecoder, sequences: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Run the sequences side by side, one token a step; rows that are through repeat their last step."""
    logits: list[torch.Tensor] = []
    for step in range(max(map(len, sequences))):
        at = [min(step, len(sequence) - 1) for sequence in sequences]
        logits.append(decoder.step([s[k] for s, k in zip(sequences, at, strict=True)], at).clone())
    return logits


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_whole_sequence(kind: str) -> None:
    policy = tiny_policy(kind)
    rng = np.random.default_rng(1)
    sequences = [[int(x) for x in rng.integers(3, 97, length)] for length in (70, 3, 21, 66, 9)]
    logits = feed(decoder_for(policy, slots=8), sequences)[-1]
    model = tiny_model(kind)
    for row, sequence in enumerate(sequences):
        with torch.no_grad():
            want = model(input_ids=torch.tensor([sequence]), use_cache=False).logits[0, -1]
        torch.testing.assert_close(logits[row], want, rtol=1e-5, atol=1e-5)


class Codec:
    stop_ids: frozenset[int] = frozenset()

    def decode(self, ids: Sequence[int]) -> str:
        return ""


PROMPTS = [[5, 9, 4], [11, 3, 8, 40, 7, 21, 60, 2, 9], [70], [5, 9, 4, 12, 33]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top_k", [0, 7])
def test_tokens_are_those_of_the_engine(kind: str, top_k: int) -> None:
    policy = tiny_policy(kind)
    sampling = Sampling(temperature=0.8, top_k=top_k, max_tokens=70)
    keys = [SampleKey(seed=7, version=0, prompt=str(prompt), sample=0) for prompt in PROMPTS]
    requests = [Request(key=key, prompt_tokens=tuple(p)) for key, p in zip(keys, PROMPTS, strict=True)]
    turns = EmbeddedEngine(policy, Codec(), max_num_seqs=4).generate(requests, sampling)
    decoder = decoder_for(policy, slots=5)
    draws = [uniforms(key, sampling.max_tokens) for key in keys]
    rows = [list(prompt) for prompt in PROMPTS]
    logprobs: list[list[float]] = [[] for _ in rows]
    entropies: list[list[float]] = [[] for _ in rows]
    for step in range(max(map(len, PROMPTS)) + sampling.max_tokens):
        at = [min(step, len(row) - 1) for row in rows]
        spoken = [k + 1 - len(p) for k, p in zip(at, PROMPTS, strict=True)]
        uniform = [float(d[s]) if 0 <= s < len(d) else 0.0 for d, s in zip(draws, spoken, strict=True)]
        newest = [row[k] for row, k in zip(rows, at, strict=True)]
        drawn = [column.tolist() for column in decoder.sample(newest, at, uniform, sampling)]
        for row, (token, logprob, entropy) in enumerate(zip(*drawn, strict=True)):
            if 0 <= spoken[row] < sampling.max_tokens and spoken[row] == len(logprobs[row]):
                rows[row].append(token)
                logprobs[row].append(logprob)
                entropies[row].append(entropy)
    for row, turn in enumerate(turns):
        assert tuple(rows[row][len(PROMPTS[row]) :]) == turn.tokens
        np.testing.assert_allclose(logprobs[row], turn.sampler_logprobs, atol=1e-6)
        assert turn.sampler_entropies is not None
        np.testing.assert_allclose(entropies[row], turn.sampler_entropies, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(
    sequences=st.lists(st.lists(st.integers(3, 96), min_size=1, max_size=12), min_size=1, max_size=7),
    slots=st.integers(7, 16),
)
def test_company_changes_nothing_and_other_rows_stay_untouched(sequences: list[list[int]], slots: int) -> None:
    policy = _shared()
    decoder = decoder_for(policy, slots=slots)
    count = len(sequences)
    for tensor in (*decoder.pool.keys.values(), *decoder.pool.values.values()):
        tensor[count:] = 3.0
    crowd = feed(decoder, sequences)[-1]
    for row, sequence in enumerate(sequences):
        alone = feed(decoder_for(policy, slots=1), [sequence])[-1]
        torch.testing.assert_close(crowd[row], alone[0], rtol=1e-6, atol=1e-6)
    bucket = row_bucket(count, slots)
    for tensor in (*decoder.pool.keys.values(), *decoder.pool.values.values()):
        assert (tensor[count:, :, 1:] == 3.0).all()  # a filler row writes its own position 0, nothing else
        assert (tensor[bucket:] == 3.0).all()


_POLICIES: list[Policy] = []


def _shared() -> Policy:
    if not _POLICIES:
        _POLICIES.append(tiny_policy())
    return _POLICIES[0]


@given(count=st.integers(1, 300), slots=st.integers(1, 300), length=st.integers(1, 9000))
def test_buckets_hold_what_they_are_for(count: int, slots: int, length: int) -> None:
    if count <= slots:
        rows = row_bucket(count, slots)
        assert count <= rows <= min(slots, max(1, 2 * count - 1))
        assert row_bucket(rows, slots) == rows
    capacity = -(-length // 64) * 64 + 640
    span = length_bucket(length, capacity)
    assert length <= span <= max(64, length * 1.25 + 64)
    assert span % 64 == 0
    assert length_bucket(length, -(-length // 64) * 64) == -(-length // 64) * 64


class Recorder:
    """Stands in for CUDA graphs: what is captured may read nothing but its static buffers."""

    def __init__(self) -> None:
        self.count = 0

    def capture(self, function: Callable[[], Any]) -> Callable[[], Any]:
        self.count += 1
        first, second = function(), function()  # warm-up: a repeated step changes nothing
        for tensor, other in zip(_flat(first), _flat(second), strict=True):
            assert torch.equal(tensor, other)
        out = function()

        def replay() -> Any:
            for replayed, fresh in zip(_flat(out), _flat(function()), strict=True):
                replayed.copy_(fresh)  # a graph writes where it wrote when captured
            return out

        return replay


def _flat(value: Any) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else list(value)


def test_every_pair_of_buckets_is_captured_once() -> None:
    policy, recorder = _shared(), Recorder()
    decoder = decoder_for(policy, slots=8, capacity=192, runner=recorder)
    sequences = [[5 + k] * 130 for k in range(5)]
    logits = feed(decoder, sequences)
    assert recorder.count == 3  # six rows; 64, 128 and 192 tokens
    decoder.step([5], [0])
    decoder.step([5, 6, 7, 8, 9], [3] * 5)
    assert set(decoder.captured) == {(1, 64), (6, 64), (6, 128), (6, 192)}
    plain = feed(decoder_for(policy, slots=8, capacity=192), sequences)
    for got, want in zip(logits, plain, strict=True):
        assert torch.equal(got, want)


def test_a_replaced_pool_is_captured_anew() -> None:
    policy, recorder = _shared(), Recorder()
    decoder = decoder_for(policy, slots=2, runner=recorder)
    decoder.step([5], [0])
    decoder.pool.keys[1] = decoder.pool.keys[1].clone()
    decoder.step([5], [0])
    assert recorder.count == 2


def test_weights_changed_in_place_are_seen() -> None:
    policy = tiny_policy()
    decoder = decoder_for(policy, slots=2, runner=Recorder())
    before = decoder.step([5], [0]).clone()
    with torch.no_grad():
        policy.head.weight.mul_(2)
    torch.testing.assert_close(decoder.step([5], [0]), before * 2)


def test_what_does_not_fit_is_refused() -> None:
    decoder = decoder_for(_shared(), slots=2)
    with pytest.raises(EngineError, match="3 rows up to position 0, but the pool has 2 slots of 128"):
        decoder.step([5, 5, 5], [0, 0, 0])
    with pytest.raises(EngineError, match="up to position 128"):
        decoder.step([5], [128])
