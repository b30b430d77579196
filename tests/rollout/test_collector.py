"""Collecting on the scripted engine: whole groups, honest outcomes, and errors that never become rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from coterie.algo.advantages import by_key, by_prompt
from coterie.engines.base import Request, Sampling
from coterie.engines.scripted import ScriptedEngine
from coterie.envs.base import Episode
from coterie.envs.registry import SingleTurn
from coterie.errors import RewardError
from coterie.rewards.base import Score
from coterie.rollout.collector import Collector, Experience
from coterie.train.evaluate import Criterion
from coterie.train.metrics import step_metrics
from coterie.types import Message, Outcome, Prompt, StopReason
from runs_for_tests import step_result

SAMPLING = Sampling(temperature=1.0, max_tokens=3)


class Letters:
    """Token k is the k-th letter."""

    def render(self, messages: Sequence[Message]) -> list[int]:
        return [ord(letter) % 26 for letter in messages[-1]["content"]]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(ord("a") + token) for token in ids)

    def render_continuation(
        self, messages: Sequence[Message], turn_ids: Sequence[int], *, stop: Sequence[str] = ()
    ) -> list[int]:
        return self.render(messages)


class Marks:
    """1 for a completion that starts with the answer; `?` makes it an error."""

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        *,
        lengths: Sequence[int] | None = None,
        turns: Sequence[Sequence[str]] | None = None,
        messages: Sequence[Sequence[Message]] | None = None,
        earned: Sequence[Sequence[float]] | None = None,
        openings: Sequence[str] | None = None,
        tokens: Sequence[Sequence[int]] | None = None,
        version: int = 0,
    ) -> list[Score]:
        return [self._score(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]

    def _score(self, prompt: Prompt, text: str) -> Score:
        if prompt.answer == "?":
            return Score(reward=None, parts={}, error="marks raised ValueError: no idea")
        value = float(text.startswith(prompt.answer or ""))
        return Score(reward=value, parts={"marks": value}, error=None)


def prompt(name: str, answer: str = "b") -> Prompt:
    return Prompt(id=name, messages=(Message(role="user", content=name),), answer=answer, task="t")


def collector(environment: object = None, *, share: float = 1.0) -> Collector:
    """Sample k of a prompt says the letter k, k times, the first one once."""
    return Collector(
        engine=ScriptedEngine(lambda request: [request.key.sample] * max(1, request.key.sample)),
        environment=environment or SingleTurn(),  # ty: ignore[invalid-argument-type]
        chat=Letters(),
        scorer=Marks(),
        seed=3,
        max_error_share=share,
    )


def by_id(experience: Experience) -> dict[str, Outcome]:
    return {rollout.id: rollout.outcome for rollout in experience.rollouts}


def test_every_attempt_is_stamped_and_scored() -> None:
    experience = collector().collect([prompt("p"), prompt("q", "c")], samples=5, sampling=SAMPLING)
    assert [rollout.reward for rollout in experience.rollouts] == [0, 1, 0, 0, 0, 0, 0, 1, 0, 0]
    assert by_id(experience)["p#4@0"] is Outcome.TRUNCATED
    last = experience.rollouts[-1]
    assert (last.context.prompt_id, last.context.completion_length, last.context.version) == ("q", 3, 0)
    assert experience.prompt_of(last).id == "q"
    assert experience.tokens == 2 * (1 + 1 + 2 + 3 + 3)


def test_a_prompt_drawn_twice_is_one_larger_group() -> None:
    experience = collector().collect([prompt("p"), prompt("p")], samples=2, sampling=SAMPLING)
    (group,) = by_prompt(experience.rollouts)
    assert group.members == ("p#0@0", "p#1@0", "p#2@0", "p#3@0")


def test_a_reward_error_enters_no_group() -> None:
    experience = collector().collect([prompt("p"), prompt("q", "?")], samples=2, sampling=SAMPLING)
    assert set(by_id(experience).values()) == {Outcome.OK, Outcome.REWARD_ERROR}
    assert [group.key for group in by_prompt(experience.rollouts)] == ["p@0"]
    assert all(rollout.reward is None for rollout in experience.errors)


def test_too_many_errors_end_the_run_with_the_first_cause() -> None:
    with pytest.raises(RewardError, match=r"2 of 4 .*max_error_share = 0\.1.*q#0@0: marks raised ValueError: no idea"):
        collector(share=0.1).collect([prompt("p"), prompt("q", "?")], samples=2, sampling=SAMPLING)


def test_an_environment_that_raises_is_no_reward() -> None:
    class Broken:
        def episode(self, prompt: Prompt) -> Episode:
            yield prompt.messages
            raise RuntimeError("the tool is gone")

    experience = collector(Broken()).collect([prompt("p")], samples=1, sampling=SAMPLING)
    assert experience.rollouts[0].outcome is Outcome.ENV_ERROR
    assert experience.rollouts[0].error == "the environment raised RuntimeError: the tool is gone"


def test_an_environment_that_wants_more_turns_than_allowed_is_cut() -> None:
    class Chatty:
        def episode(self, prompt: Prompt) -> Episode:
            yield prompt.messages
            yield prompt.messages

    experience = collector(Chatty()).collect([prompt("p")], samples=1, sampling=SAMPLING)
    (rollout,) = experience.rollouts
    assert (rollout.outcome, rollout.stop_reason) == (Outcome.TRUNCATED, StopReason.EPISODE)
    assert len(rollout.turns) == 1


def test_groups_of_another_scale_are_a_key_away() -> None:
    experience = collector().collect([prompt("p"), prompt("q")], samples=2, sampling=SAMPLING)
    (group,) = by_key(experience.rollouts, "task", lambda context: context.task)
    assert (group.scale, len(group.members)) == ("task", 4)


def test_solved_means_correct_and_not_just_equal() -> None:
    engine_says = {"p": [1], "q": [2], "r": [1]}

    def script(request: Request) -> list[int]:
        return [2] if request.key.prompt == "r" and request.key.sample else engine_says[request.key.prompt]

    source = collector()
    source.engine = ScriptedEngine(script)
    experience = source.collect([prompt("p"), prompt("q"), prompt("r")], samples=2, sampling=SAMPLING)
    metrics = step_metrics(step_result(experience), Criterion(part="marks"))
    shares = {name: metrics[f"groups/{name}"] for name in ("all_correct", "all_wrong", "mixed", "zero_variance")}
    assert shares == pytest.approx({"all_correct": 1 / 3, "all_wrong": 1 / 3, "mixed": 1 / 3, "zero_variance": 2 / 3})
    assert metrics["reward/mean"] == metrics["reward/part/marks"] == 0.5


class Opened(Letters):
    """Its template opens a thought."""

    opening = "<think>\n"


class Listener:
    """Remembers what it is asked to judge, but for the token ids, and ends a step at the opening, after one letter, and
    at the end."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[str, ...], dict[str, Any]]] = []

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str], **facts: Any) -> list[Score]:
        self.asked.append((tuple(completions), facts))
        assert [len(ids) for ids in facts.pop("tokens")] == facts["lengths"]
        assert facts.pop("version") == 0
        steps = [{"s": ((3, 0.5), (len(text) - 1, 0.0), (len(text), 1.0))} for text in completions]
        return [Score(reward=1.0, parts={"s": 1.0}, error=None, steps=step_rewards) for step_rewards in steps]


