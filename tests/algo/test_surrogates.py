from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coterie.algo.losses import LossInputs, policy_loss
from coterie.algo.surrogates import SURROGATES, clipped_surrogate
from coterie.algo.tokens import TokenView
from loss_parts import gradient, leaf, number, objective_of, one_rollout, step, uncorrected


def of(ratio: float, advantage: float, *, high: float = 0.2, low: float = 0.2, **choices: Any) -> tuple[float, float]:
    """Value of a token, and its derivative by its log-probability."""
    now = leaf(math.log(ratio) - 1)
    inputs = one_rollout(
        logprobs=now,
        old_logprobs=number(-1.0),
        advantages=number(advantage),
        clip_low=number(low),
        clip_high=number(high),
    )
    out = policy_loss(inputs, uncorrected(**choices))
    return -out.loss.item(), -gradient(out.loss, now).item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "plain", "wider", "dual", "cap"),
    [
        (1.5, 1, (1.2, True), (1.28, True), (1.2, True), (1.2, True)),
        (1.25, 1, (1.2, True), (1.25, False), (1.2, True), (1.2, True)),
        (0.5, 1, (0.5, False), (0.5, False), (0.5, False), (0.5, False)),
        (1.5, -1, (-1.5, False), (-1.5, False), (-1.5, False), (-1.5, False)),
        (0.5, -1, (-0.8, True), (-0.8, True), (-0.8, True), (-0.8, True)),
        (8.0, -1, (-8.0, False), (-8.0, False), (-3.0, True), (-4.0, True)),
    ],
)
def test_the_clip_table(ratio, advantage, plain, wider, dual, cap):
    cases = [
        of(ratio, advantage),
        of(ratio, advantage, high=0.28),
        of(ratio, advantage, dual_clip=3.0),
        of(ratio, advantage, delta=4.0),
    ]
    for (value, slope), (want, flat) in zip(cases, (plain, wider, dual, cap), strict=True):
        assert value == pytest.approx(want)
        assert (slope == 0) is flat


def test_the_clipped_surrogate_alone_gives_the_same_value():
    assert clipped_surrogate(number(1.5), number(1.0), 0.2, 0.28).item() == pytest.approx(1.28)


def test_which_bound_holds_a_token_is_said():
    ratio = number(1.5, 0.5, 8.0, 1.5, 0.5, 1.0)
    inputs = one_rollout(
        logprobs=(ratio.log() - 1).requires_grad_(),
        old_logprobs=torch.full((6,), -1.0, dtype=torch.float64),
        advantages=number(1, -1, -1, -1, 1, 1),
    )
    out = policy_loss(inputs, objective_of(dual_clip=3.0, correction="none"))
    assert out.clipped_high.tolist() == [True, False, False, False, False, False]
    assert out.clipped_low.tolist() == [False, True, False, False, False, False]
    assert out.clipped_dual.tolist() == [False, False, True, False, False, False]


LEVELS = [(name, level) for name, row in SURROGATES.items() for level in row.levels]


@pytest.mark.parametrize(("name", "level"), LEVELS)
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000), per_token=st.booleans())
def test_flags_mark_exactly_the_tokens_whose_gradient_is_zero(name, level, seed, per_token):
    bounds: dict[str, Any] = {"dual_clip": 1.6, "delta": 1.7} if name == "clip" else {}
    inputs = step(seed, token_advantages=per_token, spread=0.6)
    out = policy_loss(inputs, objective_of(loss=name, ratio=level, correction="none", **bounds))
    flagged = out.clipped_low | out.clipped_high | out.clipped_dual
    zero = gradient(out.loss, inputs.logprobs) == 0
    if level == "sequence":  # a masked token still moves with its rollout's ratio
        whole = replace(inputs, policy_mask=None)
        out = policy_loss(whole, objective_of(loss=name, ratio=level, correction="none", **bounds))
        flagged = out.clipped_low | out.clipped_high | out.clipped_dual
        zero = gradient(out.loss, inputs.logprobs) == 0
    if name == "gmpo":  # so here
        assert not (flagged & ~zero).any()
        assert (zero == flagged)[out.active].all()
        return
    assert (zero == flagged)[out.active].all()


@pytest.mark.parametrize("name", ["clip", "unclipped", "sapo"])
def test_a_log_ratio_beyond_the_clamp_is_flagged_too(name):
    now = leaf(-0.5, -900.0, -0.5)
    inputs = one_rollout(logprobs=now, old_logprobs=number(-900, -0.5, -900), advantages=number(-1, 1, 1))
    out = policy_loss(inputs, objective_of(loss=name, correction="none"))
    assert gradient(out.loss, now).tolist() == [0, 0, 0]
    assert out.clipped_dual.tolist() == [True, False, False]
    assert out.clipped_low.tolist() == [False, True, False]
    assert out.clipped_high.tolist() == [False, False, True]


