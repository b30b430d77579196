"""Episodes that never wait for each other: equal tokens whatever environments take; faults cost their own."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_episodes import END, Digits, counts, user

from coterie.engines.base import Engine, Request, Sampling
from coterie.engines.embedded import EmbeddedEngine
from coterie.engines.scripted import ScriptedEngine
from coterie.envs.base import Limits, Observation
from coterie.envs.registry import FunctionEnvironment
from coterie.errors import EngineError
from coterie.policy.kv import DecodeLayout
from coterie.policy.model import Policy
from coterie.rollout.episodes import Attempt, Episodes
from coterie.types import Message, Prompt, SampleKey, StopReason, Turn
from tiny_models import tiny_policy

SAMPLING = Sampling(temperature=1.0, max_tokens=9)
LIMITS = Limits(turns=3, tokens=200)


class Codec:
    stop_ids = frozenset(range(0, 16))

    def decode(self, ids: Sequence[int]) -> str:
        return ""


class Words:
    """Messages are numbers; a turn's text is its tokens."""

    def render(self, messages: Sequence[Message]) -> list[int]:
        return [int(word) for message in messages for word in message["content"].split()]

    def render_continuation(
        self, messages: Sequence[Message], turn_ids: Sequence[int], *, stop: Sequence[str] = ()
    ) -> list[int]:
        return [90, *self.render(messages), 91]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


class Recorded(EmbeddedEngine):
    """Keeps what was open in each pass."""

    def __init__(self, policy: Policy, **settings: Any) -> None:
        settings = {"max_num_seqs": 5, **settings}
        super().__init__(policy, Codec(), **settings)
        self.passes: list[list[tuple[str, int, int]]] = []

    def step(self) -> list[tuple[int, Turn]]:
        open_keys = [sequence.request.key for sequence in self._open.values()]
        self.passes.append([(key.prompt, key.sample, key.turn) for key in open_keys])
        return super().step()


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy("llama", dtype=torch.float64)


PROMPTS = [Prompt(id=f"p{k}", messages=user(f"33 12 8 {20 + k} {30 + k}"), answer=None, task="t") for k in range(3)]
PAIRS = [(prompt, sample) for prompt in PROMPTS for sample in range(3)]


def talk(prompt: Prompt, pause: Callable[[], float] = lambda: 0.0):
    """Repeats half of the reply, after a pause."""
    reply = yield prompt.messages
    for _ in range(2):
        time.sleep(pause())
        words = reply.split()
        reply = yield Observation(messages=user(" ".join(words[::2])), reward=0.5)
    return 1.0


def play(
    engine: Engine, function: Any, limits: Limits = LIMITS, pairs: Any = PAIRS, chat: Any = None, **params: Any
) -> tuple[list[Attempt], Episodes]:
    environment = FunctionEnvironment(name="a:b", function=function, params=params)
    episodes = Episodes(engine, environment, chat or Words(), seed=3, limits=limits)
    return episodes.run(pairs, SAMPLING), episodes


def facts(attempts: Sequence[Attempt]) -> list[tuple[Any, ...]]:
    return [
        (attempt.error, [(turn.prompt_tokens, turn.tokens, turn.reward) for turn in attempt.turns])
        for attempt in attempts
    ]


@pytest.fixture(scope="module")
def in_rounds(policy: Policy) -> list[list[tuple[tuple[int, ...], tuple[int, ...]]]]:
    """Reference: all next turns in one call, each conversation read anew."""
    engine, chat = EmbeddedEngine(policy, Codec(), max_num_seqs=5), Words()
    tokens = [tuple(chat.render(prompt.messages)) for prompt, _ in PAIRS]
    turns: list[list[tuple[tuple[int, ...], tuple[int, ...]]]] = [[] for _ in PAIRS]
    for number in range(3):
        keys = [SampleKey(seed=3, version=0, prompt=p.id, sample=s, turn=number) for p, s in PAIRS]
        requests = [Request(key=key, prompt_tokens=row) for key, row in zip(keys, tokens, strict=True)]
        for index, turn in enumerate(engine.generate(requests, SAMPLING)):
            turns[index].append((turn.prompt_tokens, turn.tokens))
            words = " ".join(map(str, turn.tokens)).split()
            between = chat.render_continuation(user(" ".join(words[::2])), turn.tokens)
            tokens[index] = (*turn.prompt_tokens, *turn.tokens, *between)
    return turns


