"""Episodes of several turns on the scripted engine: exact tokens, honest ends, draws that repeat."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

import pytest

from coterie.batches.pack import continuation
from coterie.engines.base import Quorum, Request, Sampling
from coterie.engines.scripted import ScriptedEngine
from coterie.envs.base import EpisodeError, Limits, Observation, check_observation, digest, state_key
from coterie.envs.registry import FunctionEnvironment
from coterie.envs.retry import Retry
from coterie.envs.running_sum import RunningSum, terms_of, whole_number
from coterie.errors import ConfigError
from coterie.rewards.base import Score
from coterie.rollout.collector import Collector
from coterie.types import Message, Outcome, Prompt, Rollout, StopReason

SAMPLING = Sampling(temperature=1.0, max_tokens=4)
END = 0


class Digits:
    """Token k + 1 is the digit k, 0 the end of a turn, and what a message says are its digits after a mark."""

    def render(self, messages: Sequence[Message]) -> list[int]:
        return [token for message in messages for token in self._words(message)]

    def render_continuation(
        self, messages: Sequence[Message], turn_ids: Sequence[int], *, stop: Sequence[str] = ()
    ) -> list[int]:
        return ([] if turn_ids[-1:] == (END,) else [END]) + self.render(messages)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(str(token - 1) for token in ids if token != END)

    def _words(self, message: Message) -> list[int]:
        return [50, *(int(letter) + 1 for letter in message["content"] if letter.isdecimal())]


class Sums:
    """The reward is what the environment gave, and what it was told is kept."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str], **facts: Any) -> list[Score]:
        self.told.append({"completions": list(completions), **facts})
        earned = facts.get("earned") or [[0.0]] * len(completions)
        return [Score(reward=sum(rewards), parts={"environment": sum(rewards)}, error=None) for rewards in earned]


def user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


def prompt(name: str = "p", text: str = "7", answer: str | None = "7") -> Prompt:
    return Prompt(id=name, messages=user(text), answer=answer, task="t")


def play(
    episode: Any,
    says: Callable[[Request], Sequence[int]],
    *,
    samples: int = 1,
    limits: Limits | None = None,
    question: Prompt | None = None,
    quorum: Quorum | None = None,
    sampling: Sampling = SAMPLING,
) -> tuple[list[Rollout], Sums]:
    environment = episode if hasattr(episode, "episode") else FunctionEnvironment(name="a:b", function=episode)
    scorer = Sums()
    collector = Collector(
        engine=ScriptedEngine(says, vocabulary=100),
        environment=environment,
        chat=Digits(),
        scorer=scorer,
        seed=5,
        max_error_share=1.0,
        limits=limits or Limits(turns=4, tokens=60),
    )
    experience = collector.collect([question or prompt()], samples=samples, sampling=sampling, quorum=quorum)
    return list(experience.rollouts), scorer


def counts(prompt: Prompt):
    """Asks for the turn's number twice more; each turn earns its number."""
    reply = yield prompt.messages
    reply = yield Observation(messages=user(f"1{reply}"), state=("second", reply), reward=0.25)
    yield Observation(messages=user("2"), reward=0.5)
    return 0.125


def test_each_turn_goes_on_from_the_exact_tokens_of_the_one_before() -> None:
    (rollout,), scorer = play(counts, lambda request: [request.key.turn + 4, END])
    assert [turn.prompt_tokens for turn in rollout.turns] == [
        (50, 8),
        (50, 8, 4, END, 50, 2, 4),
        (50, 8, 4, END, 50, 2, 4, 5, END, 50, 3),
    ]
    tokens, trained, _ = continuation(rollout)
    assert tokens[trained].tolist() == [4, END, 5, END, 6, END]
    assert [turn.reward for turn in rollout.turns] == [0.25, 0.5, 0.125]
    assert [message["content"] for message in rollout.messages] == ["7", "3", "13", "4", "2", "5"]
    assert rollout.turns[0].state == digest(rollout.messages[:1])
    assert rollout.turns[1].state == "('second', '3')"
    assert rollout.turns[2].state == digest(rollout.messages[:5])
    assert (rollout.completion, rollout.outcome, rollout.reward) == ("5", Outcome.OK, 0.875)
    assert (rollout.context.prompt_length, rollout.context.completion_length) == (2, 6)
    (told,) = scorer.told
    assert (told.pop("tokens"), told.pop("version")) == ([[4, 0, 5, 0, 6, 0]], 0)
    assert [message["content"] for message in told.pop("messages")[0]] == ["3", "13", "4", "2", "5"]
    assert told == {"completions": ["5"], "lengths": [6], "turns": [["3", "4", "5"]], "earned": [[0.25, 0.5, 0.125]]}


