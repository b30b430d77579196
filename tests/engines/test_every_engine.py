"""The contract that every engine keeps. A new engine is a row of `ENGINES`."""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch

from cluster_hosts import VLLM, VOCABULARY, ThreadHost, process_host, script, vllm_pool
from coterie.cluster.engine_pool import EnginePool, ServiceOrder
from coterie.cluster.hosts import Host
from coterie.engines.base import Call, Engine, Quorum, Request, Sampling
from coterie.engines.completion_client import CompletionClient
from coterie.engines.embedded import EmbeddedEngine
from coterie.engines.http_engine import HttpEngine
from coterie.engines.scripted import ScriptedEngine
from coterie.errors import EngineError
from coterie.policy.model import Policy
from coterie.types import SampleKey, StopReason, Turn
from engines_for_tests import Codec
from served_models import client
from tiny_models import tiny_model, tiny_policy

SLOTS = 4
PROMPTS = [(5, 9, 4), (11, 3, 8, 40, 7, 21, 60), (70,), (5, 9, 4, 12)]
SAMPLING = Sampling(temperature=0.9, max_tokens=12)


def _embedded(kind: str, *, draft: bool = False) -> Engine:
    return EmbeddedEngine(_policy(kind), Codec(), max_num_seqs=SLOTS, draft=draft)


def _caching() -> Engine:
    """What it computes of a prompt depends on what it kept."""
    return EmbeddedEngine(_policy("packed"), Codec(), max_num_seqs=SLOTS, max_kept_tokens=500, prefix_caching=True)


_POLICIES: dict[str, Policy] = {}


def _policy(kind: str) -> Policy:
    """A tiny policy in float64, made once; a plain one is forced to the path of a model with recurrent layers."""
    if kind not in _POLICIES:
        policy = tiny_policy("llama", dtype=torch.float64)
        if kind == "plain":
            policy.path = replace(policy.path, kind="plain", attention="sdpa")
            policy.runner.path = policy.path
            policy.model.set_attn_implementation("sdpa")
        _POLICIES[kind] = policy
    return _POLICIES[kind]


def _scripted() -> Engine:
    return ScriptedEngine(script, vocabulary=VOCABULARY)


def _services(host: Host, target: str, replicas: int) -> Engine:
    """A pool, whose services end with the test."""
    policy = _policy("packed")
    order = ServiceOrder(target=f"cluster_hosts:{target}", arguments={})
    pool = EnginePool(host, order, policy.parameters, vocabulary=VOCABULARY, context=policy.context, replicas=replicas)
    SERVERS.callback(pool.close)
    return pool


@dataclass(frozen=True)
class Row:
    """An engine of 97 tokens or more and a context of 200 or more, which serves version 0."""

    make: Callable[[], Engine]
    exact: bool = True
    """A turn's tokens are a function of its key and its prompt, whatever else is open."""
    computes: bool = True
    """It has a model."""
    entropies: bool = True
    """It tells those of its distributions."""
    repeats: bool = True
    """The same calls give the same log-probs to the last bit. A server's passes depend on when requests reach it."""


SERVERS = ExitStack()
"""Servers of the test that runs."""


@pytest.fixture(autouse=True)
def _servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("COTERIE_API_KEY", "key")
    monkeypatch.setenv("PYTHONPATH", "")
    with SERVERS:
        yield


def _http() -> Engine:
    """From a server of its own in threads of this process, which begins with other weights than the policy's."""
    folder = Path(SERVERS.enter_context(TemporaryDirectory()))
    policy = tiny_policy("llama", dtype=torch.float64, seed=1)
    engine = EmbeddedEngine(policy, Codec(), max_num_seqs=SLOTS)
    served = SERVERS.enter_context(
        client(engine, Codec(), api_key="key", max_model_len=policy.context, weights=(folder, policy))
    )
    completions = CompletionClient(base_url=f"http://127.0.0.1:{served.port}/v1", retry_s=5.0)
    return HttpEngine(_policy("packed"), completions, max_num_seqs=SLOTS, weights_folder=folder)


