from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from coterie.algo.kl import KL_ESTIMATORS, AdaptiveBeta, k1, k2, k3, k3_straight
from coterie.algo.losses import policy_loss
from loss_parts import gradient, leaf, number, objective_of, one_rollout, step

PI = number(0.4123, 0.2501, 0.3376)
REF = number(0.2, 0.5, 0.3)
REVERSE = (0.2303, -0.2145, -0.0158)
FORWARD = (0.2123, -0.2499, 0.0376)


def expected_gradient(name: str, behaviour: Tensor) -> list[float]:
    """Of the estimator inside a loss over all three tokens, sampled with these chances, with respect to the logits."""
    logits = PI.log().requires_grad_()
    now = torch.log_softmax(logits, 0)
    ratio = torch.exp(now - behaviour.log())
    loss = (behaviour * KL_ESTIMATORS[name].function(now, REF.log(), ratio)).sum()
    return gradient(loss, logits).tolist()


@pytest.mark.parametrize(("x", "want"), [(0.693147, (0.693, 0.240, 0.193)), (-0.693147, (-0.693, 0.240, 0.307))])
def test_worked_numbers(x, want):
    assert [f(number(x), number(0)).item() for f in (k1, k2, k3)] == pytest.approx(want, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "want"),
    [("k1", (0, 0, 0)), ("k2", REVERSE), ("k3", FORWARD), ("k3_unbiased", REVERSE), ("k3_straight", REVERSE)],
)
def test_expected_gradients_on_policy_by_exact_enumeration(name, want):
    assert expected_gradient(name, PI) == pytest.approx(want, abs=2e-4)


def test_the_wanted_gradient_is_that_of_the_reverse_divergence():
    logits = PI.log().requires_grad_()
    now = torch.log_softmax(logits, 0)
    assert gradient((now.exp() * (now - REF.log())).sum(), logits).tolist() == pytest.approx(REVERSE, abs=2e-4)


def test_off_policy_only_the_unbiased_estimator_keeps_its_gradient():
    behaviour = number(0.25, 0.25, 0.5)
    assert expected_gradient("k3_unbiased", behaviour) == pytest.approx(REVERSE, abs=2e-4)
    for name in ("k1", "k2", "k3", "k3_straight"):
        assert expected_gradient(name, behaviour) != pytest.approx(REVERSE, abs=1e-2)


def test_k1_and_k3_are_unbiased_values_and_k2_is_not():
    true = (PI * (PI / REF).log()).sum().item()
    assert true == pytest.approx(0.1649, abs=1e-4)
    mean = {f.__name__: (PI * f(PI.log(), REF.log())).sum().item() for f in (k1, k2, k3)}
    assert mean["k1"] == pytest.approx(true)
    assert mean["k3"] == pytest.approx(true)
    assert mean["k2"] != pytest.approx(true, abs=1e-3)


def test_straight_through_has_the_value_of_k3_and_the_gradient_of_k2():
    now, ref = leaf(-0.2, -3.0), number(-1.0, -2.0)
    assert k3_straight(now, ref).tolist() == k3(now, ref).tolist()
    torch.testing.assert_close(gradient(k3_straight(now, ref).sum(), now), gradient(k2(now, ref).sum(), now))


@pytest.mark.parametrize("name", ["k1", "k2", "k3", "k3_unbiased"])
def test_finite_differences_of_each_estimator(name):
    old = number(-0.35, -1.0, -2.1)

    def value(now: Tensor) -> Tensor:
        return KL_ESTIMATORS[name].function(now, number(-0.5, -1.5, -1.0), torch.exp(now - old))

    assert torch.autograd.gradcheck(value, (leaf(-0.3, -1.2, -2.0),))


@pytest.mark.parametrize("name", KL_ESTIMATORS)
def test_infinite_log_ratios_stay_finite(name):
    now = leaf(-900.0, 0.0)
    inputs = one_rollout(logprobs=now, reference_logprobs=number(0.0, -900.0))
    out = policy_loss(inputs, objective_of(kl_beta=0.1, kl_estimator=name, correction="none"))
    assert torch.isfinite(out.loss)
    assert torch.isfinite(gradient(out.loss, now)).all()


def test_all_three_values_are_reported_whichever_is_in_the_loss():
    inputs = step()
    assert inputs.reference_logprobs is not None
    for beta in (0.0, 0.1):
        out = policy_loss(inputs, objective_of(kl_beta=beta, kl_estimator="k3_unbiased"))
        for f in (k1, k2, k3):
            torch.testing.assert_close(out.kl[f.__name__], f(inputs.logprobs, inputs.reference_logprobs).detach())
    assert policy_loss(replace(inputs, reference_logprobs=None), objective_of()).kl == {}


def test_the_adaptive_weight_is_pulled_towards_its_target():
    controller = AdaptiveBeta(target=0.1, horizon=1000)
    assert controller.update(0.04, kl=0.3, count=100) == pytest.approx(0.04 * 1.02)
    assert controller.update(0.04, kl=0.0, count=100) == pytest.approx(0.04 * 0.98)
    assert controller.update(0.04, kl=0.11, count=500) == pytest.approx(0.04 * 1.05)
    assert controller.update(0.04, kl=0.1, count=500) == 0.04
    assert controller.update(0.04, kl=0.0, count=100_000) == 0
    with pytest.raises(ValueError, match="target = 0"):
        AdaptiveBeta(target=0, horizon=1)
