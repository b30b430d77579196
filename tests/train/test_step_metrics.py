"""The measures of a step, on rollouts made by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from coterie.rollout.collector import Experience
from coterie.train.evaluate import Criterion
from coterie.train.metrics import step_metrics
from coterie.types import Context, Credit, Group, Message, Outcome, Prompt, Rollout, StopReason, Turn
from runs_for_tests import step_result


def rollout(
    prompt: str,
    sample: int,
    *,
    reward: float | None,
    tokens: Sequence[int] = (1, 2, 3),
    text: str = "4",
    task: str = "sum",
    cut: bool = False,
    parts: dict[str, float | None] | None = None,
    logprob: float = -0.5,
    version: int = 7,
) -> Rollout:
    stop = StopReason.LENGTH if cut else StopReason.STOP
    turn = Turn(
        prompt_tokens=tuple(range(100, 120)),
        tokens=tuple(tokens),
        sampler_logprobs=(logprob,) * len(tokens),
        temperature=1.0,
        stop_reason=stop,
        version=version,
    )
    context = Context(
        prompt_id=prompt,
        task=task,
        difficulty=None,
        version=version,
        prompt_length=20,
        completion_length=len(tokens),
        stop_reason=stop,
    )
    return Rollout(
        id=f"{prompt}#{sample}@{version}",
        sample=sample,
        turns=(turn,),
        completion=text,
        reward=reward,
        reward_parts=parts if parts is not None else {"number": reward},
        outcome=Outcome.REWARD_ERROR if reward is None else Outcome.OK,
        context=context,
    )


def credit(name: str, advantage: float) -> Credit:
    return Credit(rollout_id=name, advantage=advantage, clip_low=0.2, clip_high=0.2)


def measured(
    rollouts: Sequence[Rollout],
    *,
    groups: Sequence[Group] | None = None,
    credits: Sequence[Credit] = (),
    version: int = 7,
    skipped: int = 0,
    criterion: Criterion | None = None,
) -> dict[str, float]:
    names = dict.fromkeys(item.context.prompt_id for item in rollouts)
    prompts = tuple(
        Prompt(id=name, messages=(Message(role="user", content="?"),), answer="4", task="sum") for name in names
    )
    experience = Experience(prompts=prompts, rollouts=tuple(rollouts), generate_seconds=2.0, reward_seconds=1.0)
    update = {"tokens/trained": 6.0}
    result = step_result(experience, step=version + 1, groups=groups, credits=credits, metrics=update, skipped=skipped)
    metrics = step_metrics(result, criterion or Criterion(part="number"))
    assert all(math.isfinite(value) for value in metrics.values())
    return metrics


def test_rewards_by_task_and_part() -> None:
    metrics = measured(
        [
            rollout("a", 0, reward=1.0, parts={"number": 1.0, "style": 0.5}),
            rollout("a", 1, reward=0.0, parts={"number": 0.0, "style": None}),
            rollout("b", 0, reward=0.5, task="legs"),
            rollout("b", 1, reward=None, task="legs", parts={}),
        ]
    )
    assert metrics["reward/mean"] == 0.5
    assert metrics["reward/part/style"] == 0.5
    assert (metrics["reward/task/sum/mean"], metrics["reward/task/sum/std"]) == (0.5, 0.5)
    assert metrics["reward/task/sum/part/number"] == 0.5
    assert (metrics["reward/task/legs/mean"], metrics["errors"]) == (0.5, 1.0)


def test_parts_are_correlated_where_both_apply_and_differ() -> None:
    parts = [(1.0, 0.0, 2.0), (0.0, 1.0, 2.0), (1.0, 0.5, 2.0), (0.0, 0.5, 2.0)]
    rows = [
        rollout("a", k, reward=1.0, parts={"number": number, "style": style, "same": same})
        for k, (number, style, same) in enumerate(2 * parts)
    ]
    rows.append(rollout("a", 8, reward=1.0, parts={"number": 1.0, "style": None, "same": 2.0}))
    correlations = {name: value for name, value in measured(rows).items() if name.startswith("reward/correlation/")}
    assert not any(name.startswith("reward/correlation/") for name in measured(rows[1:8])), "seven tell nothing"
    # Deviations ±½ and (-½, ½, 0, 0): covariance -1/8, standard deviations 1/2 and 1/√8.
    assert correlations == {"reward/correlation/number+style": pytest.approx(-(2**0.5) / 2)}


def test_groups_without_variance_are_split_into_right_and_wrong() -> None:
    metrics = measured(
        [
            *(rollout("right", k, reward=1.0) for k in range(2)),
            *(rollout("wrong", k, reward=0.0) for k in range(2)),
            *(rollout("mixed", k, reward=float(k)) for k in range(2)),
            *(rollout("styled", k, reward=1 + 0.5 * k, parts={"number": 1.0}) for k in range(2)),
        ]
    )
    assert (metrics["groups/all_correct"], metrics["groups/all_wrong"], metrics["groups/mixed"]) == (0.5, 0.25, 0.25)
    assert metrics["groups/zero_variance"] == 0.5
    assert (metrics["groups/zero_variance_solved"], metrics["groups/zero_variance_none"]) == (0.25, 0.25)
    assert metrics["groups/std"] == (0 + 0 + 0.5 + 0.25) / 4
    assert metrics["groups/effective"] == 2


def test_lengths_are_split_by_right_and_wrong_and_by_ending() -> None:
    metrics = measured(
        [
            rollout("a", 0, reward=1.0, tokens=range(10)),
            rollout("a", 1, reward=0.0, tokens=range(20)),
            rollout("a", 2, reward=0.0, tokens=range(30), cut=True),
        ]
    )
    assert (metrics["length/mean"], metrics["length/max"], metrics["length/p95"]) == (20, 30, 29)
    assert (metrics["length/correct"], metrics["length/wrong"], metrics["length/terminated"]) == (10, 25, 15)
    assert metrics["truncated"] == pytest.approx(1 / 3)


def test_what_nobody_did_is_absent() -> None:
    metrics = measured([rollout("a", k, reward=0.0, cut=True) for k in range(2)])
    absent = {"length/correct", "length/terminated", "surprisal/correct", "think/empty", "advantage/max"}
    assert not absent & set(metrics)


def test_surprisal_and_staleness() -> None:
    rollouts = [
        rollout("a", 0, reward=1.0, tokens=(1, 2), logprob=-0.25),
        rollout("a", 1, reward=0.0, tokens=(1,), logprob=-2.0),
        rollout("a", 2, reward=0.0, tokens=(1, 2, 3), logprob=-1.0),
    ]
    metrics = measured(rollouts, version=9)
    assert (metrics["surprisal/correct"], metrics["surprisal/wrong"]) == (0.25, 1.25)
    assert (metrics["staleness/mean"], metrics["staleness/max"]) == (2, 2)


def test_advantages_of_rollouts_and_of_tokens() -> None:
    rollouts = [rollout("a", k, reward=float(k)) for k in range(4)]
    credits = [credit(item.id, value) for item, value in zip(rollouts, (-3.0, 1.0, 1.0, 1.0), strict=True)]
    metrics = measured(rollouts, credits=credits)
    assert (metrics["advantage/max"], metrics["advantage/positive"]) == (3.0, 0.75)


def test_texts() -> None:
    asked = tuple(range(100, 110))
    metrics = measured(
        [
            rollout("a", 0, reward=1.0, tokens=[5] * 12, text="it is \\boxed{4}"),
            rollout("a", 1, reward=0.0, tokens=asked, text="<answer> 4 </answer>"),
            rollout("b", 0, reward=1.0, text="5"),
            rollout("b", 1, reward=0.0, text="6"),
        ]
    )
    assert metrics["repetition/mean"] == pytest.approx(0.9 / 4)
    assert metrics["prompt_overlap/mean"] == pytest.approx(1 / 4)
    assert metrics["answers/distinct"] == 1.5


def test_answers_without_reasoning_are_counted_where_a_layout_is_asked_for() -> None:
    texts = ["<think>2 + 2</think> 4", "<think> \n</think> 4", "4", "<think>so</think>"]
    rollouts = [
        rollout("a", k, reward=1.0, text=text, parts={"number": 1.0, "format": 1.0}) for k, text in enumerate(texts)
    ]
    assert measured(rollouts)["think/empty"] == 0.5


def test_skipped_updates_and_a_step_without_groups() -> None:
    metrics = measured([rollout("a", k, reward=None, parts={}) for k in range(2)], groups=[], skipped=2)
    assert (metrics["update/nonfinite"], metrics["groups/effective"], metrics["errors"]) == (2, 0, 2)
    assert "groups/all_correct" not in metrics


def test_groups_of_a_graded_reward_are_counted_by_their_variance() -> None:
    metrics = measured(
        [
            *(rollout("varies", k, reward=0.1 + 0.2 * k) for k in range(2)),
            *(rollout("varies too", k, reward=2.0 + k) for k in range(2)),
            *(rollout("same", k, reward=0.3) for k in range(2)),
            *(rollout("zero", k, reward=0.0) for k in range(2)),
        ]
    )
    assert (metrics["groups/mixed"], metrics["groups/zero_variance"], metrics["groups/effective"]) == (0.5, 0.5, 2)
    assert (metrics["reward/min"], metrics["reward/max"]) == (0.0, 3.0)
    absent = {f"groups/{name}" for name in ("all_correct", "all_wrong", "zero_variance_solved", "zero_variance_none")}
    assert not (absent | {"length/correct", "length/wrong", "surprisal/wrong"}) & set(metrics)


def test_with_a_threshold_a_graded_reward_has_correct_completions() -> None:
    rollouts = [
        *(rollout("high", k, reward=0.9) for k in range(2)),
        *(rollout("low", k, reward=0.3) for k in range(2)),
        *(rollout("varies", k, reward=0.1 + 0.1 * k, tokens=range(5)) for k in range(2)),
    ]
    metrics = measured(rollouts, criterion=Criterion(part="number", threshold=0.8))
    assert [metrics[f"groups/{name}"] for name in ("all_correct", "all_wrong", "mixed")] == pytest.approx([1 / 3] * 3)
    assert (metrics["length/correct"], metrics["length/wrong"]) == (3, 4)


def test_a_reward_of_minus_one_and_one_is_binary() -> None:
    rollouts = [rollout("a", k, reward=-1.0) for k in range(2)] + [
        rollout("b", k, reward=2.0 * k - 1) for k in range(2)
    ]
    metrics = measured(rollouts)
    assert [metrics[f"groups/{name}"] for name in ("all_correct", "all_wrong", "mixed")] == [0, 0.5, 0.5]
