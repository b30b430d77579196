"""Credit by turn from the judges themselves: bits of single turns, weights, and no look at the own future."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coterie.algo.advantages import by_prompt
from coterie.algo.estimators import Advantages, Estimator, GroupEstimator, Score, Terms
from coterie.config.advantage import GroupingConfig
from coterie.config.objective import AdvantageConfig
from coterie.grouping.estimator import GroupAwareEstimator
from coterie.grouping.features import PromptFeatures
from coterie.types import Context, Credit, Group, Message, Outcome, Prompt, Rollout, StopReason, Turn

TERMS = Terms(clip_low=0.2, clip_high=0.2, environment={"environment": 1.0})


def rollout(prompt: str, sample: int, turns: Sequence[tuple[str | None, int, float]]) -> Rollout:
    """Turns are (state, tokens, what the environment gave)."""
    made, context = [], (1,)
    for state, count, reward in turns:
        tokens = (2,) * count
        made.append(
            Turn(
                prompt_tokens=context,
                tokens=tokens,
                sampler_logprobs=(-1.0,) * count,
                temperature=1.0,
                stop_reason=StopReason.STOP,
                version=0,
                state=state,
                reward=reward,
            )
        )
        context = (*context, *tokens, 3)
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


def group_aware(preset: str = "mixture", **grouping: Any) -> GroupAwareEstimator:
    prompts = [
        Prompt(id=f"p{k}", messages=(Message(role="user", content=f"{k} + {k}"),), answer="", task="t")
        for k in range(3)
    ]
    return GroupAwareEstimator(
        GroupingConfig.model_validate({"preset": preset, **grouping}),
        terms=TERMS,
        features=PromptFeatures(prompts, None, dimensions=4),
        part_weights={"environment": 1.0},
        seed=0,
    )


def advantages_of(rollouts: Sequence[Rollout], estimator: Estimator) -> Advantages:
    by_id = {rollout.id: rollout for rollout in rollouts}
    return estimator(by_prompt(rollouts), by_id, lambda _: {})


def credits_of(rollouts: Sequence[Rollout], estimator: Estimator) -> dict[str, Credit]:
    return {credit.rollout_id: credit for credit in advantages_of(rollouts, estimator).credits}


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


def turn_values(rollout: Rollout, credit: Credit) -> np.ndarray:
    """[K] one number a turn; the tokens of a turn have the same."""
    assert isinstance(credit.advantage, tuple)
    pieces = np.split(np.array(credit.advantage), np.cumsum([len(turn.tokens) for turn in rollout.turns])[:-1])
    assert all((piece == piece[0]).all() for piece in pieces)
    return np.array([piece[0] for piece in pieces])


@pytest.mark.parametrize("preset", ["rloo", "global", "tracker", "js2", "empirical_bayes", "mixture"])
def test_no_baseline_of_a_turn_moves_with_its_own_future(preset: str) -> None:
    """G_k - c·A_k is the baseline of turn k; flipping what its turn and later ones earned leaves it where it is."""
    before = step()
    estimator = group_aware(preset, scale="none", weights="none")
    credits = credits_of(before, estimator)
    for number in (0, 5, 11):
        original = before[number]
        for k in range(3):
            flipped = tuple(
                replace(turn, reward=0.2) if place >= k else turn for place, turn in enumerate(original.turns)
            )
            total = sum(turn.reward for turn in flipped)
            changed = replace(original, turns=flipped, reward=total, reward_parts={"environment": total})
            after = credits_of(
                [*before[:number], changed, *before[number + 1 :]], group_aware(preset, scale="none", weights="none")
            )

            def baseline(attempt: Rollout, credit: Credit, k: int = k) -> float:
                to_go = sum(turn.reward for turn in attempt.turns[k:])
                return to_go - turn_values(attempt, credit)[k]

            assert abs(baseline(original, credits[original.id]) - baseline(changed, after[original.id])) < 1e-12


def test_the_first_turn_has_the_episodes_own_advantage_and_later_ones_meet() -> None:
    rollouts = step()
    whole = credits_of(rollouts, group_aware(ablate=["state"]))
    credits = credits_of(rollouts, group_aware())
    for rollout in rollouts:
        values = turn_values(rollout, credits[rollout.id])
        assert values[0] == whole[rollout.id].advantage
        assert "state" in credits[rollout.id].contributions
        rest = {name: share for name, share in credits[rollout.id].contributions.items() if name != "state"}
        assert rest == whole[rollout.id].contributions
    assert any(turn_values(rollout, credits[rollout.id])[1] != whole[rollout.id].advantage for rollout in rollouts)


def unnamed(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The rollouts without names of states, as an environment of one turn leaves them."""
    return [replace(rollout, turns=tuple(replace(turn, state=None) for turn in rollout.turns)) for rollout in rollouts]


def test_a_batch_of_episodes_that_ended_after_one_turn_is_judged_to_the_same_bit() -> None:
    rollouts = step(turns=1)
    credits, plain = credits_of(rollouts, group_aware()), credits_of(unnamed(rollouts), group_aware(ablate=["state"]))
    assert {name: credit.advantage for name, credit in credits.items()} == {
        name: credit.advantage for name, credit in plain.items()
    }
    assert all(credit.contributions["state"] == 0 for credit in credits.values())


def test_an_environment_of_one_turn_has_no_scale_of_states() -> None:
    rollouts = unnamed(step(turns=1))
    with_it, without = group_aware(), group_aware(ablate=["state"])
    with_state, plain = advantages_of(rollouts, with_it), advantages_of(rollouts, without)
    assert (with_state.credits, with_state.metrics) == (plain.credits, plain.metrics)
    assert credits_of(rollouts, gigpo(anchors=0.0)) == credits_of(rollouts, gigpo())