@pytest.mark.parametrize(("delay", "kept"), [(1, 0), (4, 0), (4, 40), (1, 1)])
def test_turns_are_those_of_rounds_that_read_everything_anew(
    policy: Policy, in_rounds: Any, delay: int, kept: int
) -> None:
    """With the keys and values of all conversations kept between turns, of some, and of none."""
    engine = Recorded(policy, max_kept_tokens=kept)
    attempts, _ = play(engine, talk, replace(LIMITS, delay=delay))
    assert [[(turn.prompt_tokens, turn.tokens) for turn in attempt.turns] for attempt in attempts] == in_rounds
    assert engine.unfinished == 0
    engine.commit(1)


@pytest.mark.parametrize(("delay", "kept"), [(1, 0), (4, 40)])
def test_drafts_change_no_token(policy: Policy, delay: int, kept: int) -> None:
    """At a temperature at which rollouts repeat each other."""
    tokens = []
    for draft in (False, True):
        engine = EmbeddedEngine(policy, Codec(), max_num_seqs=5, max_kept_tokens=kept, draft=draft)
        environment = FunctionEnvironment(name="a:b", function=talk)
        episodes = Episodes(engine, environment, Words(), seed=3, limits=replace(LIMITS, delay=delay))
        attempts = episodes.run(
            [(prompt, sample) for prompt in PROMPTS for sample in range(8)], replace(SAMPLING, temperature=0.05)
        )
        tokens.append([[turn.tokens for turn in attempt.turns] for attempt in attempts])
    assert tokens[0] == tokens[1]
    assert engine.drafts is not None
    assert engine.drafts.accepted > 5


@pytest.mark.parametrize("seed", [1, 2])
def test_what_environments_take_changes_no_token_and_no_pass(policy: Policy, seed: int) -> None:
    """Random pauses in threads; which turns are open in which pass is the same."""
    limits, clock = replace(LIMITS, delay=3), random.Random(seed)
    calm, slow = Recorded(policy), Recorded(policy)
    still, _ = play(calm, talk, limits)
    paused, episodes = play(slow, talk, limits, pause=lambda: clock.random() * 0.03)
    assert facts(paused) == facts(still)
    assert slow.passes == calm.passes
    assert any(len({turn for *_, turn in open_keys}) > 1 for open_keys in calm.passes), "turns overlap"
    assert episodes.busy_seconds > episodes.waited_seconds > 0