def test_a_turn_that_was_cut_gets_an_end_that_is_not_trained() -> None:
    (rollout,), _ = play(counts, lambda request: [2] * 9 if request.key.turn == 0 else [3, END])
    assert rollout.turns[0].stop_reason is StopReason.LENGTH
    assert rollout.turns[1].prompt_tokens == (50, 8, 2, 2, 2, 2, END, 50, 2, 2, 2, 2, 2)
    tokens, trained, _ = continuation(rollout)
    assert (tokens[4], trained[4]) == (END, False)
    assert rollout.outcome is Outcome.OK  # the last turn ended by itself


def test_each_turn_has_a_stream_of_its_own() -> None:
    calls: list[tuple[int, int]] = []

    def says(request: Request) -> list[int]:
        calls.append((request.key.sample, request.key.turn))
        return [4, END]

    play(counts, says, samples=2)
    assert calls == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]  # in rounds


@pytest.mark.parametrize(("limits", "turns"), [(Limits(turns=2, tokens=60), 2), (Limits(turns=9, tokens=8), 1)])
def test_limits_cut_an_episode_that_would_go_on(limits: Limits, turns: int) -> None:
    (rollout,), _ = play(counts, lambda request: [4, END], limits=limits)
    assert (len(rollout.turns), rollout.outcome, rollout.stop_reason) == (turns, Outcome.TRUNCATED, StopReason.EPISODE)
    assert rollout.reward == [0.25, 0.75][turns - 1]  # what was earned until then
    assert rollout.context.stop_reason is StopReason.EPISODE


def test_episodes_may_end_at_different_turns() -> None:
    def until_nine(prompt: Prompt):
        reply = yield prompt.messages
        while reply != "8":
            reply = yield user("1")
        return 1.0

    rollouts, _ = play(until_nine, lambda request: [9 if request.key.turn == request.key.sample else 1, END], samples=3)
    assert [len(rollout.turns) for rollout in rollouts] == [1, 2, 3]
    assert [rollout.reward for rollout in rollouts] == [1.0, 1.0, 1.0]
    assert [bool(rollout.messages) for rollout in rollouts] == [False, True, True]
    # The first one's too: whether it is compared with the others must not depend on its being the only turn.
    assert len({rollout.turns[0].state for rollout in rollouts}) == 1
    assert rollouts[0].turns[0].state == digest(rollouts[1].messages[:1])


def test_an_environment_of_one_turn_has_no_states() -> None:
    def opening(prompt: Prompt):
        yield Observation(messages=prompt.messages, state="start")

    (rollout,), _ = play(opening, lambda request: [4, END], limits=Limits(turns=1))
    assert rollout.turns[0].state is None


def broken_at_once(prompt: Prompt):
    raise RuntimeError("no tool")
    yield prompt.messages


def broken_later(prompt: Prompt):
    yield prompt.messages
    raise RuntimeError("no tool")


def says_nonsense(prompt: Prompt):
    yield prompt.messages
    yield 5


def gives_nonsense(prompt: Prompt):
    yield prompt.messages
    return float("nan")


def gives_early(prompt: Prompt):
    yield Observation(messages=prompt.messages, reward=1.0)


def names_objects(prompt: Prompt):
    yield prompt.messages
    yield Observation(messages=prompt.messages, state=object())  # ty: ignore[invalid-argument-type]


def says_nothing(prompt: Prompt):
    return
    yield prompt.messages


def opens_long(prompt: Prompt):
    yield user("1" * 80)


@pytest.mark.parametrize(
    ("episode", "cause"),
    [
        (broken_at_once, "raised RuntimeError: no tool"),
        (broken_later, "raised RuntimeError: no tool"),
        (says_nonsense, r"yielded 5 \(a int\); expected an Observation"),
        (gives_nonsense, r"gave the reward nan .*; expected a finite number"),
        (gives_early, "reward 1.0 with its opening; expected 0"),
        (names_objects, "expected text, a number, or a tuple"),
        (says_nothing, "ended the episode before the model's first turn"),
        (opens_long, r"opening has 81 tokens.*environment\.max_tokens = 60"),
    ],
)
def test_an_environment_that_fails_costs_its_own_rollout(episode: Any, cause: str) -> None:
    (rollout,), _ = play(episode, lambda request: [4, END])
    assert rollout.outcome is Outcome.ENV_ERROR
    assert rollout.reward is None
    with pytest.raises(AssertionError, match=cause):
        raise AssertionError(rollout.error)
    assert rollout.turns[0].prompt_tokens == (50, 8)
    assert rollout.id == "p#0@0"


