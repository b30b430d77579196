"""Several learner ranks take the step of one, in float64 and up to rounding, on ragged rows, and fail as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_learner import credits_of, rollouts

import learner_ranks
from coterie.algo.gae import credit_with_critic
from coterie.batches.batch import Batch
from coterie.batches.pack import plan
from coterie.cluster.hosts import ProcessHost, Service
from coterie.cluster.learner_frames import batch_of, packed_batch
from coterie.cluster.learner_group import LearnerGroup, shares
from coterie.config.objective import CriticConfig
from coterie.errors import LearnerError
from coterie.policy.learner import Learner
from coterie.types import Credit

TESTS = Path(__file__).parents[1]


class World:
    """Ranks 1 and up in services."""

    def __init__(self, size: int) -> None:
        order = {"target": "learner_ranks:served", "arguments": {}}
        self.members: list[Service] = [ProcessHost().start(f"learner-{rank}", order) for rank in range(1, size)]
        self.first: Any = learner_ranks.learner("plain", LearnerGroup)
        assert isinstance(self.first, LearnerGroup)
        self.first.join(self.members, start_s=60, timeout_s=60)

    def learner(self, case: str, fails: str = "", max_grad_norm: float = 0.5) -> LearnerGroup:
        """Rank 0 with the learner of this case, which all ranks have from here on."""
        torch.manual_seed(1)
        group = learner_ranks.learner(case, LearnerGroup, max_grad_norm)
        assert isinstance(group, LearnerGroup)
        group.members, group.ranks, group.gather = self.members, self.first.ranks, self.first.gather
        if group.reference is not None:
            group.reference.renewed = lambda: group._all(["renew"])
        group._all(["build", case, max_grad_norm, fails])
        return group


@pytest.fixture(scope="module")
def start() -> Iterator[Any]:
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", str(TESTS), prepend=":")
    worlds: list[World] = []

    def begin(size: int) -> World:
        worlds.append(World(size))
        return worlds[-1]

    yield begin
    patch.undo()
    for world in worlds:
        world.first.close()


@pytest.fixture(scope="module")
def two(start: Any) -> World:
    return start(2)


def alone(case: str, max_grad_norm: float = 0.5) -> Learner:
    torch.manual_seed(1)
    return learner_ranks.learner(case, max_grad_norm=max_grad_norm)


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


def agree(group: Learner, single: Learner, minibatches: Sequence[Sequence[Batch]], close: float) -> None:
    ours, theirs = group.update(minibatches), single.update(minibatches)
    assert set(ours.metrics) == set(theirs.metrics)
    for name, value in theirs.metrics.items():
        assert ours.metrics[name] == pytest.approx(value, rel=100 * close, abs=100 * close), name
    assert set(ours.logprobs) == set(theirs.logprobs)
    for name, parameter in single.policy.parameters().items():
        torch.testing.assert_close(group.policy.parameters()[name], parameter, rtol=close, atol=close)


@pytest.mark.parametrize("case", ["plain", "lora", "reference", "entropy", "share", "covariance", "critic"])
def test_two_ranks_take_the_steps_of_one(two: World, case: str) -> None:
    group, single = two.learner(case), alone(case)
    agree(group, single, steps_of(single), 1e-10)
    if case == "reference":
        assert group.reference is not None
        assert single.reference is not None
        group.reference.renew()
        single.reference.renew()
        agree(group, single, steps_of(single), 1e-10)


def test_a_rank_without_rows_takes_part(two: World) -> None:
    group, single = two.learner("plain"), alone("plain")
    batches = steps_of(single, limit=10_000)
    assert [len(batch) for batch in batches] == [1, 1, 0]
    agree(group, single, batches, 1e-10)


def test_bfloat16_gradients_are_added_in_float32(two: World) -> None:
    group, single = two.learner("bfloat16", max_grad_norm=1e9), alone("bfloat16", max_grad_norm=1e9)
    minibatches = steps_of(single)
    ours, theirs = group.update(minibatches).metrics, single.update(minibatches).metrics
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-2)


def test_scores_are_those_of_one_rank(two: World) -> None:
    group, single = two.learner("reference"), alone("reference")
    batches = steps_of(single)[0]
    ours, theirs = group.score(batches), single.score(batches)
    assert set(ours) == set(theirs)
    for name, score in theirs.items():
        np.testing.assert_allclose(ours[name].logprobs, score.logprobs, rtol=1e-12)
        expected: Any = score.reference
        np.testing.assert_allclose(np.array(ours[name].reference), expected, rtol=1e-12)


def test_a_resumed_group_takes_the_same_steps(two: World, tmp_path: Path) -> None:
    first = two.learner("plain")
    minibatches = steps_of(first)
    first.update(minibatches)
    first.save(tmp_path)
    counters = first.counters()
    expected = first.update(minibatches).metrics
    after = {name: parameter.clone() for name, parameter in first.policy.parameters().items()}
    second = two.learner("plain")
    second.load(tmp_path, counters)
    assert second.update(minibatches).metrics == expected
    for name, parameter in second.policy.parameters().items():
        assert torch.equal(parameter, after[name])
    single = alone("plain")  # and on another number of ranks, up to rounding
    single.load(tmp_path, counters)
    single.update(minibatches)
    for name, parameter in single.policy.parameters().items():
        torch.testing.assert_close(parameter, after[name], rtol=1e-10, atol=1e-10)


def test_ranks_whose_weights_differ_are_found_out(two: World) -> None:
    group = two.learner("plain", "drifts")
    with pytest.raises(LearnerError, match="learner ranks 0 and 1 no longer have the same weights"):
        group.update(steps_of(group))


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        ("dies", r"learner rank 1 ended by SIGKILL.*coterie resume"),
        pytest.param(
            "raises", r"learner rank 1 says: a bug: OSError: no space left.*coterie resume", marks=pytest.mark.slow
        ),
    ],
)
def test_a_rank_that_fails_ends_the_run_with_its_name(start: Any, fails: str, message: str) -> None:
    group = start(2).learner("plain", fails)
    with pytest.raises(LearnerError, match=message):
        group.update(steps_of(group))
    group.close()


@pytest.mark.slow
def test_four_ranks_take_the_steps_of_one(start: Any) -> None:
    group, single = start(4).learner("plain"), alone("plain")
    agree(group, single, steps_of(single, limit=30), 1e-10)


def test_rows_are_shared_out_by_their_tokens() -> None:
    batches = steps_of(alone("plain"), limit=30)[0]
    parts = shares(batches, 3)
    assert sorted(id(batch) for part in parts for batch in part) == sorted(id(batch) for batch in batches)
    loads = [sum(len(batch.tokens) for batch in part) for part in parts]
    assert max(loads) - min(loads) <= max(len(batch.tokens) for batch in batches)
    assert shares(batches[:1], 3) == [batches[:1], [], []]


def test_a_row_survives_its_message() -> None:
    for batch in steps_of(alone("plain"))[0]:
        again = batch_of(packed_batch(batch))
        assert (again.segments, dict(again.spans)) == (batch.segments, dict(batch.spans))
        for name in ("tokens", "positions", "sources", "targets", "advantages", "weights", "replayed", "rollout"):
            ours, theirs = getattr(again, name), getattr(batch, name)
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