def _vllm() -> Engine:
    """The service of the whole module, which starts for a minute; nothing is open in it when it is asked for."""
    if not SHARED:
        SHARED.append(vllm_pool()[0])
        atexit.register(SHARED[0].close)
    for request in list(SHARED[0]._open):
        SHARED[0].abort(request)
    SHARED[0].commit(0)
    return SHARED[0]


SHARED: list[EnginePool] = []
ENGINES = {
    "scripted": Row(_scripted, computes=False),
    "embedded-packed": Row(lambda: _embedded("packed")),
    "embedded-plain": Row(lambda: _embedded("plain")),
    "embedded-drafts": Row(lambda: _embedded("packed", draft=True)),
    "embedded-plain-drafts": Row(lambda: _embedded("plain", draft=True)),
    "embedded-prefixes": Row(_caching, repeats=False),
    "http": Row(_http, repeats=False, entropies=False),
    "services": Row(lambda: _services(ThreadHost(), "computed", 2)),
    "process": Row(lambda: _services(process_host(), "recited", 1), exact=False, computes=False),
    **({"vllm": Row(_vllm, exact=False, repeats=False, entropies=False)} if VLLM else {}),
}


@pytest.fixture(params=ENGINES.values(), ids=list(ENGINES))
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


@pytest.fixture
def engine(row: Row) -> Engine:
    return row.make()


def asked(prompt: Sequence[int] = PROMPTS[0], sample: int = 0, **key: Any) -> Request:
    facts: dict[str, Any] = {"seed": 7, "version": 0, "prompt": str(list(prompt)), "sample": sample} | key
    return Request(key=SampleKey(**facts), prompt_tokens=tuple(prompt))


def crowd(samples: int = 3) -> list[Request]:
    return [asked(prompt, sample) for prompt in PROMPTS for sample in range(samples)]


def run(engine: Engine, ids: Sequence[int]) -> dict[int, Turn]:
    """Step until nothing is open."""
    turns: dict[int, Turn] = {}
    while engine.unfinished:
        for number, turn in engine.step():
            assert number in ids
            assert number not in turns, "each turn comes once"
            turns[number] = turn
    return turns


def test_every_request_gets_its_turn(engine: Engine) -> None:
    """More requests than rows; `generate` checks each answer against the contract."""
    requests = crowd()
    turns = engine.generate(requests, SAMPLING)
    assert [turn.prompt_tokens for turn in turns] == [request.prompt_tokens for request in requests]
    assert {turn.stop_reason for turn in turns} <= {StopReason.STOP, StopReason.LENGTH}
    assert len({turn.tokens for turn in turns}) > 6
    assert engine.unfinished == 0
    assert engine.step() == []
    assert engine.generate([], SAMPLING) == []


def test_ids_name_turns(engine: Engine) -> None:
    ids = [engine.submit(request, SAMPLING) for request in crowd(1)]
    assert len(set(ids)) == len(ids) == engine.unfinished
    turns = run(engine, ids)
    assert [turns[number].prompt_tokens for number in ids] == list(PROMPTS)


def test_requests_join_while_others_are_decoded(row: Row) -> None:
    engine, requests = row.make(), crowd(2)
    ids = [engine.submit(requests[0], SAMPLING)]
    turns: dict[int, Turn] = {}
    for request in requests[1:]:
        turns.update(engine.step())
        ids.append(engine.submit(request, SAMPLING))
    turns |= run(engine, ids)
    together = [turns[number] for number in ids]
    assert [turn.prompt_tokens for turn in together] == [request.prompt_tokens for request in requests]
    if row.exact:
        alone = [row.make().generate([request], SAMPLING)[0] for request in requests]
        assert [turn.tokens for turn in together] == [turn.tokens for turn in alone]