def test_a_quorum_and_a_second_turn_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"set collect\.oversample = 1"):
        play(counts, lambda request: [4, END], quorum=Quorum(prompts=1))


def test_the_deadline_is_for_all_turns_together() -> None:
    def slow(prompt: Prompt):
        yield prompt.messages
        time.sleep(1.1)
        yield user("1")

    sampling = Sampling(temperature=1.0, max_tokens=4, timeout_s=1.0)
    (rollout,), _ = play(slow, lambda request: [4, END], sampling=sampling)
    assert (len(rollout.turns), rollout.outcome, rollout.stop_reason) == (1, Outcome.TRUNCATED, StopReason.DEADLINE)


def test_retry_says_so_and_discounts() -> None:
    rollouts, _ = play(
        Retry(turns=3), lambda request: [8 if request.key.turn == request.key.sample else 3, END], samples=4
    )
    assert [rollout.reward for rollout in rollouts] == [1.0, 0.5, 0.25, 0.0]
    assert [turn.state for turn in rollouts[2].turns] == ["()", "('2',)", "('2', '2')"]
    assert all(rollout.outcome is Outcome.OK for rollout in rollouts)


def test_retry_needs_a_gold_answer() -> None:
    (rollout,), _ = play(Retry(), lambda request: [3, END], question=prompt(answer=None))
    assert "no gold answer" in (rollout.error or "")


def test_a_running_sum_goes_on_from_what_was_said() -> None:
    """2 + 3 + 1: right; wrong at first and carried on; wrong at last; no number at all."""
    answers = {0: [[6, END], [7, END]], 1: [[5, END], [6, END]], 2: [[6, END], [9, END]], 3: [[END], [END]]}
    question = prompt(text="Add 2 + 3 + 1 =", answer="6")
    rollouts, _ = play(
        RunningSum(), lambda request: answers[request.key.sample][request.key.turn], samples=4, question=question
    )
    assert [rollout.reward for rollout in rollouts] == [1.0, 0.25, 0.25, 0.0]
    assert [turn.state for turn in rollouts[1].turns] == ["(0, 2)", "(1, 4)"]
    assert [message["content"] for message in rollouts[1].messages] == ["Add 2 + 3 =", "4", "4 + 1 =", "5"]
    assert rollouts[3].turns[0].state == "(0, 2)"


def test_terms_are_read_with_their_signs() -> None:
    assert terms_of("What is -4 + 3 - 9 + 2?")[1] == [-4, 3, -9, 2]
    assert terms_of("State it: 12 - 4+ 5 =")[1] == [12, -4, 5]
    with pytest.raises(ValueError, match="no sum of three or more"):
        terms_of("What is 4 + 3?")
    assert [whole_number(text) for text in ("-3", "4 + 3 = 7", "1.5", "", "9" * 20)] == [-3, 7, None, None, None]


def test_settings_out_of_bounds_are_refused() -> None:
    for wrong in (lambda: Retry(turns=0), lambda: Retry(discount=0.0), lambda: RunningSum(share=2.0)):
        with pytest.raises(ConfigError, match=r"environment\.params has"):
            wrong()


def test_a_function_must_be_a_generator_and_take_its_params() -> None:
    with pytest.raises(ConfigError, match="no generator function"):
        FunctionEnvironment(name="a:b", function=lambda prompt: iter(()))  # ty: ignore[invalid-argument-type]

    def mine(prompt: Prompt, most: int, *, least: int = 0):
        yield prompt.messages

    with pytest.raises(ConfigError, match="holds 'lest'; expected of most, least; did you mean 'least'"):
        FunctionEnvironment(name="a:b", function=mine, params={"lest": 1})
    with pytest.raises(ConfigError, match="missing a required argument: 'most'"):
        FunctionEnvironment(name="a:b", function=mine)
    episode = FunctionEnvironment(name="a:b", function=mine, params={"most": 1}).episode(prompt())
    assert isinstance(episode, Generator)
    assert next(episode) == user("7")


def test_states_are_text_that_is_the_same_tomorrow() -> None:
    assert state_key(((1, "a"), 2.5)) == "((1, 'a'), 2.5)"
    with pytest.raises(EpisodeError, match="expected text, a number"):
        state_key([1])
    with pytest.raises(EpisodeError, match="one or more of the form"):
        check_observation(())
