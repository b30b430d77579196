from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from coterie.algo.correction import CORRECTIONS, Correction, MismatchSums, correct, mismatch_metrics
from coterie.algo.losses import policy_loss
from coterie.config.objective import RolloutCorrectionConfig
from loss_parts import gradient, leaf, number, objective_of, one_rollout, step, take

W = (3.0, 0.4, 1.1, 1.0, 0.9)
OWNER = torch.tensor([0, 0, 0, 1, 1])
EVERY = torch.ones(5, dtype=torch.bool)


def corrected(mode: Any, **bounds: Any) -> Correction:
    return correct(
        number(*W).log() - 1,
        torch.full((5,), -1.0, dtype=torch.float64),
        OWNER,
        EVERY,
        RolloutCorrectionConfig(kind=mode, **bounds),
    )


@pytest.mark.parametrize(
    ("mode", "bounds", "weight", "truncated"),
    [
        ("none", {}, [1, 1, 1, 1, 1], []),
        ("token_truncate", {}, [2, 0.4, 1.1, 1, 0.9], [0]),
        ("token_clip", {"low": 0.5}, [2, 0.5, 1.1, 1, 0.9], [0, 1]),
        ("token_mask", {"low": 0.5, "high": 5}, [3, 0, 1.1, 1, 0.9], []),
        ("sequence_truncate", {"high": 1.2}, [1.2, 1.2, 1.2, 0.9, 0.9], [0, 1, 2]),
        ("sequence_mask", {"high": 1.3}, [0, 0, 0, 0.9, 0.9], []),
        ("sequence_mask", {"high": 3}, [1.32, 1.32, 1.32, 0.9, 0.9], []),
        ("geometric_mask", {"low": 0.94, "high": 1.05}, [0, 0, 0, 1, 1], []),
        ("token_truncate", {"veto": 0.5}, [0, 0, 0, 1, 0.9], []),
        ("none", {"veto": 0.5}, [0, 0, 0, 1, 1], []),
    ],
)
def test_each_mode_by_hand(mode, bounds, weight, truncated):
    correction = corrected(mode, **bounds)
    assert correction.weight.tolist() == pytest.approx(weight)
    assert correction.kept.tolist() == [value != 0 for value in weight]
    assert [k for k, flag in enumerate(correction.truncated.tolist()) if flag] == truncated


@pytest.mark.parametrize(("length", "product"), [(10, 2.6), (100, 13_780)])
def test_the_length_trap(length, product):
    """A tenth too likely per token: the product grows with the length, the geometric mean does not."""
    old, sampler = torch.full((length,), math.log(1.1), dtype=torch.float64), torch.zeros(length, dtype=torch.float64)
    owner, every = torch.zeros(length, dtype=torch.int64), torch.ones(length, dtype=torch.bool)
    whole = correct(old, sampler, owner, every, RolloutCorrectionConfig(kind="sequence_truncate", high=1e9))
    assert whole.weight.tolist() == pytest.approx([product] * length, rel=5e-3)
    mean = correct(old, sampler, owner, every, RolloutCorrectionConfig(kind="geometric_mask", low=0.999, high=1.11))
    assert mean.weight.tolist() == [1] * length


@pytest.mark.parametrize("mode", CORRECTIONS)
def test_equal_log_probs_leave_the_loss_bitwise_as_it_is(mode):
    inputs = step()
    inputs = replace(inputs, sampler_logprobs=inputs.old_logprobs)
    plain = policy_loss(inputs, objective_of(correction="none"))
    out = policy_loss(inputs, objective_of(correction=mode, low=0.5, veto=1e-4))
    assert torch.equal(out.loss, plain.loss)
    assert torch.equal(gradient(out.loss, inputs.logprobs), gradient(plain.loss, inputs.logprobs))


@pytest.mark.parametrize("mode", CORRECTIONS)
def test_nothing_is_differentiated_through_the_weights(mode):
    now = leaf(-1.0, -0.5)
    inputs = one_rollout(logprobs=now, old_logprobs=now, sampler_logprobs=number(-1.2, -0.3))
    out = policy_loss(inputs, objective_of(loss="unclipped", correction=mode))
    assert not out.correction.weight.requires_grad
    assert gradient(out.loss, now).tolist() == [0, 0]  # ρ = 1 whatever now is, and w is a constant