def test_requests_may_have_settings_of_their_own(row: Row) -> None:
    settings = [replace(SAMPLING, max_tokens=3), replace(SAMPLING, temperature=1.7), replace(SAMPLING, top_k=1)]
    engine, requests = row.make(), crowd(1)
    pairs = [(request, sampling) for request in requests for sampling in settings]
    ids = [engine.submit(*pair) for pair in pairs]
    turns = run(engine, ids)
    for number, (request, sampling) in zip(ids, pairs, strict=True):
        assert len(turns[number].tokens) <= sampling.max_tokens
        assert turns[number].temperature == sampling.temperature
        if row.exact:
            assert turns[number].tokens == row.make().generate([request], sampling)[0].tokens


def longest(row: Row) -> Request:
    """A request whose answer takes some passes."""
    requests = [asked(PROMPTS[1], sample) for sample in range(12)]
    turns = row.make().generate(requests, SAMPLING)
    return max(zip(requests, turns, strict=True), key=lambda pair: len(pair[1].tokens))[0]


def test_what_is_aborted_keeps_what_was_said(row: Row) -> None:
    request = longest(row)
    whole = row.make().generate([request], SAMPLING)[0]
    engine = row.make()
    others = [engine.submit(asked(PROMPTS[1], 50 + sample), SAMPLING) for sample in range(2)]
    number = engine.submit(request, SAMPLING)
    early: dict[int, Turn] = {}
    for _ in range(3):
        early.update(engine.step())
    turn = engine.abort(number, StopReason.DEADLINE)
    assert turn is not None
    assert turn.stop_reason is StopReason.DEADLINE
    assert 0 < len(turn.tokens) < len(whole.tokens)
    assert len(turn.sampler_logprobs) == len(turn.tokens)
    if row.exact:
        assert whole.tokens[: len(turn.tokens)] == turn.tokens
    assert engine.abort(number) is None, "it has ended"
    left = early | run(engine, others)
    assert set(left) == set(others)
    if row.exact:
        alone = row.make().generate([asked(PROMPTS[1], 50 + sample) for sample in range(2)], SAMPLING)
        assert [left[other].tokens for other in others] == [turn.tokens for turn in alone]


def test_what_has_come_so_far_can_be_read(row: Row) -> None:
    """For streaming; an engine that gives whole turns says None."""
    request, engine = longest(row), row.make()
    number = engine.submit(request, SAMPLING)
    tokens: list[int] = []
    logprobs: list[float] = []
    for _ in range(2):
        engine.step()
        new = engine.sampled(number, len(tokens))
        if new is None:
            pytest.skip("turns come whole")
        tokens += new[0]
        logprobs += new[1]
    turn = run(engine, [number])[number]
    assert 2 <= len(tokens) < len(turn.tokens)
    assert (turn.tokens[: len(tokens)], turn.sampler_logprobs[: len(logprobs)]) == (tuple(tokens), tuple(logprobs))


def test_temperature_0_takes_the_likeliest(row: Row) -> None:
    requests, greedy = crowd(2), replace(SAMPLING, temperature=0.0)
    turns = row.make().generate(requests, greedy)
    if row.exact and row.computes:
        assert [turn.tokens for turn in turns[::2]] == [turn.tokens for turn in turns[1::2]], "whatever the stream"
        likeliest = row.make().generate(requests, replace(SAMPLING, top_k=1, temperature=1.0))
        assert [turn.tokens for turn in turns] == [turn.tokens for turn in likeliest]
        assert min(turn.sampler_logprobs[0] for turn in turns) < -0.01


@cache
def _model() -> torch.nn.Module:
    return tiny_model("llama", dtype=torch.float64)


def entropies_by_hand(turn: Turn, sampling: Sampling) -> list[float]:
    """Of the distributions that the turn's tokens were sampled from, recomputed in float64."""
    entropies = []
    with torch.no_grad():
        logits = _model()(torch.tensor([turn.prompt_tokens + turn.tokens]), use_cache=False).logits[0].numpy()
    for row in logits[len(turn.prompt_tokens) - 1 : -1]:
        shares = np.sort(np.exp(row / (sampling.temperature or 1.0)))[::-1]
        shares = shares / shares.sum()
        if sampling.temperature and sampling.top_k:
            shares = shares[: sampling.top_k] / shares[: sampling.top_k].sum()
        if sampling.temperature:
            shares = shares[np.cumsum(shares) - shares < sampling.top_p]
            shares = shares / shares.sum()
        entropies.append(float(-(shares * np.log(shares)).sum()))
    return entropies


