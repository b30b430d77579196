from __future__ import annotations

import pytest
import torch
from torch import nn

from coterie.batches.batch import Segment
from coterie.config.schema import LoraConfig
from coterie.policy.attention import PackedLayout
from coterie.policy.model import Policy
from coterie.policy.prepack import WORTH, SharedProduct, prepacked, products, supported
from tiny_models import tiny_policy

needs_kernels = pytest.mark.skipif(
    not supported(nn.Linear(1, 1, dtype=torch.bfloat16)), reason="this CPU has no packed bfloat16 kernels"
)


def logits(policy: Policy) -> torch.Tensor:
    tokens = torch.arange(3, 12)[None]
    layout = PackedLayout([Segment(start=0, prompt=4, lengths=(5,))], policy.device)
    with torch.inference_mode():
        return policy.head(policy.hidden(tokens, torch.arange(9)[None], layout)).float()


@needs_kernels
@pytest.mark.parametrize("kind", ["llama", "smollm", "qwen2"])
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)])
@pytest.mark.parametrize("rows", [1, 16, 64])
def test_packed_weights_give_the_same_logits(kind: str, lora: LoraConfig | None, rows: int) -> None:
    policy = tiny_policy(kind, dtype=torch.bfloat16, lora=lora)
    plain = logits(policy)
    with prepacked(policy.model, rows=rows, tokens=WORTH):
        packed = logits(policy)
    assert float((packed - plain).abs().max()) <= 0.02 * float(plain.abs().max())


@needs_kernels
def test_new_weights_are_packed_anew() -> None:
    policy = tiny_policy(dtype=torch.bfloat16)
    with prepacked(policy.model, rows=1, tokens=WORTH):
        before = logits(policy)
    with torch.no_grad():
        policy.head.weight.mul_(2)
    with prepacked(policy.model, rows=1, tokens=WORTH):
        torch.testing.assert_close(logits(policy), 2 * before)


@needs_kernels
def test_the_layers_are_as_before_even_after_an_error() -> None:
    policy = tiny_policy(dtype=torch.bfloat16)
    prepacked_layers = []
    with pytest.raises(ZeroDivisionError), prepacked(policy.model, rows=1, tokens=WORTH):  # noqa: PT012
        prepacked_layers = [module for module in policy.model.modules() if "forward" in vars(module)]
        raise ZeroDivisionError
    assert prepacked_layers
    assert not any("forward" in vars(module) for module in policy.model.modules())


@pytest.mark.parametrize(("dtype", "tokens"), [(torch.float64, 10_000), (torch.bfloat16, WORTH - 1)])
def test_nothing_is_packed_where_it_does_not_pay(dtype: torch.dtype, tokens: int) -> None:
    policy = tiny_policy(dtype=dtype)
    with prepacked(policy.model, rows=1, tokens=tokens):
        assert not any("forward" in vars(module) for module in policy.model.modules())


def test_siblings_share_a_product_and_each_gets_its_part() -> None:
    """Whatever order they are called in, and with other states in between."""
    attention = tiny_policy("qwen2", dtype=torch.float64).model.model.layers[0].self_attn
    layers = [attention.q_proj, attention.k_proj, attention.v_proj]
    expected = [layer.forward for layer in layers]
    shared = products(attention, 0)
    assert len({id(shared[layer]) for layer in layers}) == 1
    assert shared[attention.o_proj] is not shared[attention.q_proj]
    parts = SharedProduct(shared[layers[0]])
    forwards = [parts.part(index) for index in range(3)]
    first, second = torch.randn(2, 5, 32, dtype=torch.float64)
    for index, states in ((0, first), (1, second), (1, first), (2, first), (0, second), (2, second), (1, second)):
        torch.testing.assert_close(forwards[index](states), expected[index](states), rtol=1e-12, atol=1e-12)
