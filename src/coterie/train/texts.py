"""What the texts of a step look like, whatever they earn: loops, copies, sameness, empty reasoning."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from coterie.algo.repetition import copied, repetition
from coterie.data.answers import extract_answer
from coterie.types import Group, Rollout

_THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL)
FORMAT = "format"
"""Label of the reward part that asks for `<think>…</think>`."""


def text_measures(usable: Sequence[Rollout], groups: Sequence[Group]) -> dict[str, float]:
    """Repetition, copies of the prompt, distinct final answers of a group, answers without reasoning."""
    if not usable:
        return {}
    said = [_tokens(rollout) for rollout in usable]
    repeated = [repetition(tokens) for tokens in said]
    copies = [copied(tokens, rollout.turns[0].prompt_tokens) for tokens, rollout in zip(said, usable, strict=True)]
    found = {
        "repetition/mean": float(np.mean(repeated)),
        "repetition/p95": float(np.percentile(repeated, 95)),
        "copied/mean": float(np.mean(copies)),
    }
    answers = {rollout.id: _answer(rollout) for rollout in usable}
    distinct = [len({answers[member] for member in group.members}) for group in groups]
    if distinct:
        found["answers/distinct"] = float(np.mean(distinct))
    if any(FORMAT in rollout.reward_parts for rollout in usable):
        found["think/empty"] = float(np.mean([not has_reasoning(rollout.completion) for rollout in usable]))
    return found


def has_reasoning(completion: str) -> bool:
    """Whether anything stands between `<think>` and `</think>`.

    >>> has_reasoning("<think> </think> <answer>4</answer>"), has_reasoning("<think>2 + 2</think> 4")
    (False, True)
    """
    return any(inner.strip() for inner in _THINK.findall(completion))


def _answer(rollout: Rollout) -> str:
    """Final answer, as one would compare it."""
    return " ".join(extract_answer(rollout.completion).casefold().split())


def _tokens(rollout: Rollout) -> tuple[int, ...]:
    return tuple(token for turn in rollout.turns for token in turn.tokens)