def test_entropies_are_those_of_the_distributions_sampled_from(row: Row) -> None:
    """Several settings beside each other, and conversations that go on from what was kept."""
    changes: list[dict[str, Any]] = [{}, {"top_k": 5}, {"top_p": 0.7, "temperature": 1.5}, {"temperature": 0.0}]
    engine, settings = row.make(), [replace(SAMPLING, **change) for change in changes]
    asks = [
        (replace(request, may_continue=True), sampling)
        for sampling in settings
        for request in crowd(2 if sampling.temperature else 6)
    ]
    for number in range(2):
        ids = [engine.submit(*ask) for ask in asks]
        turns = run(engine, ids)
        following = []
        for request_id, (request, sampling) in zip(ids, asks, strict=True):
            turn = turns[request_id]
            if not (row.computes and row.entropies):
                assert turn.sampler_entropies is None, "it cannot tell"
                continue
            assert turn.sampler_entropies == pytest.approx(entropies_by_hand(turn, sampling), abs=1e-9)
            prompt = (*turn.prompt_tokens, *turn.tokens, 33)
            following.append(
                (replace(request, key=replace(request.key, turn=number + 1), prompt_tokens=prompt), sampling)
            )
        asks = following
    if isinstance(engine, EmbeddedEngine) and engine.drafts is not None:
        assert engine.drafts.accepted > 10
    for request_id in ids:
        engine.abort(request_id)


def test_what_has_not_begun_ends_without_tokens(engine: Engine) -> None:
    ids = [engine.submit(request, SAMPLING) for request in crowd()]
    turn = engine.abort(ids[-1])
    assert turn is not None
    assert (turn.tokens, turn.stop_reason) == ((), StopReason.ABANDONED)
    assert len(run(engine, ids)) == len(ids) - 1
    assert engine.abort(ids[0]) is None
    assert engine.abort(10**9) is None


def test_a_version_is_served_after_its_commit(engine: Engine) -> None:
    engine.commit(3)
    assert engine.version == 3
    with pytest.raises(EngineError, match="asked for policy version 0, but the engine serves 3"):
        engine.submit(asked(), SAMPLING)
    assert engine.unfinished == 0
    assert engine.generate([asked(version=3)], SAMPLING)[0].version == 3


def test_no_version_comes_between_the_tokens_of_a_turn(engine: Engine) -> None:
    number = engine.submit(asked(), SAMPLING)
    with pytest.raises(EngineError, match="1 requests are open; end or abort them before policy version 1"):
        engine.commit(1)
    engine.abort(number)
    engine.commit(1)
    assert engine.version == 1


def test_a_quorum_leaves_the_longest(row: Row) -> None:
    requests = crowd(2)
    turns = row.make().generate(requests, SAMPLING, Quorum(prompts=2))
    left = {r.key.prompt for r, t in zip(requests, turns, strict=True) if t.stop_reason is StopReason.ABANDONED}
    assert len(left) <= 2
    required = requests[2].key.prompt
    turns = row.make().generate(requests, SAMPLING, Quorum(prompts=1, required=frozenset({required})))
    assert all(turn.stop_reason is not StopReason.ABANDONED for turn in turns[2:4])


def test_the_deadline_ends_all(engine: Engine) -> None:
    turns = engine.generate(crowd(), replace(SAMPLING, timeout_s=1e-9))
    assert {turn.stop_reason for turn in turns} == {StopReason.DEADLINE}
    assert engine.unfinished == 0


def test_progress_is_told_and_may_end_a_call(engine: Engine) -> None:
    reports: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        reports.append((done, total))
        if done > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(crowd(), replace(SAMPLING, progress=progress))
    assert reports[0] == (0, 12)
    assert engine.unfinished == 0, "nothing stays behind"
    assert len(engine.generate(crowd(), SAMPLING)) == 12


