"""Filling a step: groups that say nothing are replaced, stragglers come first next time, and nothing is drawn twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from coterie.config.schema import CollectConfig
from coterie.data.order import PromptOrder
from coterie.engines.base import Request, Sampling
from coterie.engines.scripted import ScriptedEngine
from coterie.envs.registry import SingleTurn
from coterie.rewards.base import Score
from coterie.rollout.collector import Collector
from coterie.rollout.sampler import PromptSampler, StepBatch
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
        return [self._one(text) for text in completions]

    def _one(self, text: str) -> Score:
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


def sampler(script: Any, *, count: int = 12, allocator: Any = None, **collect: Any) -> PromptSampler:
    """`script` maps (number of the prompt, sample) to the tokens that are said."""

    def says(request: Request) -> Sequence[int]:
        return script(int(request.key.prompt[1:]), request.key.sample)

    held: dict[str, Any] = {"prompts_per_step": 4, "group_size": 2} | collect
    return PromptSampler(
        Collector(
            engine=ScriptedEngine(says),
            environment=SingleTurn(),
            chat=Plain(),
            scorer=Says(),
            seed=0,
            max_error_share=1.0,
        ),
        PromptOrder(prompts(count), seed=0),
        config=CollectConfig(**held),
        sampling=SAMPLING,
        metric=rights,
        allocator=allocator,
        candidates=2,
    )


def members(found: StepBatch) -> set[str]:
    return {group.members[0].partition("#")[0] for group in found.groups}


def test_without_refill_a_step_takes_what_it_gets() -> None:
    found = sampler(lambda prompt, sample: [1]).gather(0)
    assert len(found.groups) == 4
    assert found.cursor == 4
    assert found.metrics == {}


def test_a_step_draws_from_the_stages_that_it_straddles() -> None:
    one = sampler(lambda prompt, sample: [1])
    early: dict[str, tuple[int, int | None]] = {f"p{k}": (0, 6) for k in range(8)}
    late: dict[str, tuple[int, int | None]] = {f"p{k}": (6, None) for k in range(8, 12)}
    one.order = PromptOrder(prompts(12), seed=0, presence=early | late)
    first, second, third = one.gather(0), one.gather(4), one.gather(8)
    assert members(first) <= set(early)
    assert len(members(second) & set(early)) == len(members(second) & set(late)) == 2
    assert members(third) == set(late), "a step's prompts differ, and the stage has four"
    assert [found.metrics["stage"] for found in (first, second, third)] == [0, 1, 1]


def test_refill_draws_until_there_are_enough_mixed_groups() -> None:
    one = sampler(lambda prompt, sample: [1 if prompt % 2 else sample], dynamic_sampling=True)
    found = one.gather(0)
    assert len(found.groups) == 4
    assert all(int(name[1:]) % 2 == 0 for name in members(found))
    drawn = [rollout.context.prompt_id for rollout in found.experience.rollouts]
    assert len(drawn) == 2 * len(set(drawn)), "no prompt is sampled twice in a step: its draws would be the same"
    assert found.metrics["dynamic_sampling/dropped"] == len(set(drawn)) - 4
    assert found.cursor == len(set(drawn))


def test_refill_ends_at_its_limit_and_when_all_prompts_were_tried() -> None:
    assert (
        sampler(lambda prompt, sample: [0], dynamic_sampling=True, dynamic_sampling_limit=2)
        .gather(0)
        .metrics["dynamic_sampling/rounds"]
        == 2
    )
    found = sampler(lambda prompt, sample: [0], count=6, dynamic_sampling=True, dynamic_sampling_limit=50).gather(0)
    assert found.groups == []
    assert len({rollout.context.prompt_id for rollout in found.experience.rollouts}) == 6


def test_a_group_with_an_error_takes_no_part() -> None:
    one = sampler(lambda prompt, sample: [9 if (prompt, sample) == (3, 1) else sample], count=4)
    found = one.gather(0)
    assert members(found) == {"p0", "p1", "p2"}


def test_stragglers_are_put_back_and_waited_for() -> None:
    slow = 7
    one = sampler(lambda prompt, sample: [sample] * (40 if prompt == slow else 2), oversample=1.5)
    cursor, waiting, seen = 0, (), []
    for _ in range(2):
        found = one.gather(cursor, waiting)
        assert len(found.groups) >= 4
        seen.append((members(found), found.waiting))
        cursor, waiting = found.cursor, found.waiting
        if f"p{slow}" in waiting:
            break
    assert f"p{slow}" in waiting
    abandoned = found.metrics["oversample/abandoned"]
    assert abandoned == len(waiting)
    after = one.gather(cursor, waiting)
    assert set(waiting) <= members(after), "who was left once is not left again"


def test_what_a_step_draws_depends_on_the_cursor_alone() -> None:
    def script(prompt: int, sample: int) -> list[int]:
        return [(prompt * 7 + sample) % 2] * (prompt + 1)

    kinds: list[dict[str, Any]] = [
        {"dynamic_sampling": True},
        {"oversample": 1.5},
        {"dynamic_sampling": True, "oversample": 1.5},
    ]
    for settings in kinds:
        one, two = sampler(script, **settings), sampler(script, **settings)
        first = one.gather(0)
        again = two.gather(first.cursor, first.waiting)
        straight = one.gather(first.cursor, first.waiting)
        assert [group.members for group in again.groups] == [group.members for group in straight.groups]
        assert (again.cursor, again.waiting) == (straight.cursor, straight.waiting)


class Picks:
    """The last of the candidates, with all the rollouts that are left over."""

    def __init__(self) -> None:
        self.offered: list[str] = []

    def choose(self, candidates: Sequence[Prompt], *, prompts: int, rollouts: int) -> tuple[list[Prompt], list[int]]:
        self.offered = [one.id for one in candidates]
        chosen = list(candidates)[-prompts:]
        return chosen, [1] * (prompts - 1) + [rollouts - prompts + 1]


def test_a_chooser_decides_which_prompts_and_how_often() -> None:
    allocator = Picks()
    found = sampler(lambda prompt, sample: [sample % 2], allocator=allocator).gather(0)
    assert len(allocator.offered) == 8
    assert found.cursor == 8
    assert sorted(len(group.members) for group in found.groups) == [1, 1, 1, 5]


@pytest.mark.parametrize("limit", [1, 3])
def test_small_data_never_runs_in_circles(limit: int) -> None:
    found = sampler(
        lambda prompt, sample: [sample], count=4, oversample=3.0, dynamic_sampling=True, dynamic_sampling_limit=limit
    ).gather(0)
    assert len(found.groups) == 4


def test_refill_keeps_groups_whose_graded_rewards_differ() -> None:
    one = sampler(lambda prompt, sample: [sample] if prompt % 2 else [7], dynamic_sampling=True)

    def share(rollouts: Sequence[Rollout]) -> list[float]:
        return [0.1 + 0.2 * int(rollout.completion) for rollout in rollouts]

    one.metric = share
    found = one.gather(0)
    assert len(found.groups) == 4
    assert all(int(name[1:]) % 2 for name in members(found)), "0.1 and 0.3 differ, 1.5 and 1.5 do not"
