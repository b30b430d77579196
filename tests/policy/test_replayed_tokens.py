"""A replayed token's ratio is to the policy that sampled it: against a naive float64 loss, and in its limits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_learner import TEMPERATURE, assert_same, credits_of, learner, rollouts

from coterie.algo.objective import Objective
from coterie.batches.pack import plan
from coterie.types import Credit, Rollout
from tiny_models import tiny_model, tiny_policy

LOW, HIGH = 0.2, 0.3


def naive_logprobs(model: Any, item: Rollout) -> torch.Tensor:
    """[N] of the rollout's own tokens, with full logits."""
    ids = list(item.turns[-1].prompt_tokens + item.turns[-1].tokens)
    positions = [len(turn.prompt_tokens) + k for turn in item.turns for k in range(len(turn.tokens))]
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    table = torch.log_softmax(logits / TEMPERATURE, -1)
    return torch.stack([table[k - 1, ids[k]] for k in positions])


def sampled_by(item: Rollout, logprobs: np.ndarray) -> Rollout:
    """The rollout as if its sampler had said these log-probs [N]."""
    ends = np.cumsum([len(turn.tokens) for turn in item.turns])[:-1]
    turns = zip(item.turns, np.split(logprobs, ends), strict=True)
    return replace(
        item, turns=tuple(replace(turn, sampler_logprobs=tuple(logprobs.tolist())) for turn, logprobs in turns)
    )


def earlier(item: Rollout, version: int = -2) -> Rollout:
    return replace(item, id=f"{item.id}|{version}", context=replace(item.context, version=version))


def batch_with_a_past(seed: int = 0) -> tuple[list[Rollout], list[Rollout], list[Credit]]:
    """Fresh rollouts, past ones of the same and of other prompts with ratios beyond both bounds, and credit."""
    rng = np.random.default_rng(seed)
    model = tiny_model("llama")
    fresh, past = [], []
    for item in rollouts(seed=seed, two_turns=True):
        logprobs = naive_logprobs(model, item).detach().numpy()
        fresh.append(sampled_by(item, logprobs + rng.normal(0, 0.2, len(logprobs))))
    old = [earlier(item, -1) for item in rollouts(seed=seed, prompts=1, two_turns=True)]
    for item in (*old, *(earlier(item, -2) for item in rollouts(seed=seed + 50, prompts=2))):
        logprobs = naive_logprobs(model, item).detach().numpy()
        past.append(sampled_by(item, logprobs - rng.normal(0, 0.4, len(logprobs))))
    credits = [
        Credit(
            rollout_id=rollout.id,
            advantage=float(rng.normal()) if k % 3 else tuple(rng.normal(size=rollout.trained_tokens).tolist()),
            clip_low=LOW,
            clip_high=HIGH,
            replayed=rollout in past,
        )
        for k, rollout in enumerate((*fresh, *past))
    ]
    return fresh, past, credits


def naive_loss(model: Any, fresh: list[Rollout], past: list[Rollout], credits: list[Credit], how: str) -> torch.Tensor:
    """min(ρA, clip(ρ)A), one rollout at a time: fresh ρ to the present policy, times the mismatch weight cut at 2; past
    ρ to the recorded log-probs, and no weight beside it."""
    advantages = {credit.rollout_id: credit.advantage for credit in credits}
    everyone = [*fresh, *past]
    lengths = {rollout.id: rollout.trained_tokens for rollout in everyone}
    prompts = {(rollout.context.prompt_id, rollout.context.version) for rollout in everyone}
    loss = torch.zeros((), dtype=torch.float64)
    for rollout in everyone:
        now = naive_logprobs(model, rollout)
        sampler = torch.tensor([p for turn in rollout.turns for p in turn.sampler_logprobs], dtype=torch.float64)
        old, weight = sampler, torch.ones_like(sampler)
        if rollout in fresh:
            old = now.detach()
            weight = (old - sampler).exp().clamp(max=2.0)
        ratio = (now - old).exp()
        a = torch.tensor(advantages[rollout.id], dtype=torch.float64)
        gain = weight * torch.minimum(ratio * a, ratio.clamp(1 - LOW, 1 + HIGH) * a)
        same = [other for other in everyone if _key(other) == _key(rollout)]
        share = {
            "seq-mean-token-mean": 1 / (len(everyone) * lengths[rollout.id]),
            "token-mean": 1 / sum(lengths.values()),
            "prompt-mean": 1 / (len(prompts) * sum(lengths[other.id] for other in same)),
        }[how]
        loss = loss - share * gain.sum()
    return loss