def gigpo(*, anchors: float = 1.0, gamma: float = 0.95) -> GroupEstimator:
    return GroupEstimator(
        config=AdvantageConfig(scale="none", gigpo_weight=anchors, gamma=gamma),
        terms=TERMS,
        part_weights={},
        step_weights={},
    )


def test_gigpo_gives_an_episode_of_one_turn_its_advantage_of_the_state() -> None:
    """A solves in its first turn, B fails in two: each first turn is worth its return less the other's."""
    first = rollout("p0", 0, [("start", 1, 1.0)])
    second = rollout("p0", 1, [("start", 1, 0.0), ("again", 1, 0.0)])
    credits = credits_of([first, second], gigpo())
    assert credits[first.id].advantage == 0.5 + 1.0
    assert turn_values(second, credits[second.id]).tolist() == [-0.5 - 1.0, -0.5]
    assert credits[first.id].contributions == {"prompt": 0.5, "state": 1.0}


SECOND = 0.3
"""Chance that the second turn solves what the first did not."""
PLAYS = {
    "first": [("start", 1, 1.0)],
    "second": [("start", 1, 0.0), ("again", 1, 1.0)],
    "never": [("start", 1, 0.0), ("again", 1, 0.0)],
}


def expected_gradient(estimator: Estimator, solved: float, share: str | None) -> tuple[float, float]:
    """Of one attempt in a group of four, by enumeration: in the logit of solving at the first turn, and at the second.

    Args:
        share: the contribution that counts; None for the whole advantage.
    """
    chances = {"first": solved, "second": (1 - solved) * SECOND, "never": (1 - solved) * (1 - SECOND)}
    first = second = 0.0
    for names in itertools.product(PLAYS, repeat=4):
        group = [rollout("p0", sample, PLAYS[name]) for sample, name in enumerate(names)]
        chance = math.prod(chances[name] for name in names)
        credits = credits_of(group, estimator)
        for attempt, name in zip(group, names, strict=True):
            credit = credits[attempt.id]
            count = len(attempt.turns)
            whole = np.atleast_1d(credit.advantage)
            values = np.broadcast_to(whole, count) - (0.0 if share is None else credit.contributions[share])
            first += chance * values[0] * ((name == "first") - solved)
            if count == 2:
                second += chance * values[1] * ((name == "second") - SECOND)
    return first / 4, second / 4


@pytest.mark.parametrize("solved", [0.05, 0.2, 0.5, 0.8])
def test_the_expected_gradient_of_gigpos_state_term_is_the_true_one(solved: float) -> None:
    """Also where an attempt ends after its first turn: leaving those out would give `solved` times the true one."""
    gamma = 0.9
    first, second = expected_gradient(gigpo(gamma=gamma), solved, "prompt")
    np.testing.assert_allclose(first, solved * (1 - solved) * (1 - gamma * SECOND), rtol=1e-12)
    met = 1 - solved**3  # a state that no other attempt came to has no term, whatever was done there
    np.testing.assert_allclose(second, (1 - solved) * met * SECOND * (1 - SECOND), rtol=1e-12)


@pytest.mark.parametrize("solved", [0.05, 0.5, 0.8])
def test_the_expected_gradient_of_the_scale_of_states_is_the_true_one(solved: float) -> None:
    class Still(GroupAwareEstimator):
        """Learns nothing from one group to the next, which are alternatives here."""

        def __call__(self, groups: Sequence[Group], rollouts: Mapping[str, Rollout], score: Score) -> Advantages:
            self._model, self.step = None, 0
            return super().__call__(groups, rollouts, score)

    plain = group_aware("rloo", scale="none", weights="none")
    still = Still(plain.config, terms=TERMS, features=plain.features, part_weights={"environment": 1.0}, seed=0)
    first, second = expected_gradient(still, solved, None)
    np.testing.assert_allclose(first, solved * (1 - solved) * (1 - SECOND), rtol=1e-9)
    np.testing.assert_allclose(second, (1 - solved) * SECOND * (1 - SECOND), rtol=1e-9)


def test_the_share_of_the_scale_is_a_metric() -> None:
    metrics = advantages_of(step(), group_aware("rloo")).metrics
    assert metrics["grouping/scale/state"] > 0
    assert 0 < metrics["grouping/state/shared"] <= 1


def test_a_reward_that_is_not_the_environments_comes_with_the_last_turn() -> None:
    """A part of weight 1 beside the environment's 0.5: returns to go are what is still to come."""
    first = rollout("p0", 0, [("a", 1, 0.4), ("b", 1, 0.2)])
    second = rollout("p0", 1, [("a", 1, 0.0), ("b", 1, 0.0)])
    first = replace(first, reward=0.8)  # 0.5 · 0.6 + 0.5
    estimator = GroupEstimator(
        config=AdvantageConfig(baseline="leave_one_out", scale="none", gigpo_weight=1.0, gamma=1.0),
        terms=Terms(clip_low=0.2, clip_high=0.2, environment={"environment": 0.5}),
        part_weights={},
        step_weights={},
    )
    credits = credits_of([first, second], estimator)
    np.testing.assert_allclose(credits[first.id].advantage, [0.8 + 0.8, 0.8 + 0.6])
    np.testing.assert_allclose(credits[second.id].advantage, [-0.8 - 0.8, -0.8 - 0.6])
    assert credits[first.id].contributions == pytest.approx({"prompt": 0.8, "state": 0.7})
