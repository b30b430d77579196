"""Several learner ranks for a module of tests, optimizer steps on ragged rows, and comparison with one process."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_learner import credits_of, rollouts

from coterie.algo.gae import credit_with_critic
from coterie.batches.batch import Batch
from coterie.batches.pack import plan
from coterie.cluster.hosts import ProcessHost
from coterie.cluster.learner_group import LearnerGroup
from coterie.cluster.rank_services import RankServices
from coterie.cluster.sharded_group import ShardedGroup
from coterie.config.objective import CriticConfig
from coterie.policy.learner import Learner
from coterie.policy.model import Policy
from coterie.policy.sharding import Sharding
from coterie.types import Credit
from learner_ranks import learner


class World:
    """Ranks of which the first is here, and the others are services.

    Args:
        size: their number.
        strategy: of `cluster.strategy`.
    """

    def __init__(self, size: int, strategy: str = "replicate") -> None:
        order = {"target": "learner_ranks:served", "arguments": {}}
        members = [ProcessHost().start(f"learner-{rank}", order) for rank in range(1, size)]
        self.services = RankServices(members, start_s=300, timeout_s=120)
        self.ranks = self.services.meet()
        self.services.ready()
        self.strategy = strategy
        self.sharding = Sharding(self.ranks, torch.device("cpu")) if strategy == "fsdp" else None

    def learner(self, case: str, fails: str = "", max_grad_norm: float = 0.5) -> LearnerGroup:
        """Rank 0 with the learner of this case, which all ranks have from here on."""
        kind = LearnerGroup if self.sharding is None else ShardedGroup
        self.services.post([["build", case, max_grad_norm, fails, self.strategy]] * len(self.services.members))
        group = learner(case, kind, max_grad_norm, self.sharding)
        assert isinstance(group, LearnerGroup)
        group.lead(self.services, self.ranks, self.sharding)
        return group

    def close(self) -> None:
        self.ranks.close()
        self.services.close()
        if self.sharding is not None:
            self.sharding.close()


@contextmanager
def worlds() -> Generator[Callable[..., World]]:
    """Context that starts worlds, closed at its end."""
    started: list[World] = []

    def start(size: int, strategy: str = "replicate") -> World:
        started.append(World(size, strategy))
        return started[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
        try:
            yield start
        finally:
            for world in started:
                world.close()


def steps_of(learner: Learner, limit: int = 60) -> list[list[Batch]]:
    """Two optimizer steps on ragged rows, and for a third no rows at all."""
    minibatches = []
    for seed in (4, 5):
        items = [replace(item, id=f"{seed}-{item.id}") for item in rollouts(seed=seed)]
        options: dict[str, Any] = {"loss_agg_mode": "token-mean", "max_tokens_per_microbatch": limit}
        credits = credits_of(items)
        if learner.critic is not None:
            nothing = [Credit(rollout_id=item.id, advantage=0.0, clip_low=0.2, clip_high=0.3) for item in items]
            scores = learner.score(plan(items, nothing, **options, skip_zero=False))
            values = {name: score.values for name, score in scores.items() if score.values is not None}
            credits = credit_with_critic(items, values, CriticConfig(), whiten=True, clip_low=0.2, clip_high=0.3)
        minibatches.append(plan(items, credits, **options, skip_zero=False))
    return [*minibatches, []]


def agree(group: LearnerGroup, single: Learner, minibatches: Sequence[Sequence[Batch]], close: float) -> None:
    """Metrics, log-probs and weights of one update are those of one process."""
    ours, theirs = group.update(minibatches), single.update(minibatches)
    assert set(ours.metrics) == set(theirs.metrics)
    for name, value in theirs.metrics.items():
        assert ours.metrics[name] == pytest.approx(value, rel=100 * close, abs=100 * close), name
    assert set(ours.logprobs) == set(theirs.logprobs)
    same_weights(group.policy, single.policy, close)


def agree_without_rows(world: World) -> None:
    """A step in which the last rank has no row, and one in which no rank has, are those of one process."""
    group, single = world.learner("plain"), learner("plain")
    batches = steps_of(single, limit=10_000)
    assert [len(batch) for batch in batches] == [1, 1, 0]
    agree(group, single, batches, 1e-10)


def agree_on_scores(group: LearnerGroup, single: Learner, batches: Sequence[Batch]) -> None:
    """Log-probs of policy and reference are those of one process."""
    ours, theirs = group.score(batches), single.score(batches)
    assert set(ours) == set(theirs)
    for name, score in theirs.items():
        np.testing.assert_allclose(ours[name].logprobs, score.logprobs, rtol=1e-12)
        expected: Any = score.reference
        np.testing.assert_allclose(np.array(ours[name].reference), expected, rtol=1e-12)


def same_weights(ours: Policy, theirs: Policy, close: float) -> None:
    whole = ours.whole(ours.parameters())
    for name, parameter in theirs.parameters().items():
        torch.testing.assert_close(whole[name], parameter.detach(), rtol=close, atol=close)