def _key(rollout: Rollout) -> tuple[str, int]:
    return rollout.context.prompt_id, rollout.context.version


def corrected() -> Any:
    return learner(tiny_policy(), objective=Objective())


@pytest.mark.parametrize("how", ["seq-mean-token-mean", "token-mean", "prompt-mean"])
@pytest.mark.parametrize("budget", [1, 60, 10_000])
def test_the_gradient_with_past_groups_is_the_naive_one(how: Any, budget: int) -> None:
    fresh, past, credits = batch_with_a_past()
    batches = plan([*fresh, *past], credits, loss_agg_mode=how, max_tokens_per_microbatch=budget, skip_zero=True)
    got = corrected().gradient(batches)
    model = tiny_model("llama")
    naive_loss(model, fresh, past, credits, how).backward()
    assert_same(got, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})


@pytest.mark.parametrize("how", ["seq-mean-token-mean", "token-mean", "seq-mean-token-sum-norm"])
def test_a_group_of_age_zero_is_the_group_trained_twice(how: Any) -> None:
    trained = learner(tiny_policy())
    items = rollouts(seed=2)
    scores = trained.score(
        plan(items, credits_of(items), loss_agg_mode="token-mean", max_tokens_per_microbatch=10_000, skip_zero=False)
    )
    items = [sampled_by(item, scores[item.id].logprobs) for item in items]
    credits = credits_of(items)
    by_id = {credit.rollout_id: credit for credit in credits}
    group = [item for item in items if item.context.prompt_id == "q0"]
    again = [earlier(item) for item in group]

    def gradient(*, replayed: bool) -> dict[str, torch.Tensor]:
        copies = [replace(by_id[a.id], rollout_id=b.id, replayed=replayed) for a, b in zip(group, again, strict=True)]
        return trained.gradient(
            plan(
                [*items, *again],
                [*credits, *copies],
                loss_agg_mode=how,
                max_tokens_per_microbatch=10_000,
                skip_zero=True,
                max_tokens=12,
            )
        )

    assert_same(gradient(replayed=True), gradient(replayed=False), 1e-9)


def test_replaying_a_whole_batch_at_age_zero_changes_nothing() -> None:
    """Past rollouts are rows of the batch: they share the step and do not lengthen it."""
    trained = learner(tiny_policy())
    items = rollouts(seed=2)
    scores = trained.score(
        plan(items, credits_of(items), loss_agg_mode="token-mean", max_tokens_per_microbatch=10_000, skip_zero=False)
    )
    again = [earlier(sampled_by(item, scores[item.id].logprobs)) for item in items]
    credits = credits_of(items)
    copies = [replace(credit, rollout_id=b.id, replayed=True) for credit, b in zip(credits, again, strict=True)]
    options: dict[str, Any] = {
        "loss_agg_mode": "seq-mean-token-mean",
        "max_tokens_per_microbatch": 10_000,
        "skip_zero": True,
    }
    assert_same(
        trained.gradient(plan([*items, *again], [*credits, *copies], **options)),
        trained.gradient(plan(items, credits, **options)),
        1e-9,
    )


def test_a_token_that_moved_beyond_the_bounds_stands_still() -> None:
    """What is clipped is the way since it was sampled: no first step is free, as it is for a fresh rollout."""
    trained = learner(tiny_policy())
    items = rollouts(seed=2)
    scores = trained.score(
        plan(items, credits_of(items), loss_agg_mode="token-mean", max_tokens_per_microbatch=10_000, skip_zero=False)
    )

    def size(advantage: float, moved: float, *, replayed: bool) -> float:
        past = [earlier(sampled_by(item, scores[item.id].logprobs - moved)) for item in items]
        credits = [
            Credit(rollout_id=item.id, advantage=advantage, clip_low=LOW, clip_high=HIGH, replayed=replayed)
            for item in past
        ]
        gradient = trained.gradient(
            plan(past, credits, loss_agg_mode="token-mean", max_tokens_per_microbatch=10_000, skip_zero=True)
        )
        return max(float(value.abs().max()) for value in gradient.values())

    assert size(1.0, 0.5, replayed=True) == 0  # ρ = 1.65 > 1.3
    assert size(-1.0, -0.5, replayed=True) == 0  # ρ = 0.61 < 0.8
    assert size(-1.0, 0.5, replayed=True) > 0
    assert size(1.0, -0.5, replayed=True) > 0
    assert size(1.0, 0.5, replayed=False) > 0


