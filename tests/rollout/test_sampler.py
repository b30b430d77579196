"""Filling a step: groups that say nothing are replaced, stragglers come first next time, and nothing is drawn twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from coterie.config.schema import CollectConfig
from coterie.data.order import PromptOrder
from coterie.engines.base import Request, Sampling
from coterie.engines.scripted import ScriptedEngine
from coterie.envs.registry import SingleTurn
from coterie.grouping.allocation import Allocation
from coterie.rewards.base import Score
from coterie.rollout.collector import Collector
from coterie.rollout.sampler import AllocatedSampler, SequentialSampler, StepBatch
from coterie.types import Message, Prompt, Rollout

SAMPLING = Sampling(temperature=1.0, max_tokens=50)


class Plain:
    def render(self, messages: Sequence[Message]) -> list[int]:
        return [int(messages[-1]["content"]) + 1]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))

    def render_continuation(
        self, messages: Sequence[Message], turn_ids: Sequence[int], *, stop: Sequence[str] = ()
    ) -> list[int]:
        return self.render(messages)


class Says:
    """Right when the last token is 1; a completion that ends with 9 is an error."""

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        *,
        lengths: Sequence[int] | None = None,
        **episodes: Any,
    ) -> list[Score]:
        return [self._score(text) for text in completions]

    def _score(self, text: str) -> Score:
        if text.endswith("9"):
            return Score(reward=None, parts={"right": None}, error="broken")
        value = float(text.endswith("1"))
        return Score(reward=value, parts={"right": value}, error=None)


def prompts(count: int) -> list[Prompt]:
    return [
        Prompt(id=f"p{k}", messages=(Message(role="user", content=str(k)),), answer=None, task="t")
        for k in range(count)
    ]


def rights(rollouts: Sequence[Rollout]) -> list[float]:
    return [rollout.reward_parts["right"] or 0.0 for rollout in rollouts]


def parts(script: Any, *, count: int = 12, **collect: Any) -> tuple[Collector, PromptOrder, dict[str, Any]]:
    """Arguments of a sampler; `script` maps (number of the prompt, sample) to the tokens that are said."""

    def says(request: Request) -> Sequence[int]:
        return script(int(request.key.prompt[1:]), request.key.sample)

    collector = Collector(
        engine=ScriptedEngine(says),
        environment=SingleTurn(),
        chat=Plain(),
        scorer=Says(),
        seed=0,
        max_error_share=1.0,
    )
    settings: dict[str, Any] = {"prompts_per_step": 4, "group_size": 2} | collect
    return (
        collector,
        PromptOrder(prompts(count), seed=0),
        {"config": CollectConfig(**settings), "sampling": SAMPLING},
    )


def sampler(script: Any, **settings: Any) -> SequentialSampler:
    collector, order, rest = parts(script, **settings)
    return SequentialSampler(collector, order, **rest, metric=rights)


def members(batch: StepBatch) -> set[str]:
    return {group.members[0].partition("#")[0] for group in batch.groups}


def test_without_refill_a_step_takes_what_it_gets() -> None:
    batch = sampler(lambda prompt, sample: [1]).collect(0)
    assert len(batch.groups) == 4
    assert batch.cursor == 4
    assert batch.metrics == {}


def test_a_step_draws_from_the_stages_that_it_straddles() -> None:
    source = sampler(lambda prompt, sample: [1])
    early: dict[str, tuple[int, int | None]] = {f"p{k}": (0, 6) for k in range(8)}
    late: dict[str, tuple[int, int | None]] = {f"p{k}": (6, None) for k in range(8, 12)}
    source.order = PromptOrder(prompts(12), seed=0, presence=early | late)
    first, second, third = source.collect(0), source.collect(4), source.collect(8)
    assert members(first) <= set(early)
    assert len(members(second) & set(early)) == len(members(second) & set(late)) == 2
    assert members(third) == set(late), "a step's prompts differ, and the stage has four"
    assert [batch.metrics["stage"] for batch in (first, second, third)] == [0, 1, 1]


def test_refill_draws_until_there_are_enough_mixed_groups() -> None:
    source = sampler(lambda prompt, sample: [1 if prompt % 2 else sample], dynamic_sampling=True)
    batch = source.collect(0)
    assert len(batch.groups) == 4
    assert all(int(name[1:]) % 2 == 0 for name in members(batch))
    drawn = [rollout.context.prompt_id for rollout in batch.experience.rollouts]
    assert len(drawn) == 2 * len(set(drawn)), "no prompt is sampled twice in a step: its draws would be the same"
    assert batch.metrics["dynamic_sampling/dropped"] == len(set(drawn)) - 4
    assert batch.cursor == len(set(drawn))


def test_refill_ends_at_its_limit_and_when_all_prompts_were_tried() -> None:
    assert (
        sampler(lambda prompt, sample: [0], dynamic_sampling=True, dynamic_sampling_limit=2)
        .collect(0)
        .metrics["dynamic_sampling/rounds"]
        == 2
    )
    batch = sampler(lambda prompt, sample: [0], count=6, dynamic_sampling=True, dynamic_sampling_limit=50).collect(0)
    assert batch.groups == []
    assert len({rollout.context.prompt_id for rollout in batch.experience.rollouts}) == 6


def test_a_group_with_an_error_takes_no_part() -> None:
    source = sampler(lambda prompt, sample: [9 if (prompt, sample) == (3, 1) else sample], count=4)
    batch = source.collect(0)
    assert members(batch) == {"p0", "p1", "p2"}


def test_stragglers_are_put_back_and_waited_for() -> None:
    slow = 7
    source = sampler(lambda prompt, sample: [sample] * (40 if prompt == slow else 2), oversample=1.5)
    cursor, pending = 0, ()
    for _ in range(2):
        batch = source.collect(cursor, pending)
        assert len(batch.groups) >= 4
        cursor, pending = batch.cursor, batch.pending
        if f"p{slow}" in pending:
            break
    assert f"p{slow}" in pending
    abandoned = batch.metrics["oversample/abandoned"]
    assert abandoned == len(pending)
    after = source.collect(cursor, pending)
    assert set(pending) <= members(after), "who was left once is not left again"


def test_what_a_step_draws_depends_on_the_cursor_alone() -> None:
    def script(prompt: int, sample: int) -> list[int]:
        return [(prompt * 7 + sample) % 2] * (prompt + 1)

    kinds: list[dict[str, Any]] = [
        {"dynamic_sampling": True},
        {"oversample": 1.5},
        {"dynamic_sampling": True, "oversample": 1.5},
    ]
    for settings in kinds:
        first_sampler, second_sampler = sampler(script, **settings), sampler(script, **settings)
        first = first_sampler.collect(0)
        again = second_sampler.collect(first.cursor, first.pending)
        straight = first_sampler.collect(first.cursor, first.pending)
        assert [group.members for group in again.groups] == [group.members for group in straight.groups]
        assert (again.cursor, again.pending) == (straight.cursor, straight.pending)


def test_a_step_with_more_groups_than_asked_for_lacks_none() -> None:
    settings = {"dynamic_sampling": True, "oversample": 2.0}
    batch = sampler(lambda prompt, sample: [sample], **settings).collect(0)
    assert batch.metrics["dynamic_sampling/missing"] == max(0, 4 - len(batch.groups)) == 0


def test_an_allocation_decides_which_prompts_and_how_often() -> None:
    """The last of the candidates, with all the rollouts that are left over."""
    offered: list[str] = []

    def allocate(candidates: Sequence[Prompt], *, rollouts: int) -> Allocation:
        offered.extend(prompt.id for prompt in candidates)
        prompts = 4
        counts = np.array([1] * (prompts - 1) + [rollouts - prompts + 1])
        weights = np.arange(1.0, prompts + 1)
        return Allocation(np.arange(len(candidates))[-prompts:], counts, np.ones(prompts), weights, skipped=2)

    collector, order, settings = parts(lambda prompt, sample: [sample % 2])
    batch = AllocatedSampler(collector, order, **settings, allocate=allocate, candidates=2).collect(0)
    assert len(offered) == 8
    assert batch.cursor == 8
    assert batch.pending == ()
    assert batch.metrics["allocation/skipped"] == 2 / 8
    assert sorted((len(group.members), group.weight) for group in batch.groups) == [(1, 1), (1, 2), (1, 3), (5, 4)]
    assert members(batch) == set(offered[-4:])


@pytest.mark.parametrize("limit", [1, 3])
def test_small_data_never_runs_in_circles(limit: int) -> None:
    settings = {"count": 4, "oversample": 3.0, "dynamic_sampling": True, "dynamic_sampling_limit": limit}
    batch = sampler(lambda prompt, sample: [sample], **settings).collect(0)
    assert len(batch.groups) == 4


def test_refill_keeps_groups_whose_graded_rewards_differ() -> None:
    source = sampler(lambda prompt, sample: [sample] if prompt % 2 else [7], dynamic_sampling=True)

    def share(rollouts: Sequence[Rollout]) -> list[float]:
        return [0.1 + 0.2 * int(rollout.completion) for rollout in rollouts]

    source.metric = share
    batch = source.collect(0)
    assert len(batch.groups) == 4
    assert all(int(name[1:]) % 2 for name in members(batch)), "0.1 and 0.3 differ, 1.5 and 1.5 do not"
