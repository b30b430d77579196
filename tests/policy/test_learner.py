"""Every shortcut of the update gives the gradient of a naive, padded-free, one-rollout-at-a-time float64 objective."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coterie.algo.advantages import by_prompt, credit
from coterie.algo.objective import Objective
from coterie.batches.pack import plan
from coterie.config.objective import AdvantageConfig, ObjectiveConfig, ReferenceConfig, RolloutCorrectionConfig
from coterie.config.optim import OptimConfig
from coterie.config.schema import LoraConfig
from coterie.errors import NonFiniteError
from coterie.policy.learner import Learner
from coterie.policy.model import Policy
from coterie.policy.reference import Reference
from coterie.types import Context, Credit, Outcome, Rollout, StopReason, Turn
from tiny_models import KINDS, tiny_model, tiny_policy

TEMPERATURE = 0.7
UNCORRECTED = RolloutCorrectionConfig(kind="none")


def rollouts(
    *,
    seed: int = 0,
    prompts: int = 3,
    size: int = 3,
    shortest: int = 2,
    two_turns: bool = False,
    head: tuple[int, ...] = (),
) -> list[Rollout]:
    rng = np.random.default_rng(seed)
    made = []
    for p in range(prompts):
        prompt = head + tuple(int(x) for x in rng.integers(3, 97, rng.integers(shortest, shortest + 7)))
        for s in range(size):
            turns = [turn(rng, prompt)]
            if two_turns:
                tool = tuple(int(x) for x in rng.integers(3, 97, 3))
                turns.append(turn(rng, turns[0].prompt_tokens + turns[0].tokens + tool))
            # The last prompt's rollouts all earn the same: a zero-variance group.
            reward = 1.0 if p == prompts - 1 else float(rng.integers(0, 2) if s else p % 2) + 0.25 * s
            made.append(rollout(f"q{p}", s, tuple(turns), reward))
    return made


def turn(rng: np.random.Generator, prompt: tuple[int, ...]) -> Turn:
    tokens = tuple(int(x) for x in rng.integers(3, 97, rng.integers(1, 12)))
    return Turn(
        prompt_tokens=prompt,
        tokens=tokens,
        sampler_logprobs=tuple(-float(x) for x in rng.random(len(tokens))),
        temperature=TEMPERATURE,
        stop_reason=StopReason.STOP,
        version=0,
    )


def rollout(prompt_id: str, sample: int, turns: tuple[Turn, ...], reward: float) -> Rollout:
    context = Context(
        prompt_id=prompt_id,
        task="t",
        difficulty=None,
        version=0,
        prompt_length=len(turns[0].prompt_tokens),
        completion_length=sum(len(t.tokens) for t in turns),
        stop_reason=StopReason.STOP,
    )
    return Rollout(
        id=f"{prompt_id}#{sample}@0",
        sample=sample,
        turns=turns,
        completion="",
        reward=reward,
        reward_parts={"r": reward},
        outcome=Outcome.OK,
        context=context,
    )


def credits_of(items: list[Rollout]) -> list[Credit]:
    by_id = {item.id: item for item in items}
    return credit(by_prompt(items), by_id, AdvantageConfig(), clip_low=0.2, clip_high=0.3)


def learner(
    policy: Policy,
    *,
    beta: float = 0.0,
    reference: Policy | None = None,
    objective: Objective | None = None,
    **optim: Any,
) -> Learner:
    settings: dict[str, Any] = {"lr": 1e-2, "max_grad_norm": 1e9} | optim
    return Learner(
        policy,
        optim=OptimConfig(**settings),
        objective=objective
        or Objective(settings=ObjectiveConfig(kl_beta=beta), correction=RolloutCorrectionConfig(kind="none")),
        temperature=TEMPERATURE,
        total_steps=10,
        reference=Reference(policy, reference, ReferenceConfig()) if beta else None,
    )


def naive_loss(
    model: torch.nn.Module,
    items: list[Rollout],
    loss_agg_mode: Any,
    *,
    beta: float = 0.0,
    reference: Any = None,
) -> torch.Tensor:
    """Eq. 3 of DeepSeekMath, one rollout at a time, with full logits."""
    advantages = {credit.rollout_id: credit.advantage for credit in credits_of(items)}
    total_tokens = sum(len(t.tokens) for item in items for t in item.turns)
    loss = torch.zeros((), dtype=torch.float64)
    for item in items:
        ids = list(item.turns[-1].prompt_tokens + item.turns[-1].tokens)
        trained = [(len(t.prompt_tokens) + k) for t in item.turns for k in range(len(t.tokens))]

        def logp(network: Any, ids: list[int] = ids, trained: list[int] = trained) -> torch.Tensor:
            logits = network(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
            table = torch.log_softmax(logits / TEMPERATURE, -1)
            return torch.stack([table[k - 1, ids[k]] for k in trained])

        now = logp(model)
        ratio = torch.exp(now - now.detach())
        a = torch.tensor(advantages[item.id], dtype=torch.float64)
        per_token = -torch.minimum(ratio * a, ratio.clamp(0.8, 1.3) * a)
        if beta:
            with torch.no_grad():
                ref = logp(reference)
            per_token = per_token + beta * (torch.exp(ref - now) - (ref - now) - 1)
        loss = loss + (
            per_token.sum() / total_tokens if loss_agg_mode == "token-mean" else per_token.mean() / len(items)
        )
    return loss


def gradient(
    trained: Learner,
    items: list[Rollout],
    *,
    loss_agg_mode: Any = "seq-mean-token-mean",
    budget: int = 10_000,
    skip: bool = True,
) -> dict[str, torch.Tensor]:
    return trained.gradient(
        plan(items, credits_of(items), loss_agg_mode=loss_agg_mode, max_tokens_per_microbatch=budget, skip_zero=skip)
    )


def naive_gradient(kind: str, items: list[Rollout], loss_agg_mode: Any, **kw: Any) -> dict[str, torch.Tensor]:
    model = tiny_model(kind)
    naive_loss(model, items, loss_agg_mode, **kw).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor], tolerance: float = 5e-7) -> None:
    """Equal up to what transformers' RMSNorm rounds: it works in float32 whatever the weights' dtype."""
    assert got.keys() == want.keys()
    for name in want:
        error = float((got[name] - want[name]).abs().max() / want[name].abs().max())
        assert error < tolerance, f"{name}: {error:.2e}"
    assert max(float(g.abs().max()) for g in want.values()) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss_agg_mode", ["seq-mean-token-mean", "token-mean"])
def test_packed_gradient_equals_the_naive_one(kind: str, loss_agg_mode: Any) -> None:
    items = rollouts()
    assert_same(
        gradient(learner(tiny_policy(kind)), items, loss_agg_mode=loss_agg_mode),
        naive_gradient(kind, items, loss_agg_mode),
    )


@pytest.mark.parametrize("kind", ["llama", "mistral-window", "gemma3"])
def test_long_prompts_take_the_causal_kernel_and_give_the_same_gradient(kind: str) -> None:
    items = rollouts(seed=1, prompts=2, size=2, shortest=130)
    assert_same(gradient(learner(tiny_policy(kind)), items), naive_gradient(kind, items, "seq-mean-token-mean"))


@pytest.mark.parametrize("budget", [70, 10_000])
@pytest.mark.parametrize("shortest", [2, 100])
@pytest.mark.parametrize("kind", ["llama", "mistral-window", "gemma3"])
def test_a_head_that_prompts_share_is_run_once_and_gives_the_same_gradient(
    kind: str, shortest: int, budget: int
) -> None:
    items = rollouts(seed=2, shortest=shortest, head=tuple(range(20, 50)))
    rows = plan(
        items, credits_of(items), loss_agg_mode="seq-mean-token-mean", max_tokens_per_microbatch=10_000, skip_zero=True
    )
    assert [row.segments[0].head for row in rows] == [30]
    assert_same(
        gradient(learner(tiny_policy(kind)), items, budget=budget), naive_gradient(kind, items, "seq-mean-token-mean")
    )


@pytest.mark.parametrize("budget", [1, 25, 60, 10_000])
def test_micro_batch_cuts_do_not_change_the_gradient(budget: int) -> None:
    items = rollouts(seed=3)
    assert_same(
        gradient(learner(tiny_policy()), items, budget=budget), naive_gradient("llama", items, "seq-mean-token-mean")
    )


def test_skipping_zero_variance_groups_is_exact() -> None:
    items = rollouts(seed=4)
    kept = gradient(learner(tiny_policy()), items, skip=False)
    assert_same(gradient(learner(tiny_policy()), items, skip=True), kept)


def test_order_of_rollouts_does_not_matter() -> None:
    items = rollouts(seed=5)
    shuffled = [items[k] for k in np.random.default_rng(0).permutation(len(items))]
    assert_same(gradient(learner(tiny_policy()), shuffled), gradient(learner(tiny_policy()), items))


def test_turns_of_tools_are_not_trained() -> None:
    items = rollouts(seed=6, two_turns=True)
    assert_same(gradient(learner(tiny_policy()), items), naive_gradient("llama", items, "seq-mean-token-mean"))


def test_kl_to_a_reference_model() -> None:
    items = rollouts(seed=7)
    trained = learner(tiny_policy(), beta=0.3, reference=tiny_policy(seed=9))
    want = naive_gradient("llama", items, "seq-mean-token-mean", beta=0.3, reference=tiny_model(seed=9))
    assert_same(gradient(trained, items, skip=False), want)


def test_lora_reference_is_the_model_with_adapters_off() -> None:
    items = rollouts(seed=8)

    def moved(beta: float, reference: Policy | None) -> Learner:
        trained = learner(tiny_policy(lora=LoraConfig(rank=2, alpha=4)), beta=beta, reference=reference)
        generator = torch.Generator().manual_seed(1)
        for parameter in trained.policy.parameters().values():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.1
        return trained

    assert_same(gradient(moved(0.3, None), items, skip=False), gradient(moved(0.3, tiny_policy()), items, skip=False))


def test_bf16_weights_move_by_less_than_their_rounding() -> None:
    """A rate at which pure bfloat16 would lose every update still accumulates in the masters."""
    trained = learner(tiny_policy(dtype=torch.bfloat16), lr=1e-6)
    before = {name: master.detach().clone() for name, master in trained.optimizer.master_weights.items()}
    items = rollouts()
    for _ in range(3):
        trained.update(
            [
                plan(
                    items,
                    credits_of(items),
                    loss_agg_mode="seq-mean-token-mean",
                    max_tokens_per_microbatch=1000,
                    skip_zero=True,
                )
            ]
        )
    moved = [
        float((master.detach() - before[name]).abs().max()) for name, master in trained.optimizer.master_weights.items()
    ]
    assert max(moved) == pytest.approx(3e-6, rel=0.2)


def test_first_minibatch_has_ratio_one_and_later_ones_do_not() -> None:
    items = rollouts(seed=2)
    batches = plan(
        items, credits_of(items), loss_agg_mode="seq-mean-token-mean", max_tokens_per_microbatch=10_000, skip_zero=True
    )
    once = learner(tiny_policy()).update([batches])
    assert once.metrics["ratio/max"] == 1.0
    assert once.metrics["clip/low"] == once.metrics["clip/high"] == 0.0
    twice = learner(tiny_policy()).update([batches, batches])
    assert twice.metrics["ratio/max"] > 1.0
    for key, values in once.logprobs.items():
        np.testing.assert_allclose(values, twice.logprobs[key], rtol=1e-12)


def in_minibatches(items: list[Rollout], count: int) -> list[list[Any]]:
    parts = [items[part::count] for part in range(count)]
    kwargs: dict[str, Any] = {"loss_agg_mode": "token-mean", "max_tokens_per_microbatch": 10_000, "skip_zero": False}
    return [plan(part, credits_of(items), **kwargs) for part in parts]


def as_sampled(items: list[Rollout], scores: Any, shift: float = 0.0) -> list[Rollout]:
    """The rollouts with the learner's own log-probs as the sampler's, all off by `shift`."""
    return [
        replace(item, turns=(replace(item.turns[0], sampler_logprobs=tuple(scores[item.id].logprobs + shift)),))
        for item in items
    ]


def bypassing(kind: Any = "token_truncate", *, bypass: bool = True) -> Objective:
    return Objective(correction=RolloutCorrectionConfig(kind=kind, bypass_mode=bypass))


def test_bypass_mode_takes_the_samplers_logprobs_and_makes_no_scoring_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    items = rollouts(prompts=4)
    (whole,) = in_minibatches(items, 1)
    exact = as_sampled(items, learner(tiny_policy()).score(whole))
    scored, bypassed = (learner(tiny_policy(), objective=bypassing(bypass=bypass)) for bypass in (False, True))
    expected = scored.update(in_minibatches(exact, 3))
    monkeypatch.setattr(bypassed, "score", None)
    report = bypassed.update(in_minibatches(exact, 3))
    for name, parameter in bypassed.policy.parameters().items():
        torch.testing.assert_close(parameter, scored.policy.parameters()[name], rtol=1e-9, atol=1e-12)
    assert report.metrics["ratio/max"] == pytest.approx(expected.metrics["ratio/max"])
    assert report.metrics["kl/old"] == pytest.approx(expected.metrics["kl/old"]) != 0


def test_bypass_mode_measures_the_mismatch_before_the_policy_moves() -> None:
    items = rollouts(prompts=4)
    (whole,) = in_minibatches(items, 1)
    shifted = as_sampled(items, learner(tiny_policy()).score(whole), shift=0.05)
    report = learner(tiny_policy(), objective=bypassing()).update(in_minibatches(shifted, 3))
    assert report.metrics["mismatch/outside"] == 1.0, "of the tokens compared: those of the first optimizer step"
    assert report.metrics["mismatch/k1"] == pytest.approx(0.05)
    assert set(report.logprobs) == {item.id for item in items[0::3]}
    assert learner(tiny_policy(), objective=bypassing()).update(in_minibatches(shifted, 1)).metrics[
        "ratio/mean"
    ] == pytest.approx(np.exp(-0.05))


def test_state_round_trip_continues_bit_for_bit(tmp_path: Path) -> None:
    folder = tmp_path
    items = rollouts(seed=2)
    batches = plan(
        items, credits_of(items), loss_agg_mode="seq-mean-token-mean", max_tokens_per_microbatch=10_000, skip_zero=True
    )
    trained = learner(tiny_policy(dtype=torch.bfloat16))
    trained.update([batches])
    trained.save(folder)
    counters = trained.counters()
    trained.update([batches])
    other = learner(tiny_policy(dtype=torch.bfloat16, seed=5))
    other.load(folder, counters)
    other.update([batches])
    for name, parameter in trained.policy.parameters().items():
        assert torch.equal(parameter, other.policy.parameters()[name]), name


def test_non_finite_gradients_change_nothing_and_end_the_run() -> None:
    trained = learner(tiny_policy(), max_skipped=1)
    before = {name: p.detach().clone() for name, p in trained.policy.parameters().items()}
    items = rollouts()
    batches = plan(
        items, credits_of(items), loss_agg_mode="seq-mean-token-mean", max_tokens_per_microbatch=10_000, skip_zero=True
    )
    batches[0].weights[:] = np.inf
    assert trained.update([batches]).skipped == 1
    with pytest.raises(NonFiniteError, match=r"lower optim\.lr"):
        trained.update([batches])
    assert all(torch.equal(p, before[name]) for name, p in trained.policy.parameters().items())


def test_nothing_to_train_is_no_step() -> None:
    report = learner(tiny_policy()).update([[]])
    assert report.logprobs == {}
    assert report.metrics == {"lr": 0.01, "grad_norm": 0.0}


def test_flex_attention_gives_the_same_gradient() -> None:
    items = rollouts(seed=3)
    want = gradient(learner(tiny_policy()), items)
    assert_same(gradient(learner(tiny_policy(), attention="flex"), items), want)


def test_clip_cov_leaves_out_the_tokens_that_it_chooses_among_the_whole_step() -> None:
    items = rollouts(seed=4)
    settings = ObjectiveConfig(loss="clip_cov", clip_cov_ratio=0.3, clip_cov_lb=-9, clip_cov_ub=9)
    gradients = []
    for limit in (40, 1000):
        covariant = learner(tiny_policy(), objective=Objective(settings=settings, correction=UNCORRECTED))
        batches = plan(
            items, credits_of(items), loss_agg_mode="token-mean", max_tokens_per_microbatch=limit, skip_zero=False
        )
        gradients.append(covariant.gradient(batches))
        chosen = covariant._covariant(batches, None, covariant.objective)
        assert chosen is not None
        total = sum(len(mask) for mask in chosen.values())
        assert sum(mask.sum() for mask in chosen.values()) == int(0.3 * total)
        without = [
            replace(batch, weights=np.where(np.concatenate([chosen[name] for name in batch.spans]), 0, batch.weights))
            for batch in batches
        ]
        gradients.append(learner(tiny_policy()).gradient(without))
    for other in gradients[1:]:
        for name, slope in gradients[0].items():
            torch.testing.assert_close(other[name], slope, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", ["clip_cov", "kl_cov"])
def test_a_step_by_covariance_is_the_same_when_repeated(loss: str) -> None:
    items = rollouts(seed=4)
    settings = ObjectiveConfig.model_validate(
        {"loss": loss, "clip_cov_lb": -9, "clip_cov_ratio": 0.3, "kl_cov_ratio": 0.2}
    )
    options: dict[str, Any] = {"loss_agg_mode": "token-mean", "max_tokens_per_microbatch": 60, "skip_zero": False}
    plain = ObjectiveConfig(loss="unclipped" if loss == "kl_cov" else "clip")
    scores = []
    for chosen in (settings, settings, plain):
        trained = learner(tiny_policy(), objective=Objective(settings=chosen, correction=UNCORRECTED))
        batches = plan(items, credits_of(items), **options)
        trained.update([batches, batches])
        scores.append(np.concatenate([score.logprobs for score in trained.score(batches).values()]))
    np.testing.assert_array_equal(scores[0], scores[1])
    assert abs(scores[2] - scores[0]).max() > 1e-4