def test_gspo_clips_a_rollout_as_a_whole():
    logs = number(0.3, -0.1, 0.2)
    now = (logs - 1).requires_grad_()
    inputs = one_rollout(logprobs=now, old_logprobs=now.detach() - logs)
    inside = policy_loss(inputs, objective_of(ratio="sequence", correction="none"))
    assert -inside.loss.item() == pytest.approx(1.1426, abs=5e-5)
    assert gradient(inside.loss, now).tolist() == pytest.approx([-1.1426 / 3] * 3, abs=5e-5)
    tight = replace(inputs, clip_high=torch.full((3,), 4e-4, dtype=torch.float64))
    outside = policy_loss(tight, objective_of(ratio="sequence", correction="none"))
    assert -outside.loss.item() == pytest.approx(1.0004)
    assert outside.clipped_high.all()
    assert (gradient(outside.loss, now) == 0).all()


def test_cispo_clips_the_weight_and_keeps_the_gradient():
    value, slope = of(1.5, 1, loss="cispo")
    assert slope == pytest.approx(1.2)
    assert value == pytest.approx(1.2 * (math.log(1.5) - 1))
    assert of(0.5, -1, loss="cispo")[1] == pytest.approx(-0.8)
    # the canonical form: c_max = 5 and no bound below
    assert of(0.01, 1, loss="cispo", low=1.0, high=4.0)[1] == pytest.approx(0.01)
    assert of(8.0, 1, loss="cispo", low=1.0, high=4.0)[1] == pytest.approx(5)


@pytest.mark.parametrize(("ratio", "slope"), [(0.5, 0.940 * 0.5), (1, 1), (1.5, 0.940 * 1.5), (2, 0.786 * 2)])
def test_sapo_weighs_by_its_gate(ratio, slope):
    assert of(ratio, 1, loss="sapo")[1] == pytest.approx(slope, abs=1e-3)


def test_sapo_worked_values():
    assert of(1, 1, loss="sapo")[0] == 2
    assert of(2, 1, loss="sapo")[0] == pytest.approx(2.924, abs=5e-4)
    tau = 1.05
    assert of(1.5, -1, loss="sapo")[0] == pytest.approx(-4 / tau / (1 + math.exp(-tau * 0.5)))
    assert of(1.5, -1, loss="sapo", sapo_tau_neg=2.0)[0] == pytest.approx(-2 / (1 + math.exp(-1)))


@pytest.mark.parametrize(("ratio", "positive", "negative"), [(1.0, 1.0, 1.0), (1.5, 0.502, 1.242), (0.5, 1.120, 0.340)])
def test_vespo_worked_numbers(ratio, positive, negative):
    assert of(ratio, 1, loss="vespo")[1] == pytest.approx(positive, abs=1e-3)
    assert of(ratio, -1, loss="vespo")[1] == pytest.approx(-negative, abs=1e-3)


def test_vespo_weighs_a_rollout_by_its_whole_ratio_to_the_sampler():
    logs, mismatch = number(0.1, 0.2), number(0.05, 1.5)
    now = (logs - 1).requires_grad_()
    old = now.detach() - logs
    inputs = one_rollout(logprobs=now, old_logprobs=old, sampler_logprobs=old - mismatch, weights=number(1, 1))
    for correction, w in (("none", math.exp(0.3)), ("token_truncate", math.exp(0.35) * 2)):
        out = policy_loss(inputs, objective_of(loss="vespo", correction=correction))
        want = math.exp(3) * w**2 * math.exp(-3 * w)
        assert gradient(out.loss, now).tolist() == pytest.approx([-want, -want])
    with pytest.raises(ValueError, match=r"kind = 'sequence_mask' does not fit objective\.loss = 'vespo'"):
        policy_loss(inputs, objective_of(loss="vespo", correction="sequence_mask"))


def test_gmpo_bounds_each_token_on_one_side_before_the_mean():
    logs = number(0.9, -0.9, 0.1)
    now = (logs - 1).requires_grad_()
    inputs = one_rollout(
        logprobs=now,
        old_logprobs=now.detach() - logs,
        clip_low=number(0.4, 0.4, 0.4),
        clip_high=number(0.4, 0.4, 0.4),
        advantages=number(1, 1, 1),
    )
    up = policy_loss(inputs, objective_of(loss="gmpo", correction="none"))
    assert -up.loss.item() == pytest.approx(math.exp((0.4 - 0.9 + 0.1) / 3))
    assert (gradient(up.loss, now) == 0).tolist() == up.clipped_high.tolist() == [True, False, False]
    down = policy_loss(replace(inputs, advantages=number(-1, -1, -1)), objective_of(loss="gmpo", correction="none"))
    assert -down.loss.item() == pytest.approx(-math.exp((0.9 - 0.4 + 0.1) / 3))
    assert down.clipped_low.tolist() == [False, True, False]