def listened(chat: Letters, words: list[int], stop: tuple[str, ...] = ()) -> tuple[Listener, Experience]:
    listener = Listener()
    collecting = Collector(
        engine=ScriptedEngine(lambda request: words),
        environment=SingleTurn(),
        chat=chat,
        scorer=listener,
        seed=3,
        max_error_share=1.0,
    )
    return listener, collecting.collect(
        [prompt("p")], samples=1, sampling=Sampling(temperature=1, max_tokens=9, stop=stop)
    )


def test_what_the_template_opened_stands_before_what_rewards_judge_and_not_in_the_record() -> None:
    listener, experience = listened(Opened(), [1, 2, 3])
    assert listener.asked == [(("<think>\nbcd",), {"lengths": [3], "openings": ["<think>\n"]})]
    (rollout,) = experience.rollouts
    assert rollout.completion == "bcd"
    assert [(step.end, step.value) for step in rollout.step_rewards] == [(0, 0.5), (1, 0.0), (2, 1.0)]
    listener, _ = listened(Letters(), [1, 2, 3])
    assert listener.asked == [(("bcd",), {"lengths": [3]})]


def test_a_stop_string_leaves_the_text_and_stays_in_the_tokens() -> None:
    listener, experience = listened(Letters(), [1, 2, 3, 4, 5], stop=("de", "zz"))
    (rollout,) = experience.rollouts
    assert listener.asked == [(("bc",), {"lengths": [5]})]
    assert (rollout.completion, rollout.turns[0].tokens) == ("bc", (1, 2, 3, 4, 5))
    assert rollout.context.completion_length == 5
    assert [step.end for step in rollout.step_rewards if step.value == 1.0] == [1]


def test_a_stop_string_stays_in_a_text_that_was_cut() -> None:
    _, experience = listened(Letters(), list(range(1, 12)), stop=("zz",))
    assert experience.rollouts[0].completion == "bcdefghij"


def test_an_environment_is_told_without_the_stop_string_and_with_the_opening() -> None:
    heard: list[str] = []

    class Hears:
        def episode(self, prompt: Prompt) -> Episode:
            heard.append((yield prompt.messages))
            return None

    collecting = collector(Hears())
    collecting.chat = Opened()
    collecting.engine = ScriptedEngine(lambda request: [1, 2, 3])
    collecting.collect([prompt("p")], samples=1, sampling=Sampling(temperature=1, max_tokens=9, stop=("d",)))
    assert heard == ["<think>\nbc"]