def test_no_token_is_computed_twice(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass a token: the prompts once a group behind their shared head, then what is new."""
    computed: list[int] = []
    inner = Policy.hidden

    def hidden(self: Policy, tokens: torch.Tensor, positions: torch.Tensor, layout: Any) -> torch.Tensor:
        real = layout.real if isinstance(layout, DecodeLayout) else None
        computed.append(tokens.numel() if real is None else int(real.sum()))
        return inner(self, tokens, positions, layout)

    monkeypatch.setattr(Policy, "hidden", hidden)
    attempts, _ = play(Recorded(policy, max_num_seqs=9), talk)
    last = [attempt.turns[-1] for attempt in attempts]
    tokens = sum(len(turn.prompt_tokens) + len(turn.tokens) - 1 for turn in last)  # nobody reads a turn's last token
    assert sum(computed) == tokens - (len(attempts) - len(PROMPTS)) * 5 - (len(PROMPTS) - 1) * 3


def test_more_episodes_than_rows(policy: Policy) -> None:
    few, many = Recorded(policy, max_num_seqs=2), Recorded(policy, max_num_seqs=9)
    assert facts(play(few, talk)[0]) == facts(play(many, talk)[0])


def scripted() -> ScriptedEngine:
    return ScriptedEngine(lambda request: [request.key.turn + 4, END], vocabulary=100)


def played(function: Any, limits: Limits | None = None, samples: int = 1, **params: Any) -> list[Attempt]:
    question = Prompt(id="p", messages=user("7"), answer="7", task="t")
    pairs = [(question, sample) for sample in range(samples)]
    return play(scripted(), function, limits or Limits(turns=4, tokens=60), pairs, Digits(), **params)[0]


async def counts_async(prompt: Prompt):
    """`test_episodes.counts` as an async generator."""
    reply = yield prompt.messages
    await asyncio.sleep(0.001)
    reply = yield Observation(messages=user(f"1{reply}"), state=("second", reply), reward=0.25)
    yield Observation(messages=user("2"), reward=0.5)
    yield 0.125


def test_an_async_environment_is_one_like_any_other() -> None:
    assert facts(played(counts_async)) == facts(played(counts))


def test_async_environments_answer_side_by_side() -> None:
    at_once, most = 0, 0

    async def slow(prompt: Prompt):
        nonlocal at_once, most
        yield prompt.messages
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.05)
        at_once -= 1

    played(slow, samples=20)
    assert most == 20


def test_threads_are_as_many_as_set() -> None:
    lock, at_once, most = threading.Lock(), 0, 0

    def slow(prompt: Prompt):
        nonlocal at_once, most
        yield prompt.messages
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.02)
        with lock:
            at_once -= 1

    played(slow, Limits(turns=2, tokens=60, workers=3), samples=9)
    assert most == 3


def hangs(prompt: Prompt, released: threading.Event):
    yield prompt.messages
    released.wait(20)
    yield user("1")


async def hangs_async(prompt: Prompt, cancelled: list[str]):
    yield prompt.messages
    try:
        await asyncio.sleep(20)
    except asyncio.CancelledError:
        cancelled.append(prompt.id)
        raise


def test_an_environment_that_hangs_misses_its_deadline_alone() -> None:
    """More of them than threads: those behind them are answered all the same."""
    released, late = threading.Event(), []

    def some_hang(prompt: Prompt):
        reply = yield prompt.messages
        if reply == "3" and len(late) < 3:
            late.append(reply)
            released.wait(20)
        return 1.0

    attempts = played(some_hang, Limits(turns=2, tokens=60, timeout_s=0.2, workers=2), samples=6)
    errors = [attempt.error for attempt in attempts if attempt.error]
    assert errors == ["the environment has not answered within environment.timeout_s = 0.2 s"] * 3
    assert sum(turn.reward for attempt in attempts for turn in attempt.turns) == 3.0
    released.set()  # they answer now: nobody listens
    assert [attempt.error for attempt in attempts if attempt.error] == errors


def test_what_an_environment_answers_after_its_episode_was_aborted_counts_for_nothing(policy: Policy) -> None:
    """The deadline of sampling comes while the environment works, which then answers with a reward."""
    answered, released = threading.Event(), threading.Event()

    def late(prompt: Prompt):
        yield prompt.messages
        released.wait(20)
        answered.set()
        return 1.0

    engine = Recorded(policy)
    episodes = Episodes(
        engine, FunctionEnvironment(name="a:b", function=late), Words(), seed=3, limits=replace(LIMITS, delay=4)
    )
    (attempt,) = episodes.run(PAIRS[:1], replace(SAMPLING, timeout_s=0.3))
    released.set()
    assert answered.wait(10)
    assert (attempt.turns[-1].stop_reason, attempt.turns[-1].reward) == (StopReason.DEADLINE, 0.0)
    assert engine.unfinished == 0
    assert facts(play(engine, talk)[0]) == facts(play(Recorded(policy), talk)[0]), (
        "the next episodes know nothing of it"
    )


def test_an_async_environment_that_hangs_is_cancelled() -> None:
    cancelled: list[str] = []
    (attempt,) = played(hangs_async, Limits(turns=2, tokens=60, timeout_s=0.1), cancelled=cancelled)
    assert attempt.error == "the environment has not answered within environment.timeout_s = 0.1 s"
    for _ in range(100):
        time.sleep(0.01 if not cancelled else 0)
    assert cancelled == ["p"]


def raises_later(prompt: Prompt):
    yield prompt.messages
    raise OSError("the tool's process has died")


async def raises_async(prompt: Prompt):
    yield prompt.messages
    raise OSError("the tool's process has died")


def exits(prompt: Prompt):
    yield prompt.messages
    raise SystemExit(3)


async def nonsense_async(prompt: Prompt):
    yield prompt.messages
    yield "text"


async def ends_at_once(prompt: Prompt):
    return
    yield prompt.messages


@pytest.mark.parametrize(
    ("function", "cause"),
    [
        (raises_later, "the environment raised OSError: the tool's process has died"),
        (raises_async, "the environment raised OSError: the tool's process has died"),
        (exits, "the environment raised RuntimeError: SystemExit: 3"),
        (nonsense_async, "the environment yielded 'text' (a str); expected an Observation"),
        (ends_at_once, "the environment ended the episode before the model's first turn"),
    ],
)
def test_faults_are_named_and_nothing_is_scored(function: Any, cause: str) -> None:
    (attempt,) = played(function)
    assert attempt.error is not None
    assert attempt.error.startswith(cause)
    assert not attempt.open


def test_an_episode_that_is_cut_closes_its_environment() -> None:
    closed = threading.Event()

    def endless(prompt: Prompt):
        try:
            while True:
                yield prompt.messages
        finally:
            closed.set()

    (attempt,) = played(endless, Limits(turns=2, tokens=60))
    assert attempt.turns[-1].stop_reason is StopReason.EPISODE
    assert closed.wait(5)


def test_a_conversation_that_outgrows_its_limit_is_cut(policy: Policy) -> None:
    attempts, _ = play(Recorded(policy), talk, Limits(turns=3, tokens=22))
    assert {attempt.turns[-1].stop_reason for attempt in attempts} >= {StopReason.EPISODE}
    assert all(attempt.error is None for attempt in attempts)


def test_a_conversation_that_outgrows_the_context_is_named(policy: Policy) -> None:
    def grows(prompt: Prompt):
        yield prompt.messages
        yield user("20 " * 250)

    engine = Recorded(policy)
    with pytest.raises(EngineError, match=r"more than the model's context of 256"):
        play(engine, grows, Limits(turns=3))
    assert engine.unfinished == 0


def test_ctrl_c_while_tools_work_leaves_nothing(policy: Policy) -> None:
    released, reports = threading.Event(), []

    def progress(done: int, total: int) -> None:
        reports.append((done, total))
        if len(reports) > 12:
            raise KeyboardInterrupt

    engine = Recorded(policy)
    environment = FunctionEnvironment(name="a:b", function=hangs, params={"released": released})
    episodes = Episodes(engine, environment, Words(), seed=3, limits=LIMITS)
    with pytest.raises(KeyboardInterrupt):
        episodes.run(PAIRS, replace(SAMPLING, progress=progress))
    released.set()
    assert engine.unfinished == 0
    assert not engine._cache.resting
    engine.commit(1)


def test_after_ctrl_c_no_environment_begins_to_answer(policy: Policy) -> None:
    released, begun = threading.Event(), []

    def slow(prompt: Prompt):
        yield prompt.messages
        begun.append(prompt.id)
        released.wait(20)

    def progress(done: int, total: int) -> None:
        if begun:
            raise KeyboardInterrupt

    environment = FunctionEnvironment(name="a:b", function=slow)
    episodes = Episodes(Recorded(policy), environment, Words(), seed=3, limits=replace(LIMITS, delay=99, workers=1))
    with pytest.raises(KeyboardInterrupt):
        episodes.run(PAIRS, replace(SAMPLING, progress=progress))
    released.set()
    time.sleep(0.05)
    assert len(begun) == 1


def test_a_commit_in_the_middle_of_episodes_is_named(policy: Policy) -> None:
    engine = Recorded(policy)

    def commits(prompt: Prompt):
        yield prompt.messages
        engine._version = 5
        yield user("20")

    with pytest.raises(EngineError, match=r"policy version \d"):
        play(engine, commits, pairs=PAIRS[:1])
    assert engine.unfinished == 0
