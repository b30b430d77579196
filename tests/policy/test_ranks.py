"""Several learner ranks take the step of one, in float64 and up to rounding, on ragged rows, and fail as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_worlds import World, agree, agree_on_scores, agree_without_rows, steps_of, worlds

from coterie.cluster.learner_frames import batch_of, packed_batch
from coterie.cluster.learner_group import shares
from coterie.errors import LearnerError
from learner_ranks import learner


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., World]]:
    with worlds() as begin:
        yield begin


@pytest.fixture(scope="module")
def two(start: Any) -> World:
    return start(2)


@pytest.mark.parametrize("case", ["plain", "lora", "reference", "entropy", "share", "covariance", "critic"])
def test_two_ranks_take_the_steps_of_one(two: World, case: str) -> None:
    group, single = two.learner(case), learner(case)
    agree(group, single, steps_of(single), 1e-10)
    if case == "reference":
        assert group.reference is not None
        assert single.reference is not None
        group.reference.renew()
        single.reference.renew()
        agree(group, single, steps_of(single), 1e-10)


def test_a_rank_without_rows_takes_part(two: World) -> None:
    agree_without_rows(two)


def test_bfloat16_gradients_are_added_in_float32(two: World) -> None:
    group, single = two.learner("bfloat16", max_grad_norm=1e9), learner("bfloat16", max_grad_norm=1e9)
    minibatches = steps_of(single)
    ours, theirs = group.update(minibatches).metrics, single.update(minibatches).metrics
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-2)


def test_scores_are_those_of_one_rank(two: World) -> None:
    group, single = two.learner("reference"), learner("reference")
    batches = steps_of(single)[0]
    agree_on_scores(group, single, batches)


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
    single = learner("plain")  # and on another number of ranks, up to rounding
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
    group, single = start(4).learner("plain"), learner("plain")
    agree(group, single, steps_of(single, limit=30), 1e-10)


def test_rows_are_shared_out_by_their_tokens() -> None:
    batches = steps_of(learner("plain"), limit=30)[0]
    parts = shares(batches, 3)
    assert sorted(id(batch) for part in parts for batch in part) == sorted(id(batch) for batch in batches)
    loads = [sum(len(batch.tokens) for batch in part) for part in parts]
    assert max(loads) - min(loads) <= max(len(batch.tokens) for batch in batches)
    assert shares(batches[:1], 3) == [batches[:1], [], []]


def test_a_row_survives_its_message() -> None:
    for batch in steps_of(learner("plain"))[0]:
        again = batch_of(packed_batch(batch))
        assert (again.segments, dict(again.spans)) == (batch.segments, dict(batch.spans))
        for name in ("tokens", "positions", "sources", "targets", "advantages", "weights", "replayed", "rollout"):
            ours, theirs = getattr(again, name), getattr(batch, name)
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
