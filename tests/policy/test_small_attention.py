from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from coterie.policy.attention import additive, small_attention


def tensors(dtype: torch.dtype) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 10, 8), (2, 3, 7, 8), (2, 3, 7, 8))
    made = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]
    allowed = torch.rand(1, 1, 10, 7, generator=generator) > 0.4
    allowed[..., 0] = True  # every query sees something
    return made, additive(allowed, dtype), torch.randn(2, 3, 10, 8, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)]
)
def test_values_and_gradients_are_those_of_attention(dtype: torch.dtype, tolerance: float) -> None:
    (query, key, value), mask, grad = tensors(dtype)
    exact = [tensor.detach().double().requires_grad_() for tensor in (query, key, value)]
    want = F.scaled_dot_product_attention(*exact, attn_mask=mask.double(), scale=0.3)
    want.backward(grad.double())
    got = small_attention(query, key, value, mask, 0.3)
    got.backward(grad)
    assert got.dtype == dtype
    pairs = [
        (got, want),
        *((tensor.grad, reference.grad) for tensor, reference in zip((query, key, value), exact, strict=True)),
    ]
    for computed, expected in pairs:
        assert computed is not None
        assert expected is not None
        assert float(((computed.double() - expected).norm() / expected.norm()).detach()) < tolerance