def of_probabilities(new: float, old: float, advantage: float, name: str, bound: float) -> tuple[float, float]:
    now = leaf(math.log(new))
    inputs = one_rollout(
        logprobs=now,
        old_logprobs=number(math.log(old)),
        advantages=number(advantage),
        clip_low=number(bound),
        clip_high=number(bound),
    )
    out = policy_loss(inputs, objective_of(loss=name, correction="none"))
    return -gradient(out.loss, now).item(), out.clipped_low.item() - out.clipped_high.item()


@pytest.mark.parametrize(("name", "bound"), [("dppo_tv", 0.15), ("dppo_kl", 0.05)])
def test_dppo_masks_by_the_change_of_probability_not_by_the_ratio(name, bound):
    # a rare token may change its ratio a lot
    assert of_probabilities(0.02, 0.01, 1, name, bound) == (pytest.approx(2), 0)
    # a common one may not change its probability so much in the direction that A pushes to
    assert of_probabilities(0.7, 0.5, 1, name, bound) == (0, -1)
    assert of_probabilities(0.3, 0.5, -1, name, bound) == (0, 1)
    # and is free to come back
    assert of_probabilities(0.3, 0.5, 1, name, bound) == (pytest.approx(0.6), 0)
    assert of_probabilities(0.7, 0.5, -1, name, bound) == (pytest.approx(-1.4), 0)


def test_dppo_caps_the_weight_of_a_token_at_twenty():
    assert of_probabilities(0.1, 0.001, 1, "dppo_tv", 0.2) == (20, 0)


@pytest.mark.parametrize("name", ["dppo_tv", "dppo_kl"])
def test_dppo_survives_certain_tokens(name):
    now = leaf(0.0, 0.0, -50.0, -1e-9)
    inputs = one_rollout(logprobs=now, old_logprobs=number(0.0, -50.0, 0.0, 0.0), advantages=number(1, 1, -1, 1))
    out = policy_loss(inputs, objective_of(loss=name, correction="none"))
    assert torch.isfinite(out.loss)
    assert torch.isfinite(gradient(out.loss, now)).all()
    assert (out.clipped_low | out.clipped_high).tolist() == [False, True, True, False]


def test_a_users_own_function_sees_the_tokens_and_is_maximised():
    views: list[TokenView] = []

    def cubed(view: TokenView) -> Tensor:
        views.append(view)
        return view.ratio**3 * view.advantages * view.params["scale"]

    inputs = step()
    out = policy_loss(inputs, objective_of(loss=cubed, params={"scale": 2.0}, correction="none"))
    mask = inputs.policy_mask
    assert mask is not None
    ratio = torch.exp(inputs.logprobs - inputs.old_logprobs)
    want = -(torch.where(mask, 2 * ratio**3 * inputs.advantages, 0.0) * inputs.weights).sum()
    torch.testing.assert_close(out.loss, want)
    torch.testing.assert_close(gradient(out.loss, inputs.logprobs), gradient(want, inputs.logprobs))
    assert not (out.clipped_low | out.clipped_high | out.clipped_dual).any()
    assert views[0].rollout.tolist() == inputs.rollout.tolist()


def bad_shape(view: TokenView) -> Tensor:
    return view.ratio.sum()


def bad_type(view: TokenView) -> Any:
    return 1.0


@pytest.mark.parametrize(("function", "got"), [(bad_shape, r"a tensor of shape \[\]"), (bad_type, "float")])
def test_a_users_function_that_answers_wrongly_is_told(function, got):
    with pytest.raises(ValueError, match=rf"loss bad_\w+ returned {got}; expected one number per token, \[11\]"):
        policy_loss(step(), objective_of(loss=function))


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"loss": "max"}, "Input should be 'clip', 'unclipped'"),
        ({"loss": "dppo_tv", "ratio": "sequence"}, "ratio = 'sequence' does not fit objective.loss = 'dppo_tv'"),
    ],
)
def test_names_that_do_not_fit_are_told(choices, message):
    with pytest.raises(ValueError, match=message):
        policy_loss(step(), objective_of(**choices))


def test_every_row_says_what_it_is():
    for row in SURROGATES.values():
        assert row.formula
        assert row.source
        assert callable(row.function)


def test_inputs_of_a_row_are_not_changed():
    inputs: LossInputs = step()
    before = [inputs.logprobs.clone(), inputs.advantages.clone(), inputs.clip_low.clone()]
    for name in SURROGATES:
        policy_loss(inputs, objective_of(loss=name))
    assert all(
        torch.equal(a, b) for a, b in zip(before, (inputs.logprobs, inputs.advantages, inputs.clip_low), strict=True)
    )
