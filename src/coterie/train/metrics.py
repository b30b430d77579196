"""Metrics of one step: a `StepResult` → named floats.

`docs/diagnostics.md` explains every name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from coterie.algo.shaping import copied, repetition
from coterie.data.answers import extract_answer
from coterie.rollout.collector import LOGGED_METRICS
from coterie.stats import correlation, has_variance
from coterie.train.evaluate import Criterion
from coterie.train.step import StepResult
from coterie.types import Credit, Group, Rollout

# Measures of the texts of a step, whatever their rewards: loops, copies, sameness, empty reasoning.

_THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL)
FORMAT = "format"
"""Label of the reward part that asks for `<think>…</think>`."""


def text_measures(usable: Sequence[Rollout], groups: Sequence[Group]) -> dict[str, float]:
    """Repetition, copies of the prompt, distinct final answers of a group, answers without reasoning."""
    if not usable:
        return {}
    completions = [_tokens(rollout) for rollout in usable]
    repeated = [repetition(tokens) for tokens in completions]
    copies = [
        copied(tokens, rollout.turns[0].prompt_tokens) for tokens, rollout in zip(completions, usable, strict=True)
    ]
    metrics = {
        "repetition/mean": float(np.mean(repeated)),
        "repetition/p95": float(np.percentile(repeated, 95)),
        "prompt_overlap/mean": float(np.mean(copies)),
    }
    answers = {rollout.id: _answer(rollout) for rollout in usable}
    distinct = [len({answers[member] for member in group.members}) for group in groups]
    if distinct:
        metrics["answers/distinct"] = float(np.mean(distinct))
    if any(FORMAT in rollout.reward_parts for rollout in usable):
        metrics["think/empty"] = float(np.mean([not has_reasoning(rollout.completion) for rollout in usable]))
    return metrics


def has_reasoning(completion: str) -> bool:
    """True if anything stands between `<think>` and `</think>`.

    >>> has_reasoning("<think> </think> <answer>4</answer>"), has_reasoning("<think>2 + 2</think> 4")
    (False, True)
    """
    return any(inner.strip() for inner in _THINK.findall(completion))


def _answer(rollout: Rollout) -> str:
    """Final answer, normalised for comparison."""
    return " ".join(extract_answer(rollout.completion).casefold().split())


def _tokens(rollout: Rollout) -> tuple[int, ...]:
    return tuple(token for turn in rollout.turns for token in turn.tokens)


Metrics = dict[str, float]


def step_metrics(result: StepResult, criterion: Criterion) -> Metrics:
    """Named floats, all finite. `time/*`, `speed/*` and `memory/*` depend on the machine; others repeat bit for bit.

    Args:
        criterion: says what is correct. What depends on it is left out where the evaluated reward is graded.
    """
    experience, groups, update = result.batch.experience, result.batch.groups, result.update
    usable = [rollout for rollout in experience.rollouts if rollout.outcome.usable]
    by_id = result.batch.rollouts
    evaluated = [criterion.of_group([by_id[name] for name in group.members]) for group in groups]
    criterion.observe(usable)
    # A group that the evaluated part does not apply to counts by the whole reward, which may be graded in this step.
    binary = not criterion.is_graded() and criterion.applies(value for group in evaluated for value in group)
    correct = {rollout.id: criterion.is_correct(rollout) for rollout in usable} if binary else {}
    return {
        **_rewards(experience.rollouts),
        **_logged(experience.rollouts),
        **_groups(groups, evaluated, criterion if binary else None),
        **_advantages(result.credits),
        **_lengths(experience.rollouts, usable, correct),
        **_surprisal(usable, correct),
        **_staleness(usable, result.step - 1),
        **_turns(experience.rollouts),
        **text_measures(usable, groups),
        **update.metrics,
        "update/nonfinite": float(update.skipped),
        "rollouts": float(len(experience.rollouts)),
        "tokens/generated": float(experience.tokens),
        "errors": float(len(experience.errors)),
        "late": float(experience.timed_out),
        **{f"time/{name}": value for name, value in result.seconds.items()},
        **{f"time/cpu/{name}": value for name, value in result.cpu_seconds.items()},
        "time/generate": experience.generate_seconds,
        "time/reward": experience.reward_seconds,
        "time/environment": experience.environment_seconds,
        "time/environment_wait": experience.waited_seconds,
        "speed/generate": experience.tokens / max(experience.generate_seconds, 1e-9),
        "speed/update": update.metrics.get("tokens/trained", 0.0) / max(result.seconds["update"], 1e-9),
        **result.batch.metrics,
        **result.advantages.metrics,
        **result.weights,
        **result.replayed.metrics,
        **result.subsampled.metrics,
        "memory/peak": float(result.memory),
    }


def _rewards(rollouts: Sequence[Rollout]) -> Metrics:
    """Reward metrics of all rollouts, and of each task among them."""
    tasks: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        tasks.setdefault(rollout.context.task, []).append(rollout)
    metrics = _rewards_of(rollouts, "reward")
    rewards = [rollout.reward for rollout in rollouts if rollout.reward is not None]
    if rewards:
        metrics |= {"reward/min": float(min(rewards)), "reward/max": float(max(rewards))}
    for task, members in tasks.items():
        metrics |= _rewards_of(members, f"reward/task/{task}")
    return metrics | _correlations(rollouts)


def _correlations(rollouts: Sequence[Rollout]) -> Metrics:
    """Correlation of each two reward parts over the rollouts to which both apply."""
    labels = dict.fromkeys(label for rollout in rollouts for label in rollout.reward_parts)
    metrics: Metrics = {}
    for first, second in combinations(labels, 2):
        parts = ([rollout.reward_parts.get(label) for rollout in rollouts] for label in (first, second))
        value = correlation(*parts)
        if value is not None:
            metrics[f"reward/correlation/{first}+{second}"] = value
    return metrics


def _logged(rollouts: Sequence[Rollout]) -> Metrics:
    """Values that reward functions gave to `log_metric`, averaged over the rollouts that they scored."""
    values: dict[str, list[float]] = {}
    for rollout in rollouts:
        for name, value in rollout.context.attributes.get(LOGGED_METRICS, {}).items():
            values.setdefault(name, []).append(value)
    return {f"logged/{name}": float(np.mean(numbers)) for name, numbers in values.items()}


def _rewards_of(rollouts: Sequence[Rollout], prefix: str) -> Metrics:
    rewards = [rollout.reward for rollout in rollouts if rollout.reward is not None]
    if not rewards:
        return {}
    parts: dict[str, list[float]] = {}
    for rollout in rollouts:
        for label, value in rollout.reward_parts.items():
            if value is not None:
                parts.setdefault(label, []).append(value)
    metrics = {f"{prefix}/mean": float(np.mean(rewards)), f"{prefix}/std": float(np.std(rewards))}
    return metrics | {f"{prefix}/part/{label}": float(np.mean(values)) for label, values in parts.items()}


def _groups(groups: Sequence[Group], evaluated: Sequence[Sequence[float]], criterion: Criterion | None) -> Metrics:
    """Shares of groups: `mixed` those whose evaluated rewards differ; of the others `solved` those in which every
    member is correct and `none` those in which no member is, which only a binary reward or a threshold can say.

    `zero_variance` is about the whole reward: such a group teaches nothing.

    Args:
        evaluated: [groups][G] the evaluated reward of each member, as `Criterion.of_group` gives it.
        criterion: None where the evaluated reward is graded.
    """
    if not groups:
        return {"groups/effective": 0.0}
    same = np.array([group.zero_variance for group in groups])
    mixed = np.array([has_variance(values) for values in evaluated])
    metrics = {
        "groups/mixed": float(np.mean(mixed)),
        "groups/zero_variance": float(np.mean(same)),
        "groups/std": float(np.mean([np.std(group.rewards) for group in groups])),
        "groups/effective": float(np.sum(~same)),
    }
    if criterion is None:
        return metrics
    reached = np.array([criterion.reached(values[0]) for values in evaluated])
    solved, none = ~mixed & reached, ~mixed & ~reached
    return metrics | {
        "groups/all_correct": float(np.mean(solved)),
        "groups/all_wrong": float(np.mean(none)),
        "groups/zero_variance_solved": float(np.mean(same & solved)),
        "groups/zero_variance_none": float(np.mean(same & none)),
    }


def _advantages(credits: Sequence[Credit]) -> Metrics:
    """Advantage metrics over rollouts; a rollout with an advantage per token counts as positive by their mean."""
    if not credits:
        return {}
    values = [np.atleast_1d(np.asarray(credit.advantage, dtype=np.float64)) for credit in credits]
    means = np.array([value.mean() if value.size else 0.0 for value in values])
    return {
        "advantage/max": float(max(np.abs(value).max(initial=0.0) for value in values)),
        "advantage/positive": float(np.mean(means > 0)),
    }


def _lengths(rollouts: Sequence[Rollout], usable: Sequence[Rollout], correct: Mapping[str, bool]) -> Metrics:
    """Completion lengths, also of correct and of wrong ones where the reward is not graded: then `correct` is empty."""
    lengths = [rollout.context.completion_length for rollout in rollouts]
    metrics = {
        "length/mean": float(np.mean(lengths)),
        "length/p95": float(np.percentile(lengths, 95)),
        "length/max": float(np.max(lengths)),
        "truncated": float(np.mean([rollout.stop_reason.truncated for rollout in rollouts])),
    }
    kinds = {
        "correct": [rollout for rollout in usable if correct.get(rollout.id) is True],
        "wrong": [rollout for rollout in usable if correct.get(rollout.id) is False],
        "terminated": [rollout for rollout in rollouts if not rollout.stop_reason.truncated],
    }
    return metrics | {
        f"length/{kind}": float(np.mean([rollout.context.completion_length for rollout in members]))
        for kind, members in kinds.items()
        if members
    }


def _turns(rollouts: Sequence[Rollout]) -> Metrics:
    """Turns of an episode; nothing where all have one."""
    counts = [len(rollout.turns) for rollout in rollouts]
    return {"turns/mean": float(np.mean(counts))} if max(counts, default=1) > 1 else {}


def _surprisal(usable: Sequence[Rollout], correct: Mapping[str, bool]) -> Metrics:
    """Mean of -log p of the sampled tokens, in nats: an estimate of the entropy, without another pass of the model."""
    metrics: Metrics = {}
    for kind, right in (("correct", True), ("wrong", False)):
        logprobs = [
            np.asarray(turn.sampler_logprobs)
            for rollout in usable
            if correct.get(rollout.id) is right
            for turn in rollout.turns
        ]
        joined = np.concatenate(logprobs) if logprobs else np.empty(0)
        if joined.size:
            metrics[f"surprisal/{kind}"] = float(-joined.mean())
    return metrics


def _staleness(usable: Sequence[Rollout], version: int) -> Metrics:
    """Versions by which the policy that sampled is older than the learner's before the update; 0 on-policy."""
    lags = [version - turn.version for rollout in usable for turn in rollout.turns]
    return {"staleness/mean": float(np.mean(lags)), "staleness/max": float(np.max(lags))} if lags else {}
