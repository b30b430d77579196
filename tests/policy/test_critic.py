"""The critic's gradient, on a shared trunk and on its own, is that of the naive value loss in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_learner import TEMPERATURE, assert_same, naive_loss, rollouts

from coterie.algo.gae import credit_with_critic
from coterie.algo.objective import Objective
from coterie.batches.batch import Batch
from coterie.batches.pack import plan
from coterie.config.objective import CriticConfig, RolloutCorrectionConfig
from coterie.config.optim import OptimConfig
from coterie.policy.critic import Critic
from coterie.policy.learner import Learner, UpdateContext
from coterie.types import Credit, Rollout
from tiny_models import tiny_model, tiny_policy


def ppo(kind: str, *, own_trunk: bool = False, **critic: Any) -> Learner:
    policy = tiny_policy(kind)
    config, optim = CriticConfig(**critic), OptimConfig(lr=1e-2, max_grad_norm=1e9)
    judge = Critic(policy, tiny_policy(kind) if own_trunk else None, config=config, optim=optim, total_steps=10)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        judge.head.weight.normal_(generator=generator)
        judge.head.bias.fill_(0.25)
    objective = Objective(correction=RolloutCorrectionConfig(kind="none"))
    return Learner(policy, optim=optim, objective=objective, temperature=TEMPERATURE, total_steps=10, critic=judge)


def judged(learner: Learner, items: list[Rollout]) -> tuple[list[Credit], list[Batch]]:
    nothing = [Credit(rollout_id=item.id, advantage=0.0, clip_low=0.2, clip_high=0.3) for item in items]
    scores = learner.score(
        plan(items, nothing, loss_agg_mode="seq-mean-token-mean", max_tokens_per_microbatch=10_000, skip_zero=False)
    )
    values = {name: score.values for name, score in scores.items() if score.values is not None}
    credits = credit_with_critic(items, values, CriticConfig(), whiten=True, clip_low=0.2, clip_high=0.3)
    return credits, plan(
        items, credits, loss_agg_mode="seq-mean-token-mean", max_tokens_per_microbatch=10_000, skip_zero=False
    )


def naive_values(model: Any, head: torch.nn.Linear, item: Rollout) -> torch.Tensor:
    ids = list(item.turns[-1].prompt_tokens + item.turns[-1].tokens)
    trained = [(len(t.prompt_tokens) + k) for t in item.turns for k in range(len(t.tokens))]
    hidden = model.get_decoder()(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]
    return head(hidden)[:, 0][[k - 1 for k in trained]]


def naive_head(learner: Learner) -> torch.nn.Linear:
    assert learner.critic is not None
    head = torch.nn.Linear(learner.critic.head.in_features, 1, dtype=torch.float64)
    head.load_state_dict(learner.critic.head.state_dict())
    return head


def value_sum(model: Any, head: torch.nn.Linear, items: list[Rollout], credits: list[Credit]) -> torch.Tensor:
    targets = {credit.rollout_id: torch.tensor(credit.returns, dtype=torch.float64) for credit in credits}
    total = torch.zeros((), dtype=torch.float64)
    for item in items:
        error = (naive_values(model, head, item) - targets[item.id]).square() / 2
        total = total + error.mean() / len(items)
    return total


def policy_sum(model: Any, items: list[Rollout], credits: list[Credit], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The naive policy loss of these advantages."""
    import test_learner

    class PerToken:
        def __init__(self, credit: Credit) -> None:
            self.rollout_id = credit.rollout_id
            self.advantage = credit.advantage

    monkeypatch.setattr(test_learner, "credits_of", lambda _: [PerToken(credit) for credit in credits])
    return naive_loss(model, items, "seq-mean-token-mean")


@pytest.mark.parametrize("two_turns", [False, True])
def test_a_head_on_the_shared_trunk_adds_its_gradient_to_the_policys(
    two_turns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, items = ppo("llama", coefficient=0.7), rollouts(two_turns=two_turns)
    credits, batches = judged(learner, items)
    model, head = tiny_model("llama"), naive_head(learner)
    loss = policy_sum(model, items, credits, monkeypatch) + 0.7 * value_sum(model, head, items, credits)
    loss.backward()
    for batch in batches:
        learner._backward(batch, UpdateContext(), learner.objective)
    assert learner.critic is not None
    got = learner.critic.optimizer.take_gradients()
    want = {f"critic/head.{name}": p.grad for name, p in head.named_parameters() if p.grad is not None}
    assert_same(got, want)
    trunk = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_same(learner.optimizer.take_gradients(), trunk)


def test_a_critic_of_its_own_leaves_the_policys_gradient_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, items = ppo("qwen3", own_trunk=True, coefficient=1.0), rollouts()
    credits, batches = judged(learner, items)
    model, other, head = tiny_model("qwen3"), tiny_model("qwen3"), naive_head(learner)
    policy_sum(model, items, credits, monkeypatch).backward()
    value_sum(other, head, items, credits).backward()
    for batch in batches:
        learner._backward(batch, UpdateContext(), learner.objective)
    assert learner.critic is not None
    got = learner.critic.optimizer.take_gradients()
    want = {f"critic/head.{name}": p.grad for name, p in head.named_parameters()}
    want |= {f"critic/{name}": p.grad for name, p in other.named_parameters()}
    assert_same(got, {name: grad for name, grad in want.items() if grad is not None})
    policy = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_same(learner.optimizer.take_gradients(), policy)


def test_cutting_the_row_does_not_change_the_critics_gradient() -> None:
    items = rollouts()
    whole, cut = ppo("llama"), ppo("llama")
    credits, batches = judged(whole, items)
    assert len(batches) == 1
    small = plan(items, credits, loss_agg_mode="seq-mean-token-mean", max_tokens_per_microbatch=20, skip_zero=False)
    assert len(small) > 2
    for learner, parts in ((whole, batches), (cut, small)):
        for part in parts:
            learner._backward(part, UpdateContext(), learner.objective)
    assert whole.critic is not None
    assert cut.critic is not None
    assert_same(cut.critic.optimizer.take_gradients(), whole.critic.optimizer.take_gradients())
    assert_same(cut.optimizer.take_gradients(), whole.optimizer.take_gradients())


def test_bounded_values_are_probabilities() -> None:
    learner = ppo("llama", bounded=True)
    credits, batches = judged(learner, rollouts())
    values = [value for credit in credits for value in credit.values or ()]
    assert 0 < min(values) < max(values) < 1
    report = learner.update([batches])
    assert report.metrics["critic/loss"] > 0


def test_what_the_critic_learns_is_saved_and_loaded(tmp_path: Any) -> None:
    learner, other = ppo("llama"), ppo("llama")
    _, batches = judged(learner, rollouts())
    learner.update([batches])
    learner.save(tmp_path)
    other.load(tmp_path, learner.counters())
    assert learner.critic is not None
    assert other.critic is not None
    mine, theirs = learner.critic.optimizer.state(), other.critic.optimizer.state()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