def test_a_mask_leaves_the_kl_of_a_token():
    inputs = one_rollout(
        logprobs=leaf(-1.0, -1.0), sampler_logprobs=number(-9.0, -1.0), reference_logprobs=number(-2.0, -2.0)
    )
    out = policy_loss(inputs, objective_of(correction="token_mask", kl_beta=0.1))
    assert out.active.tolist() == [False, True]
    assert out.terms["policy"].item() == -0.5
    assert out.terms["kl"].item() == pytest.approx(0.1 * (math.exp(-1) - 1 + 1))


@pytest.mark.parametrize("mode", CORRECTIONS)
def test_a_sampler_that_reports_infinity_gives_no_nan(mode):
    now = leaf(-1.0, -1.0)
    inputs = one_rollout(logprobs=now, sampler_logprobs=number(-math.inf, math.inf))
    out = policy_loss(inputs, objective_of(correction=mode))
    assert torch.isfinite(out.loss)
    assert torch.isfinite(gradient(out.loss, now)).all()


def sums_of(inputs: Any, mode: Any = "token_truncate") -> MismatchSums:
    every = torch.ones(len(inputs.logprobs), dtype=torch.bool)
    correction = correct(
        inputs.old_logprobs,
        inputs.sampler_logprobs,
        inputs.rollout,
        every,
        RolloutCorrectionConfig(kind=mode, high=1.2),
    )
    return mismatch_metrics(inputs.old_logprobs, inputs.sampler_logprobs, inputs.rollout, every, correction)


def test_metrics_against_numpy():
    inputs = step(7)
    logs = (inputs.old_logprobs - inputs.sampler_logprobs).numpy()
    w = np.exp(logs)
    whole = np.exp([logs[inputs.rollout.numpy() == k].sum() for k in range(4)])
    want = {
        "kl_k1": -logs.mean(),
        "kl_k3": (w - logs - 1).mean(),
        "kl_error": (w - logs - 1).std(ddof=1) / len(w) ** 0.5,
        "chi2": (w**2).mean() - 1,
        "chi2_sequence": (whole**2).mean() - 1,
        "ess": w.sum() ** 2 / (len(w) * (w**2).sum()),
        "ess_sequence": whole.sum() ** 2 / (4 * (whole**2).sum()),
        "min": w.min(),
        "mean": w.mean(),
        "max": w.max(),
        "truncated": (w > 1.2).mean(),
        "masked": 0,
    }
    assert sums_of(inputs).summary() == pytest.approx(want)
    assert sums_of(inputs, "token_mask").summary()["masked"] == pytest.approx((w > 1.2).mean())


def test_parts_add_up_to_the_whole():
    inputs = step(7)
    parts = [take(inputs, torch.nonzero(inputs.rollout == k)[:, 0]) for k in range(4)]
    added = sum((sums_of(part) for part in parts), MismatchSums())
    assert added.summary() == pytest.approx(sums_of(inputs).summary())
    assert MismatchSums().summary() == {}
    assert sums_of(take(inputs, torch.tensor([0]))).summary()["kl_error"] == math.inf


def test_tokens_that_do_not_count_are_in_no_sum():
    inputs = step(7)
    counted = inputs.rollout != 2
    old = torch.where(counted, inputs.old_logprobs, math.inf)
    correction = correct(
        old,
        inputs.sampler_logprobs,
        inputs.rollout,
        counted,
        RolloutCorrectionConfig(kind="sequence_truncate", high=1.2),
    )
    sums = mismatch_metrics(old, inputs.sampler_logprobs, inputs.rollout, counted, correction)
    kept = take(inputs, torch.nonzero(counted)[:, 0])
    assert sums.summary()["kl_k3"] == pytest.approx(sums_of(kept).summary()["kl_k3"])
    assert sums.rollouts == 3


def test_wrong_names_and_bounds_are_told():
    with pytest.raises(ValueError, match=r"kind\n *Input should be 'none', 'token_truncate'"):
        corrected("median")
    with pytest.raises(ValueError, match=r"low = 3\.0 must be smaller than rollout_correction\.high"):
        objective_of(low=3.0)
