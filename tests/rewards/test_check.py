"""The self-test of rewards, and the source's own scorer behind it."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

from coterie.config.rewards import RewardConfig, RewardsConfig
from coterie.data import tasks
from coterie.errors import RewardError
from coterie.rewards.check import require_sound, self_test
from coterie.rewards.pool import Scorer
from coterie.rewards.task import task
from coterie.types import Prompt


def prompt(name, answer, **attributes):
    return Prompt(id=name, messages=({"role": "user", "content": "?"},), answer=answer, task="t", attributes=attributes)


def check(parts, prompts, **options):
    parts = [RewardConfig(name=part) if isinstance(part, str) else part for part in parts]
    with Scorer(RewardsConfig(parts=parts)) as scorer:
        return self_test(scorer, prompts, **options)


def test_task_without_a_generator():
    golds = ["4", "4.0", "Paris", "Paris", None]
    assert task(["so 4", "5", "PARIS", "in Paris", "4"], golds) == [1, 0, 1, 0, None]


@pytest.mark.skipif(find_spec("reasoning_gym") is None, reason="needs reasoning-gym")
def test_task_of_a_generator_through_the_real_path():
    prompts = [
        prompt(f"{name}/{item.index}", item.answer, **json.loads(json.dumps(item.attributes)))
        for name in ("leg_counting", "basic_arithmetic")
        for item in tasks.items(name, {}, 3, seed=1)
    ]
    found = check(["task", "format"], [*prompts, prompt("plain", "12")])
    assert found.ok, found
    assert found.checked == 7
    assert [(part.gold, part.judge) for part in found.parts] == [(1.0, True), (1.0, False)]
    assert found.parts[0].garbage is not None
    assert found.parts[0].garbage <= 0.05
    assert [level for level, _, _ in found.lines()] == ["ok", "ok"]


def test_builtin_judges():
    found = check(["exact", "number"], [prompt("a", "4"), prompt("b", "1/2"), prompt("c", None)])
    assert found.ok
    assert (found.checked, found.without_gold) == (2, 1)
    assert [(part.gold, part.garbage) for part in found.parts] == [(1, 0), (1, 0)]


def test_a_generous_reward_is_noticed():
    found = check(["unruly:judge"], [prompt("a", "4")])
    assert found.lines() == [
        ("warn", "reward judge", "gold answers score 2, garbage 2: it does not tell them apart (1 prompts)")
    ]


def test_failing_rows_are_listed():
    found = check(["exact", "unruly:raises"], [prompt("a", "4"), prompt("b", "bad")])
    assert not found.ok
    (failure,) = found.failures
    assert (failure.prompt_id, failure.part) == ("b", "reward")
    assert "raised KeyError" in failure.text
    assert ("fail", "reward reward", failure.text) in found.lines()


def test_a_gold_answer_that_is_not_accepted():
    # A judge that needs the answer to be more than it is: gold text with an answer mark inside of it.
    found = check(["exact"], [prompt("a", "x <answer>y</answer>")])
    assert not found.ok
    assert "the gold answer 'x <answer>y</answer>' of prompt a scores 0; expected 1" in found.failures[0].text


def test_an_empty_gold_answer_accepts_garbage():
    found = check(["exact"], [prompt("a", "")])
    assert "garbage as an answer to prompt a scores 1; expected 0" in found.failures[0].text


def test_no_gold_answers():
    found = check(["exact"], [prompt("a", None)])
    assert found.ok
    assert found.lines()[0][0] == "warn"
    assert check(["exact"], []).checked == 0


def test_many_prompts_are_sampled_evenly():
    prompts = [prompt(str(k), str(k) if k >= 500 else None) for k in range(1000)]
    found = check(["number"], prompts, limit=10)
    assert (found.checked, found.without_gold) == (5, 5)


def test_training_on_a_judge_that_is_wrong_is_refused():
    def ask(parts, prompts):
        with Scorer(RewardsConfig(parts=[RewardConfig(name=part) for part in parts])) as scorer:
            require_sound(scorer, prompts)

    ask(["exact"], [prompt(str(k), str(k)) for k in range(40)])
    ask(["exact"], [prompt("a", None)])
    ask(["exact"], [])
    ask(["unruly:raises"], [prompt("b", "bad")])  # a function of the user's own may mean anything
    with pytest.raises(RewardError, match=r"1 are misjudged; the first: .*of prompt a scores 0"):
        ask(["exact", "unruly:raises"], [prompt("a", "x <answer>y</answer>")])
    with pytest.raises(RewardError, match=r"does not know right from wrong.*coterie validate"):
        ask(["exact"], [prompt(str(k), "" if k % 3 == 0 else str(k)) for k in range(30)])
