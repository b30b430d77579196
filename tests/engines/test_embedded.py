"""The embedded engine against the model itself: what is sampled never depends on what else is in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.engines.base import Request, Sampling
from coterie.engines.embedded import EmbeddedEngine
from coterie.errors import EngineError
from coterie.policy.kv import KVPool
from coterie.policy.model import Policy
from coterie.rng import uniforms
from coterie.types import SampleKey, StopReason, Turn
from tiny_models import KINDS, tiny_model, tiny_policy


class Codec:
    """Token k is the letter k of a made-up alphabet."""

    def __init__(self, stop_ids: Sequence[int] = (2,)) -> None:
        self.stop_ids = frozenset(stop_ids)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(0x100 + token) for token in ids)


def request(prompt: Sequence[int], sample: int = 0, *, name: str = "", version: int = 0, seed: int = 7) -> Request:
    key = SampleKey(seed=seed, version=version, prompt=name or str(list(prompt)), sample=sample)
    return Request(key=key, prompt_tokens=tuple(prompt))


def engine(policy: Policy, *, slots: int = 64, stop_ids: Sequence[int] = (2,)) -> EmbeddedEngine:
    return EmbeddedEngine(policy, Codec(stop_ids), max_num_seqs=slots)


def by_hand(
    model: torch.nn.Module, request: Request, sampling: Sampling, stop_ids: frozenset[int]
) -> tuple[list[int], list[float]]:
    """Inverse CDF on full recomputation, one token at a time."""
    tokens: list[int] = []
    logprobs: list[float] = []
    for draw in uniforms(request.key, sampling.max_tokens):
        ids = torch.tensor([[*request.prompt_tokens, *tokens]])
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0, -1].double() / sampling.temperature
        probabilities = torch.softmax(logits, -1)
        token = int((probabilities.cumsum(-1) <= draw).sum())
        tokens.append(token)
        logprobs.append(float(torch.log_softmax(logits, -1)[token]))
        if token in stop_ids:
            break
    return tokens, logprobs


PROMPTS = [[5, 9, 4], [11, 3, 8, 40, 7, 21, 60, 2, 9], [70], [5, 9, 4, 12, 33]]


@pytest.mark.parametrize("head", [[], [33, 12, 8]], ids=["unlike", "alike"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_crowded_batch_says_what_recomputation_by_hand_says(kind: str, head: list[int]) -> None:
    sampling = Sampling(temperature=0.8, max_tokens=9)
    requests = [request(head + prompt, sample) for prompt in PROMPTS for sample in range(3)]
    # Few slots: rows retire, move and are replaced while others run. Several stop ids end rows early.
    turns = engine(tiny_policy(kind), slots=5, stop_ids=range(2, 30)).generate(requests, sampling)
    model = tiny_model(kind)
    for sample_request, turn in zip(requests, turns, strict=True):
        tokens, logprobs = by_hand(model, sample_request, sampling, frozenset(range(2, 30)))
        assert list(turn.tokens) == tokens
        np.testing.assert_allclose(turn.sampler_logprobs, logprobs, atol=1e-6)
        assert turn.stop_reason is (StopReason.STOP if tokens[-1] in range(2, 30) else StopReason.LENGTH)


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(8)), slots=st.integers(1, 9))
def test_neither_order_nor_slots_change_what_is_said(order: list[int], slots: int) -> None:
    sampling = Sampling(temperature=1.0, max_tokens=6)
    policy = _shared_policy()
    requests = [request(PROMPTS[k % 4], k // 4) for k in range(8)]
    alone = [engine(policy, slots=1, stop_ids=range(2, 20)).generate([request], sampling)[0] for request in requests]
    crowd = engine(policy, slots=slots, stop_ids=range(2, 20)).generate([requests[k] for k in order], sampling)
    for k, turn in zip(order, crowd, strict=True):
        assert turn.tokens == alone[k].tokens


_POLICY: list[Policy] = []


def _shared_policy() -> Policy:
    if not _POLICY:
        _POLICY.append(tiny_policy())
    return _POLICY[0]


def test_same_request_same_tokens_and_every_counter_matters() -> None:
    policy = _shared_policy()
    sampling = Sampling(temperature=2.0, max_tokens=12)

    def say(**changed: Any) -> Turn:
        sampler = engine(policy, stop_ids=())
        sampler.commit(changed.get("version", 0))
        return sampler.generate([request([5, 6], **changed)], sampling)[0]

    assert say() == say()
    assert len({say(sample=0).tokens, say(sample=1).tokens, say(version=1).tokens, say(seed=8).tokens}) == 4


def test_memory_is_reused_between_calls_without_leaking_old_rows() -> None:
    sampler = engine(_shared_policy(), slots=4)
    sampling = Sampling(temperature=1.0, max_tokens=8)
    first = sampler.generate([request(p) for p in PROMPTS], sampling)
    sampler.generate([request([33] * 40, s) for s in range(4)], sampling)
    assert sampler.generate([request(p) for p in PROMPTS], sampling) == first


def test_sampler_logprobs_are_the_learners_own() -> None:
    from coterie.algo.objective import Objective
    from coterie.batches.pack import plan
    from coterie.config.optim import OptimConfig
    from coterie.policy.learner import Learner
    from coterie.types import Context, Credit, Outcome, Rollout

    policy = tiny_policy("qwen3")
    sampling = Sampling(temperature=0.6, max_tokens=10)
    requests = [request(p, s) for p in PROMPTS for s in range(2)]
    turns = engine(policy, slots=3).generate(requests, sampling)
    rollouts, credits = [], []
    for sample_request, turn in zip(requests, turns, strict=True):
        context = Context(
            prompt_id=sample_request.key.prompt,
            task="",
            difficulty=None,
            version=0,
            prompt_length=1,
            completion_length=1,
            stop_reason=turn.stop_reason,
        )
        name = f"{sample_request.key.prompt}#{sample_request.key.sample}"
        rollouts.append(
            Rollout(
                id=name,
                sample=sample_request.key.sample,
                turns=(turn,),
                completion="",
                reward=1.0,
                reward_parts={},
                outcome=Outcome.OK,
                context=context,
            )
        )
        credits.append(Credit(rollout_id=name, advantage=1.0, clip_low=0.2, clip_high=0.2))
    learner = Learner(policy, optim=OptimConfig(), objective=Objective(), temperature=0.6, total_steps=1)
    (batch,) = plan(rollouts, credits, loss_agg_mode="token-mean", max_tokens_per_microbatch=10_000, skip_zero=False)
    np.testing.assert_allclose(
        np.concatenate([scores.logprobs for scores in learner.score([batch]).values()]),
        batch.sampler_logprobs,
        atol=1e-6,
    )


def test_top_k_and_top_p_report_the_renormalised_distribution() -> None:
    policy = _shared_policy()
    greedy = engine(policy).generate([request([5])], Sampling(temperature=1.0, top_k=1, max_tokens=5))[0]
    assert greedy.sampler_logprobs == pytest.approx([0.0] * len(greedy.tokens))
    nucleus = engine(policy).generate([request([5])], Sampling(temperature=1.0, top_p=1e-6, max_tokens=5))[0]
    assert nucleus.tokens == greedy.tokens


def test_stop_strings_end_a_row_and_stay_in_it() -> None:
    policy = _shared_policy()
    free = engine(policy, stop_ids=()).generate([request([5])], Sampling(temperature=1.0, max_tokens=12))[0]
    stop = Codec().decode(free.tokens[3:5])
    cut = engine(policy, stop_ids=()).generate([request([5])], Sampling(temperature=1.0, max_tokens=12, stop=(stop,)))[
        0
    ]
    assert cut.tokens == free.tokens[:5]
    assert cut.stop_reason is StopReason.STOP


def test_deadline_truncates_what_is_unfinished() -> None:
    turns = engine(_shared_policy(), slots=1, stop_ids=()).generate(
        [request([5], s) for s in range(3)], Sampling(temperature=1.0, max_tokens=100, timeout_s=1e-9)
    )
    assert [turn.stop_reason for turn in turns] == [StopReason.DEADLINE] * 3
    assert all(turn.stop_reason.truncated for turn in turns)


def test_no_requests_is_no_turns() -> None:
    assert engine(_shared_policy()).generate([], Sampling(temperature=1.0, max_tokens=5)) == []


@pytest.mark.parametrize(
    ("impossible", "message"),
    [
        (request([]), "has no tokens"),
        (request([5] * 250), r"250 tokens.*sampling\.max_tokens = 20.*context of 256; lower either"),
        (request([5], version=3), "asked for policy version 3, but the engine serves 0"),
    ],
)
def test_impossible_requests_are_refused(impossible: Request, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        engine(_shared_policy()).generate([impossible], Sampling(temperature=1.0, max_tokens=20))


def test_damaged_weights_are_noticed() -> None:
    policy = tiny_policy()
    with torch.no_grad():
        policy.head.weight[:] = float("nan")
    with pytest.raises(EngineError, match=r"logits .* are not finite"):
        engine(policy).generate([request([5])], Sampling(temperature=1.0, max_tokens=5))


def test_refused_memory_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    sampler = engine(_shared_policy())
    monkeypatch.setattr(KVPool, "admit", refuse)
    with pytest.raises(
        EngineError, match=r"memory was refused while 1 sequences of up to 6 .* lower engine\.max_num_seqs"
    ):
        sampler.generate([request([5])], Sampling(temperature=1.0, max_tokens=5))
    monkeypatch.undo()
    assert sampler.generate([request([5])], Sampling(temperature=1.0, max_tokens=5))


def test_other_errors_of_the_model_pass_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(KVPool, "admit", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        engine(_shared_policy()).generate([request([5])], Sampling(temperature=1.0, max_tokens=5))


CONTEXT, BUDGET = 256, 20


@pytest.mark.parametrize(
    ("length", "budget", "tokens"),
    [
        (CONTEXT - BUDGET - 1, BUDGET, BUDGET),
        (CONTEXT - BUDGET, BUDGET, BUDGET),
        (CONTEXT - 1, 1, 1),
        (1, 1, 1),
        (1, CONTEXT - 1, CONTEXT - 1),
        (CONTEXT - BUDGET + 1, BUDGET, None),
        (CONTEXT, 1, None),
        (CONTEXT + 1, 1, None),
    ],
)
def test_the_edge_of_the_context(length: int, budget: int, tokens: int | None) -> None:
    """A completion has its whole budget and ends by length, or the prompt is refused: none is cut in silence."""
    asked, sampling = request([5 + k % 60 for k in range(length)]), Sampling(temperature=1.0, max_tokens=budget)
    if tokens is None:
        with pytest.raises(EngineError, match=f"has {length} tokens.*context of {CONTEXT}; lower either"):
            engine(_shared_policy(), stop_ids=()).generate([asked], sampling)
        return
    (turn,) = engine(_shared_policy(), stop_ids=()).generate([asked], sampling)
    assert (len(turn.tokens), turn.stop_reason) == (tokens, StopReason.LENGTH)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_prompts_that_begin_alike_are_computed_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A growing conversation, a branch of it, a group and strangers, one call after the other: the same tokens as
    without, fewer tokens computed, and nothing of before after a change of the weights."""
    policy, sampling = tiny_policy(kind), Sampling(temperature=0.9, max_tokens=8)
    plain = engine(policy)
    caching = EmbeddedEngine(policy, Codec(), max_num_seqs=4, capacity=200, max_kept_tokens=400, prefix_caching=True)
    computed: list[int] = []
    hidden = Policy.hidden
    monkeypatch.setattr(
        Policy, "hidden", lambda self, tokens, *rest: (computed.append(tokens.numel()), hidden(self, tokens, *rest))[1]
    )

    def ask(prompt: Sequence[int], count: int = 1) -> int:
        """Tokens computed for prompts, with caching; all tokens are compared."""
        requests = [request(prompt, sample, name=f"{len(prompt)}") for sample in range(count)]
        for number, asked in enumerate(requests):
            requests[number] = Request(
                key=SampleKey(seed=7, version=caching.version, prompt=asked.key.prompt, sample=number),
                prompt_tokens=asked.prompt_tokens,
            )
        computed.clear()
        turns = caching.generate(requests, sampling)
        spent = sum(computed)
        expected = plain.generate(requests, sampling)
        assert [turn.tokens for turn in turns] == [turn.tokens for turn in expected]
        for turn, other in zip(turns, expected, strict=True):
            assert turn.sampler_logprobs == pytest.approx(other.sampler_logprobs, rel=1e-9)
        return spent - sum(len(turn.tokens) - 1 for turn in turns)

    first = [3 + (7 * place) % 80 for place in range(40)]
    assert ask(first) == 40
    assert caching._session is not None, "it outlasts the call"
    assert ask([*first, 8, 9, 10]) <= 8 + 3
    assert ask([*first[:30], 90, 91]) == 2, "a branch takes the start that it shares"
    assert ask([*first[:10], 90, 91]) == 12, "too short a start is not looked for"
    assert ask([*first, 8, 9, 10, 11], count=3) == 44, "a group's prompt is computed once, together"
    assert ask(first) == 1, "all but the token that gives the logits"
    for start in range(12):
        ask([5 + start] * 60)
    assert sum(len(resting.tokens) for resting in caching._cache.resting.values()) <= 400
    caching.commit(1)
    plain.commit(1)
    assert ask(first) == 40
