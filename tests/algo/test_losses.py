from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from coterie.algo.kl import k1, k2, k3
from coterie.algo.losses import LossInputs, clipped_surrogate, grpo_loss


def inputs(**changed: Any) -> LossInputs:
    n = len(changed["logprobs"])
    same = torch.full((n,), 0.2, dtype=torch.float64)
    held: dict[str, Any] = {
        "old_logprobs": changed["logprobs"].detach(),
        "reference_logprobs": None,
        "advantages": torch.ones(n, dtype=torch.float64),
        "clip_low": same,
        "clip_high": same,
        "weights": torch.full((n,), 1 / n, dtype=torch.float64),
    }
    return LossInputs(**held | changed)


def leaf(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    ("ratio", "advantage", "high", "want", "flat"),
    [
        (1.5, 1, 0.2, 1.2, True),
        (1.5, 1, 0.28, 1.28, True),
        (1.25, 1, 0.2, 1.2, True),
        (1.25, 1, 0.28, 1.25, False),
        (0.5, 1, 0.2, 0.5, False),
        (1.5, -1, 0.2, -1.5, False),
        (0.5, -1, 0.2, -0.8, True),
        (8.0, -1, 0.2, -8.0, False),
    ],
)
def test_the_clip_table(ratio: float, advantage: float, high: float, want: float, flat: bool) -> None:
    held = leaf(ratio)
    value = clipped_surrogate(held, torch.tensor([advantage], dtype=torch.float64), 0.2, high)
    value.sum().backward()
    assert value.item() == pytest.approx(want)
    assert held.grad is not None
    assert (held.grad.item() == 0) is flat


def test_clip_flags_count_only_tokens_whose_gradient_is_zero() -> None:
    now = torch.log(torch.tensor([1.5, 1.5, 0.5, 0.5], dtype=torch.float64)).requires_grad_()
    out = grpo_loss(
        inputs(
            logprobs=now,
            old_logprobs=torch.zeros(4, dtype=torch.float64),
            advantages=torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64),
        ),
        kl_beta=0,
    )
    out.loss.backward()
    assert out.clipped_high.tolist() == [True, False, False, False]
    assert out.clipped_low.tolist() == [False, False, False, True]
    assert now.grad is not None
    assert (now.grad == 0).tolist() == [True, False, False, True]


def test_on_policy_the_gradient_is_the_policy_gradient() -> None:
    now = leaf(-0.3, -1.2, -2.0)
    advantages = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    out = grpo_loss(inputs(logprobs=now, advantages=advantages, weights=weights), kl_beta=0)
    out.loss.backward()
    assert out.ratio.tolist() == [1, 1, 1]
    assert now.grad is not None
    torch.testing.assert_close(now.grad, -advantages * weights)


def test_kl_needs_a_reference() -> None:
    with pytest.raises(ValueError, match=r"kl_beta = 0\.1 needs reference log-probs"):
        grpo_loss(inputs(logprobs=leaf(-1.0)), kl_beta=0.1)


def test_finite_differences_of_the_whole_loss() -> None:
    now = leaf(-0.3, -1.2, -2.0, -0.9)
    fixed = inputs(
        logprobs=now,
        old_logprobs=torch.tensor([-0.35, -1.0, -2.1, -0.9], dtype=torch.float64),
        reference_logprobs=torch.tensor([-0.5, -1.5, -1.0, -0.9], dtype=torch.float64),
        advantages=torch.tensor([1.0, -1.0, 0.5, -2.0], dtype=torch.float64),
    )

    def loss(values: Tensor) -> Tensor:
        from dataclasses import replace

        return grpo_loss(replace(fixed, logprobs=values), kl_beta=0.3).loss

    assert torch.autograd.gradcheck(loss, (now,))


def test_huge_log_ratios_stay_finite() -> None:
    out = grpo_loss(
        inputs(
            logprobs=leaf(0.0),
            old_logprobs=torch.tensor([-900.0], dtype=torch.float64),
            advantages=-torch.ones(1),
        ),
        kl_beta=0,
    )
    assert torch.isfinite(out.loss)


@pytest.mark.parametrize(("x", "want"), [(0.693147, (0.693, 0.240, 0.193)), (-0.693147, (-0.693, 0.240, 0.307))])
def test_kl_estimators_worked_numbers(x: float, want: tuple[float, ...]) -> None:
    now, ref = torch.tensor([x], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    assert [f(now, ref).item() for f in (k1, k2, k3)] == pytest.approx(want, abs=1e-3)


def test_gradient_of_k3_in_the_loss_is_policy_minus_reference() -> None:
    """Exact enumeration of a 3-way softmax: the expected gradient of k3 is π - π_ref, not that of KL(π‖π_ref)."""
    pi = torch.tensor([0.4123, 0.2501, 0.3376], dtype=torch.float64)
    ref = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    logits = pi.log().requires_grad_()
    logprobs = torch.log_softmax(logits, 0)
    (logprobs.detach().exp() * k3(logprobs, ref.log())).sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(
        logits.grad, torch.tensor([0.2123, -0.2499, 0.0376], dtype=torch.float64), atol=2e-4, rtol=0
    )
