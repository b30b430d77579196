"""Credit by turn from the judges themselves: bits of single turns, weights, and no look at the own future."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coterie.algo.advantages import AdvantageRule
from coterie.algo.groups import by_prompt
from coterie.config.grouping import GroupingConfig
from coterie.train.credit import GroupJudge, Terms
from coterie.train.grouping import GroupAwareJudge
from coterie.train.prompt_features import PromptFeatures
from coterie.types import Context, Credit, Message, Outcome, Prompt, Rollout, StopReason, Turn

TERMS = Terms(clip_low=0.2, clip_high=0.2, environment={"environment": 1.0})


def rollout(prompt: str, sample: int, turns: Sequence[tuple[str | None, int, float]]) -> Rollout:
    """Turns are (state, tokens, what the environment gave)."""
    made, seen = [], (1,)
    for state, count, reward in turns:
        tokens = (2,) * count
        made.append(
            Turn(
                prompt_tokens=seen,
                tokens=tokens,
                sampler_logprobs=(-1.0,) * count,
                temperature=1.0,
                stop_reason=StopReason.STOP,
                version=0,
                state=state,
                reward=reward,
            )
        )
        seen = (*seen, *tokens, 3)
    total = sum(reward for _, _, reward in turns)
    return Rollout(
        id=f"{prompt}#{sample}@0",
        sample=sample,
        turns=tuple(made),
        completion="",
        reward=total,
        reward_parts={"environment": total},
        outcome=Outcome.OK,
        context=Context(
            prompt_id=prompt,
            task="t",
            difficulty=None,
            version=0,
            prompt_length=1,
            completion_length=sum(count for _, count, _ in turns),
            stop_reason=StopReason.STOP,
        ),
    )


def judge(preset: str = "heb-stack", **grouping: Any) -> GroupAwareJudge:
    prompts = [
        Prompt(id=f"p{k}", messages=(Message(role="user", content=f"{k} + {k}"),), answer="", task="t")
        for k in range(3)
    ]
    return GroupAwareJudge(
        GroupingConfig.model_validate({"preset": preset, **grouping}),
        terms=TERMS,
        features=PromptFeatures(prompts, None, dimensions=4, seed=0),
        part_weights={"environment": 1.0},
        seed=0,
    )


def credits_of(rollouts: Sequence[Rollout], who: GroupAwareJudge | GroupJudge) -> dict[str, Credit]:
    by_id = {one.id: one for one in rollouts}
    return {one.rollout_id: one for one in who(by_prompt(rollouts), by_id, {})}


def step(seed: int = 0, *, turns: int = 3) -> list[Rollout]:
    """Three prompts, four attempts each, whose states often meet."""
    rng = np.random.default_rng(seed)
    return [
        rollout(
            f"p{prompt}",
            sample,
            [
                (f"s{0 if k == 0 else rng.integers(2)}", int(rng.integers(1, 4)), float(rng.random() / 4))
                for k in range(turns)
            ],
        )
        for prompt in range(3)
        for sample in range(4)
    ]


def turn_values(one: Rollout, credit: Credit) -> np.ndarray:
    """[K] one number a turn; the tokens of a turn have the same."""
    assert isinstance(credit.advantage, tuple)
    pieces = np.split(np.array(credit.advantage), np.cumsum([len(turn.tokens) for turn in one.turns])[:-1])
    assert all((piece == piece[0]).all() for piece in pieces)
    return np.array([piece[0] for piece in pieces])


@pytest.mark.parametrize("preset", ["rloo", "global", "tracker", "js2", "heb", "heb-stack"])
def test_no_baseline_of_a_turn_moves_with_its_own_future(preset: str) -> None:
    """G_k - c·A_k is the baseline of turn k; flipping what its turn and later ones earned leaves it where it is."""
    before = step()
    who = judge(preset, scale="none", weights="none")
    found = credits_of(before, who)
    for number in (0, 5, 11):
        one = before[number]
        for k in range(3):
            flipped = tuple(replace(turn, reward=0.2) if place >= k else turn for place, turn in enumerate(one.turns))
            total = sum(turn.reward for turn in flipped)
            other = replace(one, turns=flipped, reward=total, reward_parts={"environment": total})
            after = credits_of(
                [*before[:number], other, *before[number + 1 :]], judge(preset, scale="none", weights="none")
            )

            def baseline(attempt: Rollout, credit: Credit, k: int = k) -> float:
                to_go = sum(turn.reward for turn in attempt.turns[k:])
                return to_go - turn_values(attempt, credit)[k]

            assert abs(baseline(one, found[one.id]) - baseline(other, after[one.id])) < 1e-12


def test_the_first_turn_has_the_episodes_own_advantage_and_later_ones_meet() -> None:
    rollouts = step()
    whole = credits_of(rollouts, judge(without=["state"]))
    found = credits_of(rollouts, judge())
    for one in rollouts:
        values = turn_values(one, found[one.id])
        assert values[0] == whole[one.id].advantage
        assert "state" in found[one.id].contributions
        rest = {name: share for name, share in found[one.id].contributions.items() if name != "state"}
        assert rest == whole[one.id].contributions
    assert any(turn_values(one, found[one.id])[1] != whole[one.id].advantage for one in rollouts)


def test_episodes_of_one_turn_are_judged_to_the_same_bit() -> None:
    rollouts = step(turns=1)
    plain = [replace(one, turns=tuple(replace(turn, state=None) for turn in one.turns)) for one in rollouts]
    with_it, without = judge(), judge(without=["state"])
    one, two = credits_of(rollouts, with_it), credits_of(plain, without)
    assert one == two
    assert with_it.metrics() == without.metrics()


def test_the_share_of_the_scale_is_a_metric() -> None:
    who = judge("rloo")
    credits_of(step(), who)
    assert who.metrics()["grouping/scale/state"] > 0
    assert 0 < who.metrics()["grouping/state/shared"] <= 1


def test_a_reward_that_is_not_the_environments_comes_with_the_last_turn() -> None:
    """A part of weight 1 beside the environment's 0.5: returns to go are what is still to come."""
    one = rollout("p0", 0, [("a", 1, 0.4), ("b", 1, 0.2)])
    two = rollout("p0", 1, [("a", 1, 0.0), ("b", 1, 0.0)])
    one = replace(one, reward=0.8)  # 0.5 · 0.6 + 0.5
    who = GroupJudge(
        rule=AdvantageRule(baseline="leave_one_out", scale="none", anchors=1.0, anchor_gamma=1.0),
        terms=Terms(clip_low=0.2, clip_high=0.2, environment={"environment": 0.5}),
        part_weights={},
        step_weights={},
    )
    found = credits_of([one, two], who)
    np.testing.assert_allclose(found[one.id].advantage, [0.8 + 0.8, 0.8 + 0.6])
    np.testing.assert_allclose(found[two.id].advantage, [-0.8 - 0.8, -0.8 - 0.6])
    assert found[one.id].contributions == pytest.approx({"prompt": 0.8, "state": 0.7})
