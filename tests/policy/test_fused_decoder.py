"""The fused decoder has the states of the model's own layers; with packed weights, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coterie.config.schema import LoraConfig
from coterie.policy.fused_decoder import fused_decoder
from coterie.policy.kv import DecodeLayout, KVPool, PromptKV
from coterie.policy.model import Policy
from coterie.policy.prepack import WORTH, prepacked, products, supported
from tiny_models import tiny_policy

KINDS = ("llama", "smollm", "qwen2", "qwen3", "mistral-window")
LENGTHS = (11, 4, 7)
"""Tokens that the rows hold."""


def pool_of(policy: Policy) -> KVPool:
    """Rows with keys and values of random tokens."""
    attention, size = policy.decoder.layers[0].self_attn, policy.head_size
    heads, generator = attention.k_proj.out_features // size, torch.Generator().manual_seed(0)
    pool = KVPool(len(LENGTHS), 16)
    for row, length in enumerate(LENGTHS):
        keys, values = (
            {
                layer: torch.randn(heads, length, size, generator=generator, dtype=torch.float64).to(policy.dtype)
                for layer in range(len(policy.decoder.layers))
            }
            for _ in range(2)
        )
        pool.admit([row], PromptKV(keys=keys, values=values))
    return pool


@torch.inference_mode()
def decoded(policy: Policy, step: Any) -> list[Tensor]:
    """States of three passes over the rows."""
    pool, states = pool_of(policy), []
    for number in range(3):
        tokens = torch.tensor([5 + number, 9, 20 - number])
        positions = torch.tensor(LENGTHS)[:, None] + number
        states.append(step(tokens, positions, DecodeLayout(pool, positions, int(positions.max()) + 1)))
    return states


def through_modules(policy: Policy) -> list[Tensor]:
    return decoded(policy, lambda tokens, *rest: policy.hidden(tokens[:, None], *rest)[:, 0])


def randomized(policy: Policy) -> Policy:
    """Norms and biases, which begin as ones and zeros, with other values."""
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.model.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * 0.2)
    return policy


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_the_states_are_those_of_the_modules(kind: str, dtype: torch.dtype, error: float) -> None:
    """Unpacked: a product of other size may add in another order."""
    policy = randomized(tiny_policy(kind, dtype=dtype))
    fused = fused_decoder(policy.decoder, products(policy.model, 0))
    assert fused is not None
    for states, expected in zip(decoded(policy, fused), through_modules(policy), strict=True):
        torch.testing.assert_close(states, expected, rtol=error, atol=error)


@pytest.mark.skipif(
    not supported(nn.Linear(1, 1, dtype=torch.bfloat16)), reason="this CPU has no packed bfloat16 kernels"
)
@pytest.mark.parametrize("kind", KINDS)
def test_packed_weights_are_shared_with_the_modules(kind: str) -> None:
    policy = randomized(tiny_policy(kind, dtype=torch.bfloat16))
    with torch.inference_mode(), prepacked(policy.model, rows=3, tokens=WORTH) as packed:
        fused = fused_decoder(policy.decoder, packed)
        assert fused is not None
        pairs = zip(decoded(policy, fused), through_modules(policy), strict=True)
        assert all(torch.equal(states, expected) for states, expected in pairs)


def test_other_layers_and_adapters_have_none() -> None:
    for policy in (tiny_policy("gemma3"), tiny_policy("llama", lora=LoraConfig(rank=2))):
        assert fused_decoder(policy.decoder, products(policy.model, 0)) is None
    assert fused_decoder(tiny_policy("llama").decoder, {}) is None
