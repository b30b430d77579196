"""The self-test of rewards, and the source's own scorer behind it."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

from coterie.config.rewards import RewardConfig, RewardsConfig
from coterie.data import tasks
from coterie.errors import RewardError
from coterie.rewards.builtin import task
from coterie.rewards.check import require_sound, self_test, unjudged
from coterie.rewards.pool import Scorer
from coterie.types import Prompt


def prompt(name, answer, **attributes):
    return Prompt(id=name, messages=({"role": "user", "content": "?"},), answer=answer, task="t", attributes=attributes)


def check(parts, prompts, **options):
    parts = [RewardConfig(name=part) if isinstance(part, str) else part for part in parts]
    with Scorer(RewardsConfig(functions=parts)) as scorer:
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
    report = check(["task", "format"], [*prompts, prompt("plain", "12")])
    assert report.ok, report
    assert report.checked == 7
    assert [(part.gold, part.judge) for part in report.parts] == [(1.0, True), (1.0, False)]
    assert report.parts[0].garbage is not None
    assert report.parts[0].garbage <= 0.05
    assert [level for level, _, _ in report.lines()] == ["ok", "ok"]


def test_builtin_judges():
    report = check(["exact", "number"], [prompt("a", "4"), prompt("b", "1/2"), prompt("c", None)])
    assert report.ok
    assert (report.checked, report.without_gold) == (2, 1)
    assert [(part.gold, part.garbage) for part in report.parts] == [(1, 0), (1, 0)]


def test_a_generous_reward_is_noticed():
    report = check(["unruly:judge"], [prompt("a", "4")])
    assert report.lines() == [("warn", "reward judge", "gold answers score 2, garbage 2: no difference (1 prompt)")]


def test_failing_rows_are_listed():
    report = check(["exact", "unruly:raises"], [prompt("a", "4"), prompt("b", "bad")])
    assert not report.ok
    (failure,) = report.failures
    assert (failure.prompt_id, failure.part) == ("b", "reward")
    assert "raised KeyError" in failure.text
    assert ("fail", "reward", failure.text) in report.lines()


def test_a_gold_answer_that_is_not_accepted():
    # A judge that needs the answer to be more than it is: gold text with an answer mark inside of it.
    report = check(["exact"], [prompt("a", "x <answer>y</answer>")])
    assert not report.ok
    assert "the gold answer 'x <answer>y</answer>' of prompt a scores 0; expected 1" in report.failures[0].text


def test_an_empty_gold_answer_accepts_garbage():
    report = check(["exact"], [prompt("a", "")])
    assert "garbage as an answer to prompt a scores 1; expected 0" in report.failures[0].text


def test_no_gold_answers():
    report = check(["exact"], [prompt("a", None)])
    assert report.ok
    assert report.lines()[0][0] == "warn"
    assert check(["exact"], []).checked == 0


def test_many_prompts_are_sampled_evenly():
    prompts = [prompt(str(k), str(k) if k >= 500 else None) for k in range(1000)]
    report = check(["number"], prompts, limit=10)
    assert (report.checked, report.without_gold) == (5, 5)


def test_training_on_a_judge_that_is_wrong_is_refused():
    def ask(parts, prompts):
        with Scorer(RewardsConfig(functions=[RewardConfig(name=part) for part in parts])) as scorer:
            require_sound(scorer, prompts)

    ask(["exact"], [prompt(str(k), str(k)) for k in range(40)])
    ask(["exact"], [prompt("a", None)])
    ask(["exact"], [])
    ask(["unruly:raises"], [prompt("a", "4"), prompt("b", "bad")])  # a function of the user's own may mean anything
    with pytest.raises(RewardError, match=r"1 of 1 prompt looked at .*; the first: .*of prompt a scores 0"):
        ask(["exact", "unruly:raises"], [prompt("a", "x <answer>y</answer>")])
    with pytest.raises(RewardError, match=r"misjudges gold answers or garbage.*coterie validate"):
        ask(["exact"], [prompt(str(k), "" if k % 3 == 0 else str(k)) for k in range(30)])


def test_a_function_that_fails_on_every_prompt_is_refused_before_the_model_is_loaded():
    def ask(part, prompts):
        with Scorer(RewardsConfig(functions=[RewardConfig(name=part)])) as scorer:
            require_sound(scorer, prompts)

    with pytest.raises(RewardError, match=r"fails on every prompt looked at \(2\); .* raised KeyError: 'bad'"):
        ask("unruly:raises", [prompt("a", "bad"), prompt("b", "bad")])
    with pytest.raises(
        RewardError, match=r"needs 'solution', but the prompts only have answer, .*label.*add the column"
    ):
        ask("unruly:needs_solution", [prompt("a", None, label=1)])
    ask("unruly:needs_solution", [prompt("a", None, solution="4")])
    ask("unruly:not_applicable", [prompt("a", "4")])  # to the gold answer as plain text, perhaps


def test_a_reward_that_fails_is_not_also_said_to_tell_nothing_apart():
    test = check(["unruly:raises"], [prompt("a", "bad"), prompt("b", "bad")])
    assert not test.ok
    assert [level for level, _, _ in test.lines()] == ["fail", "fail"]
    assert "no difference" not in str(test.lines())


def test_prompts_without_a_gold_answer_are_tried_too():
    test = check(["unruly:needs_solution"], [prompt(str(k), None) for k in range(4)])
    assert not test.ok
    assert (test.checked, test.open_ended) == (0, 4)
    assert test.lines()[1][0] == "fail"
    test = check(["unruly:not_applicable"], [prompt("a", None)])
    assert test.ok
    assert test.lines()[-1] == (
        "warn",
        "rewards",
        "no part applied to 1 prompt without a gold answer, when the completion was garbage",
    )


def test_what_built_in_judges_cannot_score():
    item = {"name": "x", "params": {}, "size": 1, "seed": 0, "entry": {}}
    prompts = [
        prompt("a", "4"),
        prompt("b", None),
        prompt("c", None, reasoning_gym=item),
        prompt("d", None, reasoning_gym=1),
    ]

    def ids(*parts):
        return [unscored.id for unscored in unjudged(parts, prompts)]

    assert ids(RewardConfig(name="task")) == ["b", "d"]
    assert ids(RewardConfig(name="exact"), RewardConfig(name="format", weight=0)) == ["b", "c", "d"]
    assert ids(RewardConfig(name="exact"), RewardConfig(name="format", weight=0.1)) == []


def test_a_column_that_is_called_like_an_item_is_no_item():
    assert task(["so 4"], ["4"], reasoning_gym=["no"]) == [1]
    assert task(["so 4"], ["4"], reasoning_gym=[{"name": "mine"}]) == [1]