def test_a_later_minibatch_still_compares_with_the_sampler() -> None:
    fresh, past, credits = batch_with_a_past(seed=3)
    by_id = {credit.rollout_id: credit for credit in credits}

    def packed(items: list[Rollout]) -> Any:
        return plan(
            items,
            [by_id[x.id] for x in items],
            loss_agg_mode="token-mean",
            max_tokens_per_microbatch=10_000,
            skip_zero=False,
        )

    trained, other = learner(tiny_policy(), lr=1e-3), learner(tiny_policy(), lr=1e-3)
    report = trained.update([packed(fresh), packed(past)])
    other.update([packed(fresh)])
    scores = other.score(packed(past))
    sampler = {x.id: np.concatenate([np.array(turn.sampler_logprobs) for turn in x.turns]) for x in past}
    ratios = np.concatenate([np.exp(scores[x.id].logprobs - sampler[x.id]) for x in past])
    assert report.metrics["replay/ratio"] == pytest.approx(ratios.mean(), rel=1e-6)


def test_fresh_tokens_keep_their_own_metrics_and_only_they_are_recorded() -> None:
    fresh, past, credits = batch_with_a_past(seed=4)
    fresh_credits = [credit for credit in credits if not credit.replayed]
    options: dict[str, Any] = {"loss_agg_mode": "token-mean", "max_tokens_per_microbatch": 60, "skip_zero": False}
    both = corrected().update([plan([*fresh, *past], credits, **options)])
    alone = corrected().update([plan(fresh, fresh_credits, **options)])
    model = tiny_model("llama")
    clipped = total = 0
    for rollout in past:
        now = naive_logprobs(model, rollout).detach().numpy()
        ratio = np.exp(now - np.concatenate([np.array(turn.sampler_logprobs) for turn in rollout.turns]))
        a = np.array(next(c.advantage for c in credits if c.rollout_id == rollout.id))
        clipped += int((((ratio > 1 + HIGH) & (a > 0)) | ((ratio < 1 - LOW) & (a < 0))).sum())
        total += len(ratio)
    assert 0 < clipped < total
    assert both.metrics["replay/clipped"] == pytest.approx(clipped / total)
    assert both.metrics["ratio/max"] == both.metrics["ratio/mean"] == 1.0
    for name in ("entropy", "advantage/abs", "clip/low", "mismatch/kl", "mismatch/ess_sequence", "mismatch/truncated"):
        assert both.metrics[name] == pytest.approx(alone.metrics[name], rel=1e-9), name
    assert both.metrics["tokens/trained"] == alone.metrics["tokens/trained"] + total
    assert set(both.logprobs) == {rollout.id for rollout in fresh}


def test_a_step_of_past_groups_alone_is_measured_too() -> None:
    _, past, credits = batch_with_a_past(seed=5)
    past_credits = [credit for credit in credits if credit.replayed]
    metrics = (
        corrected()
        .update([plan(past, past_credits, loss_agg_mode="token-mean", max_tokens_per_microbatch=60, skip_zero=False)])
        .metrics
    )
    assert metrics["tokens/trained"] == sum(rollout.trained_tokens for rollout in past)
    assert metrics["grad_norm"] > 0
    assert "ratio/mean" not in metrics


def test_the_kl_and_a_mask_by_entropy_reach_past_tokens_too() -> None:
    fresh, past, credits = batch_with_a_past(seed=6)
    trained = learner(tiny_policy(), beta=0.1, reference=tiny_policy(seed=9))
    trained.entropy_share = 0.5
    options: dict[str, Any] = {"loss_agg_mode": "token-mean", "max_tokens_per_microbatch": 60, "skip_zero": False}
    batches = plan([*fresh, *past], credits, **options)
    scores = trained.score(batches)
    given = trained.update([batches, batches], scores=scores).metrics
    again = learner(tiny_policy(), beta=0.1, reference=tiny_policy(seed=9))
    again.entropy_share = 0.5
    assert again.update([batches, batches]).metrics == given
    bare = trained.score(batches, with_reference=False)[past[0].id]
    assert bare.reference is None
    assert bare.entropy is None
