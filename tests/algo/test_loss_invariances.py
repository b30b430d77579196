"""Invariances of the loss under every objective."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.algo.aggregation import LOSS_AGG_MODES, token_weights
from coterie.algo.correction import CORRECTIONS
from coterie.algo.kl import KL_ESTIMATORS
from coterie.algo.losses import LossInputs, policy_loss
from coterie.algo.objective import Objective
from coterie.algo.surrogates import SURROGATES
from loss_parts import gradient, step, take, uncorrected

CHECK = settings(deadline=None, max_examples=60)


@st.composite
def objectives(draw: st.DrawFn) -> Objective:
    name = draw(st.sampled_from(sorted(SURROGATES)))
    modes = [mode for mode in CORRECTIONS if name != "vespo" or mode == "none" or mode.startswith("token")]
    bounds: dict[str, Any] = {"dual_clip": 1.5, "delta": 1.8} if name == "clip" and draw(st.booleans()) else {}
    return uncorrected(
        loss=name,
        ratio=draw(st.sampled_from(SURROGATES[name].levels)),
        correction=draw(st.sampled_from(modes)),
        low=0.7,
        high=1.5,
        veto=draw(st.sampled_from([None, 0.6])),
        off_policy_mask=draw(st.sampled_from([None, 0.1])),
        kl_beta=draw(st.sampled_from([0.0, 0.2])),
        kl_estimator=draw(st.sampled_from(sorted(KL_ESTIMATORS))),
        entropy_bonus=draw(st.sampled_from([0.0, 0.1])),
        **bounds,
    )


@st.composite
def steps(draw: st.DrawFn) -> LossInputs:
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=9))
    inputs = step(draw(st.integers(0, 9999)), tuple(lengths), token_advantages=draw(st.booleans()))
    how = draw(st.sampled_from(sorted(LOSS_AGG_MODES)))
    weights = token_weights(lengths, [k // 2 for k in range(len(lengths))], how, max_tokens=10)  # ty: ignore[invalid-argument-type]
    inputs = replace(inputs, weights=torch.from_numpy(np.repeat(weights, lengths)))
    return inputs if draw(st.booleans()) else replace(inputs, policy_mask=None)


def rollouts_of(inputs: LossInputs, chosen: list[int]) -> torch.Tensor:
    return torch.cat([torch.nonzero(inputs.rollout == k)[:, 0] for k in chosen])


@pytest.mark.parametrize("parts", [2, 8])
@CHECK
@given(inputs=steps(), objective=objectives())
def test_cuts_into_parts_add_up(parts, inputs, objective):
    whole = policy_loss(inputs, objective)
    count = int(inputs.rollout.max()) + 1
    cuts = [part.tolist() for part in np.array_split(np.arange(count), parts) if len(part)]
    pieces = [policy_loss(take(inputs, rollouts_of(inputs, cut)), objective).loss for cut in cuts]
    added = torch.stack(pieces).sum()
    assert added.item() == pytest.approx(whole.loss.item(), rel=1e-9, abs=1e-12)
    assert gradient(added, inputs.logprobs).tolist() == pytest.approx(
        gradient(whole.loss, inputs.logprobs).tolist(), rel=1e-9, abs=1e-12
    )


@CHECK
@given(inputs=steps(), objective=objectives(), seed=st.integers(0, 99))
def test_the_order_of_rollouts_and_groups_means_nothing(inputs, objective, seed):
    whole = policy_loss(inputs, objective)
    order = np.random.default_rng(seed).permutation(int(inputs.rollout.max()) + 1).tolist()
    index = rollouts_of(inputs, order)
    other = policy_loss(take(inputs, index), objective)
    assert other.loss.item() == pytest.approx(whole.loss.item(), rel=1e-9, abs=1e-12)
    assert gradient(other.loss, inputs.logprobs).tolist() == pytest.approx(
        gradient(whole.loss, inputs.logprobs).tolist(), rel=1e-9, abs=1e-12
    )
    for name in ("ratio", "active", "clipped_low", "clipped_high", "clipped_dual"):
        torch.testing.assert_close(getattr(other, name), getattr(whole, name)[index])


BAD = [math.inf, -math.inf, math.nan, 0.0, -1e30]


def spoil(inputs: LossInputs, where: torch.Tensor, bad: list[float], names: tuple[str, ...]) -> LossInputs:
    changed = {}
    for name, value in zip(names, bad, strict=True):
        changed[name] = torch.where(where, value, getattr(inputs, name).detach())
    changed["logprobs"].requires_grad_()
    return replace(inputs, **changed)


@CHECK
@given(inputs=steps(), objective=objectives(), data=st.data())
def test_tokens_of_weight_zero_never_matter_bitwise(inputs, objective, data):
    dropped = torch.tensor(
        data.draw(st.lists(st.booleans(), min_size=len(inputs.weights), max_size=len(inputs.weights)))
    )
    inputs = replace(inputs, weights=torch.where(dropped, 0.0, inputs.weights))
    names = (
        "logprobs",
        "old_logprobs",
        "sampler_logprobs",
        "reference_logprobs",
        "advantages",
        "clip_low",
        "clip_high",
    )
    spoiled = spoil(inputs, dropped, data.draw(st.lists(st.sampled_from(BAD), min_size=7, max_size=7)), names)
    clean, other = policy_loss(inputs, objective), policy_loss(spoiled, objective)
    assert torch.equal(clean.loss, other.loss)
    assert torch.equal(gradient(clean.loss, inputs.logprobs), gradient(other.loss, spoiled.logprobs))
    assert (gradient(other.loss, spoiled.logprobs)[dropped] == 0).all()
    assert torch.equal(clean.ratio, other.ratio)
    assert torch.equal(clean.clipped_low | clean.clipped_high, other.clipped_low | other.clipped_high)


@CHECK
@given(inputs=steps(), objective=objectives(), data=st.data())
def test_tokens_under_the_policy_mask_never_matter_bitwise_where_no_rollout_is_weighed_as_a_whole(
    inputs, objective, data
):
    row = SURROGATES[objective.settings.loss]
    if not row.per_token:
        return
    kind = objective.correction.kind if objective.correction.kind.startswith("token") else "token_truncate"
    objective = replace(
        objective,
        settings=objective.settings.model_copy(update={"ratio": "token", "kl_beta": 0.0, "off_policy_mask": None}),
        correction=objective.correction.model_copy(update={"kind": kind, "veto": None}),
    )
    size = len(inputs.weights)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    inputs = replace(inputs, policy_mask=mask)
    names = ("logprobs", "old_logprobs", "sampler_logprobs", "advantages", "clip_low", "clip_high")
    spoiled = spoil(inputs, ~mask, data.draw(st.lists(st.sampled_from(BAD), min_size=6, max_size=6)), names)
    clean, other = policy_loss(inputs, objective), policy_loss(spoiled, objective)
    assert torch.equal(clean.loss, other.loss)
    assert torch.equal(gradient(clean.loss, inputs.logprobs), gradient(other.loss, spoiled.logprobs))
    assert (gradient(other.loss, spoiled.logprobs)[~mask] == 0).all()


@CHECK
@given(inputs=steps(), objective=objectives())
def test_padding_with_tokens_of_weight_zero_changes_nothing(inputs, objective):
    count = len(inputs.weights)
    doubled = take(inputs, torch.arange(2 * count) % count)
    owner = torch.cat([inputs.rollout, inputs.rollout + int(inputs.rollout.max()) + 1])
    padded = replace(doubled, weights=torch.cat([inputs.weights, torch.zeros(count)]), rollout=owner)
    assert policy_loss(padded, objective).loss.item() == pytest.approx(
        policy_loss(inputs, objective).loss.item(), rel=1e-12, abs=1e-15
    )
