from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import loss_reference
from coterie.algo.correction import CORRECTIONS
from coterie.algo.kl import KL_ESTIMATORS
from coterie.algo.losses import LossInputs, policy_loss
from coterie.algo.surrogates import SURROGATES
from loss_parts import gradient, leaf, number, objective_of, one_rollout, step, take, uncorrected


def equation_3(inputs: LossInputs, beta: float) -> Tensor:
    """DeepSeekMath, eqs. 3 and 4, in the order of operations in which coterie has always taken them."""
    ratio = torch.exp((inputs.logprobs - inputs.old_logprobs).clamp(-20, 20))
    low, high = 1 - inputs.clip_low, 1 + inputs.clip_high
    clipped = torch.maximum(torch.minimum(ratio, high), low)
    per_token = -torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    if beta:
        assert inputs.reference_logprobs is not None
        away = (inputs.reference_logprobs - inputs.logprobs).clamp(-20, 20)
        per_token = per_token + beta * (torch.exp(away) - away - 1)
    return (per_token * inputs.weights).sum()


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_defaults_are_bitwise_grpo(beta, dtype):
    inputs = replace(step(5, token_advantages=True), policy_mask=None)
    changed: dict[str, Any] = {
        name: getattr(inputs, name).to(dtype)
        for name in ("old_logprobs", "sampler_logprobs", "reference_logprobs", "advantages", "clip_low", "clip_high")
    }
    now = inputs.logprobs.detach().to(dtype).requires_grad_()
    inputs = replace(inputs, logprobs=now, weights=inputs.weights.to(dtype), **changed)
    out = policy_loss(inputs, objective_of(kl_beta=beta, correction="none"))
    want = equation_3(inputs, beta)
    assert torch.equal(out.loss, want)
    assert torch.equal(gradient(out.loss, now), gradient(want, now))


GRID: list[dict[str, Any]] = [
    *({"loss": name, "ratio": level} for name, row in SURROGATES.items() for level in row.levels),
    {"dual_clip": 1.5},
    {"delta": 1.6},
    {"dual_clip": 1.7, "delta": 1.6, "ratio": "sequence"},
    {"sapo_tau_pos": 2.0, "sapo_tau_neg": 0.5, "loss": "sapo"},
    {"off_policy_mask": 0.05},
    *({"kl_beta": 0.3, "kl_estimator": name} for name in KL_ESTIMATORS),
    {"kl_beta": 0.3, "kl_estimator": "k3_unbiased", "ratio": "sequence"},
    {"entropy_bonus": 0.2},
    *({"correction": mode, "low": 0.8, "high": 1.3} for mode in CORRECTIONS),
    {"correction": "token_truncate", "veto": 0.75},
    {"loss": "vespo", "correction": "token_truncate", "high": 1.3},
    {"loss": "vespo", "correction": "token_mask", "low": 0.8, "high": 1.3},
    {
        "loss": "sapo",
        "ratio": "sequence",
        "kl_beta": 0.1,
        "correction": "token_mask",
        "entropy_bonus": 0.1,
        "off_policy_mask": 0.1,
    },
]


@pytest.mark.parametrize("choices", GRID, ids=lambda choices: "-".join(str(v) for v in choices.values()))
@pytest.mark.parametrize("token_advantages", [False, True], ids=["rollout", "token"])
def test_value_and_gradient_against_numpy(choices, token_advantages):
    objective = uncorrected(**choices)
    clip: dict[str, Any] = {"clip_low": 0.1, "clip_high": 0.15} if objective.settings.loss == "dppo_kl" else {}
    for seed in (1, 2):
        inputs = step(seed, token_advantages=token_advantages, **clip)
        data = loss_reference.arrays(inputs)
        out = policy_loss(inputs, objective)
        now = data["logprobs"]
        assert now is not None
        assert out.loss.item() == pytest.approx(loss_reference.loss(now, now, data, objective), rel=1e-9)
        slopes = gradient(out.loss, inputs.logprobs).tolist()
        assert slopes == pytest.approx(loss_reference.gradient(data, objective).tolist(), abs=1e-7)


@pytest.mark.parametrize(
    ("loss", "ratio"),
    [*itertools.product(("clip", "unclipped", "sapo"), ("token", "sequence")), ("gmpo", "token")],
)
def test_finite_differences_of_the_whole_loss(loss, ratio):
    fixed = step(2)

    def total(now: Tensor) -> Tensor:
        objective = objective_of(loss=loss, ratio=ratio, kl_beta=0.3, kl_estimator="k3_unbiased")
        return policy_loss(replace(fixed, logprobs=now), objective).loss

    assert torch.autograd.gradcheck(total, (fixed.logprobs,))


def test_the_terms_add_up_to_the_loss():
    inputs = step(4)
    out = policy_loss(inputs, objective_of(kl_beta=0.1, entropy_bonus=0.2))
    assert set(out.terms) == {"policy", "kl", "entropy"}
    assert sum(term.item() for term in out.terms.values()) == pytest.approx(out.loss.item())
    assert not any(term.requires_grad for term in out.terms.values())


def test_what_the_metrics_read_is_detached():
    out = policy_loss(step(4), objective_of(kl_beta=0.1))
    outputs = [out.ratio, *out.kl.values(), out.correction.weight]
    assert not any(tensor.requires_grad for tensor in outputs)


@pytest.mark.parametrize("choices", GRID, ids=lambda choices: "-".join(str(v) for v in choices.values()))
def test_a_step_without_a_kept_token_has_no_nan(choices):
    inputs = step(4)
    inputs = replace(inputs, policy_mask=torch.zeros(len(inputs.weights), dtype=torch.bool))
    out = policy_loss(inputs, uncorrected(**choices))
    assert torch.isfinite(out.loss)
    assert out.terms["policy"].item() == 0
    assert torch.isfinite(gradient(out.loss, inputs.logprobs)).all()
    assert not (out.clipped_low | out.clipped_high | out.clipped_dual).any()


def test_no_tokens_at_all_are_no_loss():
    inputs = take(step(), torch.zeros(0, dtype=torch.int64))
    for name in SURROGATES:
        out = policy_loss(inputs, objective_of(loss=name, kl_beta=0.1, entropy_bonus=0.1))
        assert out.loss.item() == 0


def test_huge_log_ratios_stay_finite():
    out = policy_loss(
        one_rollout(logprobs=leaf(0.0), old_logprobs=number(-900.0), advantages=number(-1)), objective_of()
    )
    assert torch.isfinite(out.loss)


def test_what_is_missing_is_told():
    with pytest.raises(ValueError, match=r"kl_beta = 0\.1 needs reference log-probs"):
        policy_loss(one_rollout(logprobs=leaf(-1.0)), objective_of(kl_beta=0.1))


def test_a_bound_of_another_loss_is_refused():
    with pytest.raises(ValueError, match='dual_clip bounds loss = "clip" only; leave it out with "sapo"'):
        objective_of(loss="sapo", dual_clip=3.0)
