"""Packing as property tests: whatever the rollouts, the packed row says the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.algo.advantages import informative
from coterie.batches.batch import Batch, halves, shared_head
from coterie.batches.pack import continuation, largest, plan
from coterie.types import Context, Credit, Group, Outcome, Rollout, StopReason, Turn

TOKENS = st.lists(st.integers(3, 60), min_size=1, max_size=9)


def make(
    name: str, prompt: list[int], completion: list[int], later: Sequence[tuple[list[int], list[int]]] = ()
) -> Rollout:
    turns = [turn(tuple(prompt), completion)]
    for tool, answer in later:
        turns.append(turn(turns[-1].prompt_tokens + turns[-1].tokens + tuple(tool), answer))
    return Rollout(
        id=name,
        sample=0,
        turns=tuple(turns),
        completion="",
        reward=1.0,
        reward_parts={},
        outcome=Outcome.OK,
        context=Context(
            prompt_id="q",
            task="t",
            difficulty=None,
            version=0,
            prompt_length=1,
            completion_length=1,
            stop_reason=StopReason.STOP,
        ),
    )


def turn(prompt: tuple[int, ...], tokens: list[int]) -> Turn:
    return Turn(
        prompt_tokens=prompt,
        tokens=tuple(tokens),
        sampler_logprobs=tuple(-token / 10 for token in tokens),
        temperature=1.0,
        stop_reason=StopReason.STOP,
        version=0,
    )


def credit(name: str, advantage: float) -> Credit:
    return Credit(rollout_id=name, advantage=advantage, clip_low=0.2, clip_high=0.3)


def sequences(batch: Batch) -> dict[str, tuple[list[int], list[int]]]:
    """rollout id → (its whole token sequence, its trained tokens), read off the packed row."""
    by_rollout = {}
    names = iter(batch.spans)
    for segment in batch.segments:
        prompt_slice = slice(segment.start, segment.start + segment.prompt)
        prompt = batch.tokens[: segment.head].tolist() + batch.tokens[prompt_slice].tolist()
        assert batch.positions[prompt_slice].tolist() == list(range(segment.head, len(prompt)))
        at = segment.start + segment.prompt
        for length in segment.lengths:
            name = next(names)
            start, end = batch.spans[name]
            assert batch.positions[at : at + length].tolist() == list(range(len(prompt), len(prompt) + length))
            whole = prompt + batch.tokens[at : at + length].tolist()
            for source, target in zip(batch.sources[start:end], batch.targets[start:end], strict=True):
                # The state that predicts a token sits right before it, or at the prompt's end for the first.
                before = segment.start + segment.prompt - 1 if source < at else source
                assert source == before
                assert batch.tokens[at if source < at else source + 1] == target
            by_rollout[name] = (whole, batch.targets[start:end].tolist())
            at += length
    return by_rollout


ROLLOUTS = st.lists(
    st.tuples(
        st.sampled_from([(5, 6, 8), (7,), (5, 6, 7), (5, 6, 7, 9)]),
        TOKENS,
        st.lists(st.tuples(TOKENS, TOKENS), max_size=2),
    ),
    min_size=1,
    max_size=9,
)


@settings(deadline=None)
@given(shapes=ROLLOUTS, budget=st.integers(1, 80), loss_agg_mode=st.sampled_from(["seq-mean-token-mean", "token-mean"]))
def test_every_token_is_trained_once_after_its_own_past(shapes: list, budget: int, loss_agg_mode: str) -> None:
    rollouts = [make(f"r{k}", list(p), c, later) for k, (p, c, later) in enumerate(shapes)]
    credits = [credit(rollout.id, k - 1.5) for k, rollout in enumerate(rollouts)]
    batches = plan(rollouts, credits, loss_agg_mode=loss_agg_mode, max_tokens_per_microbatch=budget, skip_zero=False)  # ty: ignore[invalid-argument-type]
    by_rollout = {name: value for batch in batches for name, value in sequences(batch).items()}
    for rollout in rollouts:
        last = rollout.turns[-1]
        assert by_rollout[rollout.id][0] == list(last.prompt_tokens + last.tokens)
        assert by_rollout[rollout.id][1] == [token for turn in rollout.turns for token in turn.tokens]
    weights = np.concatenate([batch.weights for batch in batches])
    assert weights.sum() == pytest.approx(1)
    for batch in batches:
        single = len(batch.spans) == 1
        longest = max(segment.head + segment.prompt for segment in batch.segments)
        assert single or len(batch.tokens) <= max(budget, 2 * longest)


def test_what_all_prompts_start_with_is_there_once() -> None:
    shapes = [([5, 6, 7], [8]), ([5, 6, 9, 9], [10]), ([5, 6, 7], [11, 12])]
    rollouts = [make(f"r{k}", prompt, answer) for k, (prompt, answer) in enumerate(shapes)]
    credits = [credit(rollout.id, 1.0) for rollout in rollouts]
    (batch,) = plan(rollouts, credits, loss_agg_mode="token-mean", max_tokens_per_microbatch=99, skip_zero=False)
    assert batch.tokens.tolist() == [5, 6, 7, 8, 11, 12, 9, 9, 10]
    assert batch.positions.tolist() == [0, 1, 2, 3, 3, 4, 2, 3, 4]
    assert [(segment.start, segment.prompt, segment.lengths, segment.head) for segment in batch.segments] == [
        (2, 1, (1, 2), 2),
        (6, 2, (1,), 2),
    ]
    assert sequences(batch)["r1"] == ([5, 6, 9, 9, 10], [10])
    first, second = halves(batch)
    assert {**sequences(first), **sequences(second)} == sequences(batch)
    assert first.tokens[:2].tolist() == second.tokens[:2].tolist() == [5, 6]


def test_every_row_of_a_step_is_cut_at_the_same_place() -> None:
    rollouts = [make("a", [5, 6, 7], [8, 9]), make("b", [5, 6, 8], [9, 9]), make("c", [5, 6, 9], [8])]
    credits = [credit("a", 1.0), credit("b", 0.0), credit("c", -1.0)]
    options: dict[str, Any] = {"loss_agg_mode": "token-mean", "skip_zero": True}
    for budget in (7, 99):  # a row each, where nothing is saved; and one row, with one of the prompts left out
        rows = plan(rollouts, credits, max_tokens_per_microbatch=budget, **options)
        assert [{segment.head for segment in row.segments} for row in rows] == [{2}] * len(rows)
    (row,) = plan(rollouts[:1], credits[:1], max_tokens_per_microbatch=99, head=2, **options)
    assert (row.tokens.tolist(), row.segments[0].head, row.segments[0].prompt) == ([5, 6, 7, 8, 9], 2, 1)
    for head, others in ((3, rollouts[:1]), (2, [*rollouts, make("d", [7, 6, 7], [8])])):
        with pytest.raises(ValueError, match=f"the same {head} tokens and one more"):
            plan(
                others,
                [credit(rollout.id, 1.0) for rollout in others],
                max_tokens_per_microbatch=99,
                head=head,
                **options,
            )


def test_a_head_is_shared_where_it_saves_something() -> None:
    assert shared_head([(5, 6, 7), (5, 6, 8)]) == 2
    assert shared_head([(5, 6, 7), (5, 6)]) == 1, "every prompt keeps a token of its own"
    assert shared_head([(5, 6, 7)]) == shared_head([(5, 6, 7)] * 3) == 0
    assert shared_head([(5,), (5, 6)]) == 0
    assert shared_head([(5, *range(30)), (5, *range(9, 30))]) == 0, "one token in fifty"
    long = [(*range(200), other, *range(1800)) for other in (300, 301)]
    assert shared_head(long) == 0, "what is saved is lost to the mask of 1,800 tokens"
    assert shared_head([tokens[:400] for tokens in long]) == 200


def test_denominators_still_count_what_is_skipped() -> None:
    rollouts = [make("a", [5], [6, 7]), make("b", [5], [6, 7, 8]), make("c", [9], [1] * 5)]
    credits = [credit("a", 1.0), credit("b", -1.0), credit("c", 0.0)]
    (batch,) = plan(rollouts, credits, loss_agg_mode="token-mean", max_tokens_per_microbatch=100, skip_zero=True)
    assert list(batch.spans) == ["a", "b"]
    assert batch.weights.tolist() == [1 / 10] * 5
    (batch,) = plan(
        rollouts, credits, loss_agg_mode="seq-mean-token-mean", max_tokens_per_microbatch=100, skip_zero=True
    )
    assert batch.weights.tolist() == [1 / 6] * 2 + [1 / 9] * 3


def test_a_rollout_that_said_nothing_counts_nowhere() -> None:
    rollouts = [make("a", [5], []), make("b", [5], [6, 7])]
    (batch,) = plan(
        rollouts,
        [credit("a", 1.0), credit("b", -1.0)],
        loss_agg_mode="seq-mean-token-mean",
        max_tokens_per_microbatch=9,
        skip_zero=True,
    )
    assert list(batch.spans) == ["b"]
    assert batch.weights.tolist() == [0.5, 0.5]


def test_rollouts_without_credit_take_no_part() -> None:
    assert (
        plan([make("a", [5], [6])], [], loss_agg_mode="token-mean", max_tokens_per_microbatch=9, skip_zero=True) == []
    )


def test_the_prompt_is_packed_once_for_its_group() -> None:
    rollouts = [make(name, [5, 6, 7], [8]) for name in "abc"]
    (batch,) = plan(
        rollouts,
        [credit(n, 1.0) for n in "abc"],
        loss_agg_mode="token-mean",
        max_tokens_per_microbatch=99,
        skip_zero=True,
    )
    assert Counter(batch.tokens.tolist()) == {5: 1, 6: 1, 7: 1, 8: 3}


def test_tool_tokens_carry_no_loss() -> None:
    tokens, trained, logprobs = continuation(make("a", [5], [10, 20], [([1, 2], [30])]))
    assert tokens.tolist() == [10, 20, 1, 2, 30]
    assert trained.tolist() == [True, True, False, False, True]
    assert logprobs.tolist() == [-1.0, -2.0, 0.0, 0.0, -3.0]


def test_a_turn_that_rewrites_history_is_refused() -> None:
    broken = make("a", [5], [6])
    turns = (*broken.turns, turn((5, 7, 8), [9]))
    rewritten = replace(broken, turns=turns)
    with pytest.raises(ValueError, match="turn 1 of rollout a does not continue the tokens of the turn before"):
        continuation(rewritten)


@settings(deadline=None)
@given(shapes=ROLLOUTS)
def test_a_row_cut_down_to_single_rollouts_says_the_same(shapes: list) -> None:
    rollouts = [make(f"r{k}", list(p), c, later) for k, (p, c, later) in enumerate(shapes)]
    credits = [credit(rollout.id, k - 1.5) for k, rollout in enumerate(rollouts)]
    (whole,) = plan(
        rollouts, credits, loss_agg_mode="seq-mean-token-mean", max_tokens_per_microbatch=10_000, skip_zero=False
    )
    parts = [whole]
    while any(len(part.spans) > 1 for part in parts):
        parts = [half for part in parts for half in (halves(part) if len(part.spans) > 1 else (part,))]
    by_rollout = {name: value for part in parts for name, value in sequences(part).items()}
    assert by_rollout == sequences(whole)
    for values in ("targets", "advantages", "clip_low", "clip_high", "weights", "sampler_logprobs"):
        assert np.array_equal(np.concatenate([getattr(part, values) for part in parts]), getattr(whole, values))
    with pytest.raises(ValueError, match="cannot be cut"):
        halves(parts[0])


def test_a_row_is_cut_near_its_middle() -> None:
    rollouts = [make("a", [5], [6] * 9), make("b", [5], [6] * 2), make("c", [9], [1] * 8), make("d", [9], [1] * 3)]
    (whole,) = plan(
        rollouts,
        [credit(n, 1.0) for n in "abcd"],
        loss_agg_mode="token-mean",
        max_tokens_per_microbatch=99,
        skip_zero=False,
    )
    left, right = halves(whole)
    assert (list(left.spans), list(right.spans)) == (["a", "b"], ["c", "d"])
    first, second = halves(left)
    assert (first.tokens.tolist(), second.tokens.tolist()) == ([5] + [6] * 9, [5, 6, 6])


@given(prompt=st.integers(1, 20), completion=st.integers(1, 9), group=st.integers(2, 5), budget=st.integers(1, 120))
def test_the_largest_row_is_as_large_as_any_that_plan_makes(
    prompt: int, completion: int, group: int, budget: int
) -> None:
    rollouts = [make(f"{p}{k}", [p] * prompt, [1] * completion) for p in range(3) for k in range(group)]
    credits = [credit(rollout.id, 1.0) for rollout in rollouts]
    made = plan(
        rollouts, credits, loss_agg_mode="seq-mean-token-mean", max_tokens_per_microbatch=budget, skip_zero=False
    )
    row = largest(prompt=prompt, completion=completion, prompts=3, group_size=group, max_tokens_per_microbatch=budget)
    assert len(row.tokens) == max(len(batch.tokens) for batch in made)
    assert sequences(row)


def test_a_long_prompt_is_not_repeated_for_every_rollout() -> None:
    prompt = list(range(1, 21))
    rollouts = [make(name, prompt, [7, 8, 9]) for name in "abcdefgh"]
    batches = plan(
        rollouts,
        [credit(n, 1.0) for n in "abcdefgh"],
        loss_agg_mode="token-mean",
        max_tokens_per_microbatch=10,
        skip_zero=False,
    )
    assert [len(batch.tokens) for batch in batches] == [20 + 6 * 3, 20 + 2 * 3]


def test_groups_without_an_advantage_can_be_left_out_of_the_denominator() -> None:
    """Three prompts, one of them all solved: the mean over prompts is over two (ScaleRL), or over all three."""
    rewards = {"p": (1.0, 0.0), "q": (1.0, 1.0), "r": (0.0, 1.0)}
    items, groups, credits = [], [], []
    for key, pair in rewards.items():
        made = [make(f"{key}{k}", [5, 6], [7, 8, 9]) for k in range(2)]
        items += [replace(rollout, context=replace(rollout.context, prompt_id=key)) for rollout in made]
        groups.append(Group(scale="prompt", key=key, members=tuple(rollout.id for rollout in made), rewards=pair))
        centre = sum(pair) / 2
        credits += [credit(rollout.id, reward - centre) for rollout, reward in zip(made, pair, strict=True)]

    def weights(credits: list[Credit]) -> dict[str, float]:
        rows = plan(items, credits, loss_agg_mode="prompt-mean", max_tokens_per_microbatch=1000, skip_zero=False)
        return {name: row.weights[slice(*span)].sum() for row in rows for name, span in row.spans.items()}

    assert weights(credits) == pytest.approx(dict.fromkeys((rollout.id for rollout in items), 1 / 6))
    assert weights(informative(groups, credits)) == pytest.approx(dict.fromkeys(("p0", "p1", "r0", "r1"), 1 / 4))
    assert informative(groups[1:2], credits) == []
