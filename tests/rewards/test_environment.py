"""Environment rewards through the real worker: a part of its own, and columns for others."""

from __future__ import annotations

import contextlib
from pathlib import Path

from coterie.config.rewards import RewardConfig, RewardsConfig
from coterie.config.schema import EnvironmentConfig
from coterie.rewards.builtin import environment
from coterie.rewards.check import identity, require_sound, self_test
from coterie.rewards.pool import Scorer
from coterie.types import Prompt

FUNCTIONS = '''
def longest(completions, completion_turns, environment_rewards, **columns):
    """Of all turns; less than nothing where the environment gave something below 0."""
    return [
        max(map(len, turns)) - sum(value < 0 for value in given)
        for turns, given in zip(completion_turns, environment_rewards)
    ]
'''


def prompts(count: int) -> list[Prompt]:
    # A column of the data cannot pose as one of the rollouts.
    facts = {"environment_rewards": [100.0], "completion_turns": "mine"}
    return [Prompt(id=f"p{k}", messages=(), answer="1", task="t", attributes=facts) for k in range(count)]


def test_the_part_is_the_sum_over_the_turns_and_others_see_each(tmp_path: Path) -> None:
    (tmp_path / "turn_rewards.py").write_text(FUNCTIONS, encoding="utf-8")
    parts = [RewardConfig(name="environment", weight=2.0), RewardConfig(name="turn_rewards:longest", weight=0.1)]
    with contextlib.chdir(tmp_path), Scorer(RewardsConfig(functions=parts)) as scorer:
        scores = scorer.score(
            prompts(2),
            ["b", ""],
            lengths=[3, 1],
            turns=[["aaa", "b"], [""]],
            earned=[[0.25, 0.5], [-1.0]],
        )
    assert [score.parts for score in scores] == [
        {"environment": 0.75, "longest": 3.0},
        {"environment": -1.0, "longest": -1.0},
    ]
    assert [score.reward for score in scores] == [1.5 + 0.1 * 3.0, -2.0 - 0.1]


def test_without_an_episode_it_does_not_apply() -> None:
    assert environment(["a"]) == [None]
    assert environment(["a", "b"], [[1.0, 0.5], None]) == [1.5, None]
    with Scorer(RewardsConfig(functions=[RewardConfig(name="environment")])) as scorer:
        (score,) = scorer.score(prompts(1), ["1"])
    assert "no reward part applies" in (score.error or "")


def test_gold_answers_are_no_test_of_it_but_still_of_the_judges_beside_it() -> None:
    parts = [RewardConfig(name="environment"), RewardConfig(name="number", weight=0.0)]
    with Scorer(RewardsConfig(functions=parts)) as scorer:
        report = self_test(scorer, prompts(4))
        require_sound(scorer, prompts(4))
    assert report.ok
    assert [part.label for part in report.parts] == ["number"]


def test_another_environment_is_another_reward() -> None:
    rewards = RewardsConfig(functions=[RewardConfig(name="environment")])
    retry = EnvironmentConfig(name="retry")
    assert identity(rewards, EnvironmentConfig()) == identity(rewards)
    assert identity(rewards, retry) != identity(rewards)
    assert identity(rewards, retry) == identity(rewards, EnvironmentConfig(name="retry"))
    assert identity(rewards, retry) != identity(rewards, EnvironmentConfig(name="retry", params={"turns": 2}))
