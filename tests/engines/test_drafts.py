"""Drafts change no token, are given up where they do not pay, and begin alike in a resumed run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.peers.rollouts import rollout
from coterie.config.schema import LoraConfig
from coterie.engines.attempt_history import ATTEMPTS, CONTEXT, FILE, AttemptHistory
from coterie.engines.base import Request, Sampling
from coterie.engines.drafts import Acceptance, Drafts, Guess, NgramIndex, worth
from coterie.engines.embedded import EmbeddedEngine
from coterie.engines.sequence import SampledSequence
from coterie.errors import CheckpointError
from coterie.policy.model import Policy
from coterie.types import Rollout, SampleKey, StopReason, Turn
from tiny_models import KINDS, tiny_policy

SAMPLING = Sampling(temperature=0.1, max_tokens=24)
PROMPTS = [(5, 9, 4), (11, 3, 8, 40, 7, 21, 60, 2, 9), (5, 9, 4, 12, 33)]


class Codec:
    """Token k is the letter k of a made-up alphabet."""

    stop_ids = frozenset({2, 3})

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(0x100 + token) for token in ids)


def asked(samples: int = 5, version: int = 0) -> list[Request]:
    return [
        Request(
            key=SampleKey(seed=7, version=version, prompt=str(prompt), sample=sample),
            prompt_tokens=prompt,
        )
        for prompt in PROMPTS
        for sample in range(samples)
    ]


def engine(policy: Policy, *, draft: bool, slots: int = 4) -> EmbeddedEngine:
    return EmbeddedEngine(policy, Codec(), max_num_seqs=slots, draft=draft)


def passes(policy: Policy, *, draft: bool, sampling: Sampling = SAMPLING, slots: int = 4) -> tuple[list[Turn], int]:
    """The turns, and how many passes they took."""
    sampler = engine(policy, draft=draft, slots=slots)
    ids = [sampler.submit(request, sampling) for request in asked()]
    turns: dict[int, Turn] = {}
    count = 0
    while sampler.unfinished:
        turns.update(sampler.step())
        count += 1
    return [turns[number] for number in ids], count


@pytest.mark.parametrize("kind", [*KINDS, "lora"])
def test_the_text_is_the_same_in_fewer_passes(kind: str) -> None:
    """In float64 every token; several rows, which retire, move and are replaced while others are verified."""
    lora = LoraConfig(rank=2, alpha=4.0) if kind == "lora" else None
    policy = tiny_policy("llama" if lora else kind, lora=lora)
    plain, without = passes(policy, draft=False)
    drafted, count = passes(policy, draft=True)
    assert [turn.tokens for turn in drafted] == [turn.tokens for turn in plain]
    for turn, other in zip(drafted, plain, strict=True):
        np.testing.assert_allclose(turn.sampler_logprobs, other.sampler_logprobs, atol=1e-9)
        assert turn.stop_reason is other.stop_reason
    assert count < without


@pytest.mark.parametrize(
    "changed",
    [
        {"stop": (chr(0x100 + 17), chr(0x100 + 40) + chr(0x100 + 41))},
        {"max_tokens": 5},
        {"max_tokens": 1},
        {"top_k": 3, "temperature": 1.0},
        {"temperature": 0.0},
    ],
    ids=str,
)
def test_limits_end_a_turn_in_the_midst_of_a_draft(changed: dict[str, Any]) -> None:
    policy, sampling = tiny_policy(), replace(SAMPLING, **changed)
    plain, _ = passes(policy, draft=False, sampling=sampling)
    drafted, _ = passes(policy, draft=True, sampling=sampling)
    assert [(turn.tokens, turn.stop_reason) for turn in drafted] == [(turn.tokens, turn.stop_reason) for turn in plain]


def test_earlier_attempts_are_guessed_from() -> None:
    """What was said in one step is drafted in the next, whose siblings are yet to speak."""
    policy = tiny_policy()
    sampler = engine(policy, draft=True, slots=15)
    assert sampler.history is not None
    assert sampler.drafts is not None
    turns = sampler.generate(asked(), SAMPLING)
    before = sampler.drafts.accepted
    sampler.history.remember(
        rollout(request.key.prompt, request.key.sample, turn, 0.0) for request, turn in zip(asked(), turns, strict=True)
    )
    sampler.commit(1)
    again = sampler.generate(asked(version=1), SAMPLING)
    assert sampler.drafts.accepted - before > 1.5 * before
    plain = engine(policy, draft=False)
    plain.commit(1)
    assert [turn.tokens for turn in again] == [turn.tokens for turn in plain.generate(asked(version=1), SAMPLING)]


def test_a_model_that_is_not_packed_goes_without() -> None:
    policy = tiny_policy()
    policy.path = replace(policy.path, kind="plain", attention="sdpa")
    policy.runner.path = policy.path
    policy.model.set_attn_implementation("sdpa")
    assert engine(policy, draft=True).drafts is None


def test_bfloat16_may_round_otherwise_but_a_rerun_repeats() -> None:
    policy = tiny_policy(dtype=torch.bfloat16)
    assert passes(policy, draft=True) == passes(policy, draft=True)


# The guesses.


def test_the_longest_context_decides() -> None:
    index = NgramIndex()
    assert index.add([1, 2, 3], 0) == 1
    index = NgramIndex()
    index.add([1, 2, 3, 4, 9, 1, 2, 3, 4, 9, 7, 7, 3, 4, 5, 7, 7, 3, 4, 5, 6, 6, 3, 4, 5], 0)
    assert index.guess([8, 3, 4]) == Guess(5, followed=3, occurred=5, order=2)
    assert index.guess([8, 1, 2, 3, 4]) == Guess(9, followed=2, occurred=2, order=4)
    assert index.guess([4]) is None
    assert index.guess([3, 8]) is None


def test_guesses_that_fail_are_given_up() -> None:
    """A kind of guess that is never right is soon not worth its cost, beside many rows first."""
    guess, acceptance = Guess(5, followed=3, occurred=3, order=4), Acceptance()
    made = 0
    while acceptance.probability(guess) >= worth(8):
        acceptance.count(guess.kind, right=False)
        made += 1
    assert 1 <= made <= 8
    assert acceptance.probability(guess) > worth(1)
    for _ in range(20):
        acceptance.count(guess.kind, right=True)
    assert acceptance.probability(guess) > worth(16)


def test_guesses_must_pay() -> None:
    """By hand: beside 10 rows a token costs 20 / 10 + 1 + 1 = 4 tokens, a guess one, and twice that must be saved."""
    assert worth(10) == pytest.approx(2 / 4)
    assert all(worth(rows) < worth(rows + 1) < 1 for rows in range(1, 300))


def sequence(prompt: Sequence[int], tokens: Sequence[int], sample: int = 0) -> SampledSequence:
    key = SampleKey(seed=0, version=0, prompt="a", sample=sample)
    request = Request(key=key, prompt_tokens=tuple(prompt))
    return SampledSequence(id=sample, request=request, sampling=SAMPLING, tokens=list(tokens))


def test_a_draft_ends_with_its_end_token_and_before_the_limit() -> None:
    drafts = Drafts(AttemptHistory(), frozenset({2}))
    drafts.read(sequence([9, 8], [20, 21, 22, 2, 30]))
    row = sequence([9, 8], [20], sample=1)
    drafts.read(row)
    (draft,) = drafts.guesses([row])
    assert draft.tokens == [21, 22, 2]
    row.sampling = replace(SAMPLING, max_tokens=3)
    assert drafts.guesses([row])[0].tokens == [21]
    drafts.judge(draft, [21, 7])
    assert (drafts.guessed, drafts.accepted) == (3, 1)


# The history.


def spoken(prompt: str, tokens: Sequence[int], sample: int = 0) -> Rollout:
    turn = Turn(
        prompt_tokens=tuple(range(20)),
        tokens=tuple(tokens),
        sampler_logprobs=(0.0,) * len(tokens),
        temperature=1.0,
        stop_reason=StopReason.STOP,
        version=0,
    )
    return rollout(prompt, sample, turn, 0.0)


def test_the_newest_attempts_are_kept() -> None:
    history = AttemptHistory(most_tokens=2 * ATTEMPTS * (CONTEXT + 3))
    history.remember(spoken("a", [k, 1, 2], k) for k in range(ATTEMPTS + 2))
    assert [list(tokens) for tokens in history.attempts("a")] == [
        [*range(20 - CONTEXT, 20), k, 1, 2] for k in range(2, ATTEMPTS + 2)
    ]
    history.remember(spoken("b", [k, 1, 2], k) for k in range(ATTEMPTS))
    history.remember([spoken("a", [7, 1, 2])])
    assert len(history.attempts("a")) == len(history.attempts("b")) == ATTEMPTS
    history.remember([spoken("c", [7, 1, 2])])
    assert not history.attempts("b"), "it was attempted longest ago"
    assert history.attempts("c")
    history.remember([spoken("d", [])])
    assert not history.attempts("d")


def test_a_checkpoint_holds_the_history(tmp_path: Path) -> None:
    history, restored = AttemptHistory(), AttemptHistory()
    history.remember(spoken(f"p{k % 3}", [k, 5], k) for k in range(9))
    history.save(tmp_path)
    restored.load(tmp_path)
    for prompt in ("p0", "p1", "p2", "none"):
        assert restored.attempts(prompt) == history.attempts(prompt)
    for both in (history, restored):
        both.remember(spoken("p1", [k, 5, 6], k) for k in range(3))
    (tmp_path / "again").mkdir()
    for both, folder in ((history, tmp_path), (restored, tmp_path / "again")):
        both.save(folder)
    assert (tmp_path / FILE).read_bytes() == (tmp_path / "again" / FILE).read_bytes()


@pytest.mark.parametrize("content", [b"", b"{}x", b'[["a", [["b"]]]]', b"[1]"])
def test_a_damaged_history_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot read the earlier attempts in"):
        AttemptHistory().load(tmp_path)