def test_a_request_that_is_refused_takes_the_others_with_it(engine: Engine) -> None:
    with pytest.raises(EngineError, match="version 5"):
        engine.generate([*crowd(1), asked(version=5)], SAMPLING)
    assert engine.unfinished == 0


def test_a_conversation_goes_on_from_its_tokens(row: Row) -> None:
    """Three turns beside others that are decoded; what the engine kept says what it would say without."""
    engine = row.make()
    background = [engine.submit(request, replace(SAMPLING, max_tokens=40)) for request in crowd(1)]
    first = replace(longest(row), may_continue=True)
    request = first
    for turn_number in range(3):
        number = engine.submit(request, SAMPLING)
        turns: dict[int, Turn] = {}
        while number not in turns:
            turns.update(engine.step())
        turn = turns[number]
        if row.exact:
            assert turn.tokens == row.make().generate([request], SAMPLING)[0].tokens
        prompt = (*turn.prompt_tokens, *turn.tokens, 33, 12, 8 + turn_number)
        key = replace(request.key, turn=turn_number + 1)
        request = Request(key=key, prompt_tokens=prompt, may_continue=True)
    engine.abort(number)  # there is no fourth
    for other in background:
        engine.abort(other)
    assert engine.unfinished == 0
    engine.commit(1)


def test_it_can_be_closed_twice_and_used_again(row: Row) -> None:
    engine = row.make()
    before = engine.generate(crowd(1), SAMPLING)
    engine.close()
    engine.close()
    after = engine.generate(crowd(1), SAMPLING)
    assert [turn.tokens for turn in after] == [turn.tokens for turn in before]
    for turn, other in zip(after, before, strict=True):
        tolerance = 0.0 if row.repeats else 1e-12
        assert turn.sampler_logprobs == pytest.approx(other.sampler_logprobs, rel=tolerance, abs=0)


class Broken(ScriptedEngine):
    """Answers of a step with something changed."""

    def __init__(self, change: Callable[[list[tuple[int, Any]]], Any]) -> None:
        super().__init__(lambda request: [5, 6], vocabulary=97)
        self.change = change

    def step(self) -> Any:
        ended = super().step()
        return self.change(ended) if ended else ended


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ended: None, r"answered with None, expected a list of \(id, turn\)"),
        (lambda ended: "500 Internal Server Error", "answered with '500 Internal"),
        (lambda ended: [turn for _, turn in ended], r"expected a list of \(id, turn\)"),
        (lambda ended: ended[:-1], "answered 2 of 3 requests"),
        (lambda ended: [*ended, ended[0]], "answered request 1, which is not open"),
        (lambda ended: [(99, ended[0][1])], "answered request 99, which is not open"),
        (lambda ended: [(ended[0][0], None)], "sample 0, is None, expected a turn"),
        (lambda ended: [(1, ended[1][1]), (2, ended[0][1])], "belongs to another prompt"),
        (lambda ended: [(k, replace(turn, version=1)) for k, turn in ended], "policy version 1, expected 0"),
    ],
)
def test_a_broken_engine_is_named(change: Callable[[list[tuple[int, Any]]], Any], message: str) -> None:
    engine = Broken(change)
    with pytest.raises(EngineError, match=message):
        engine.generate([asked(prompt) for prompt in PROMPTS[:3]], SAMPLING)
    assert engine.unfinished == 0


def test_an_engine_that_says_nothing_is_ended_by_the_deadline() -> None:
    class Silent(ScriptedEngine):
        def step(self) -> list[tuple[int, Turn]]:
            time.sleep(0.001)
            return []

    engine = Silent(lambda request: [5])
    (turn,) = engine.generate([asked()], replace(SAMPLING, timeout_s=0.01))
    assert turn.stop_reason is StopReason.DEADLINE
    with Call(engine, SAMPLING) as call:
        call.submit(asked())
    assert engine.unfinished == 0
