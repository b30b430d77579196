"""What an engine answers is checked before anything is scored or trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from coterie.engines.base import Quorum, Request, Sampling, check_turn, check_version
from coterie.errors import EngineError
from coterie.types import SampleKey, StopReason, Turn

REQUESTS = [
    Request(key=SampleKey(seed=0, version=3, prompt="p/1", sample=k), prompt_tokens=(1, 2, 3 + k)) for k in range(3)
]
SAMPLING = Sampling(temperature=1.0, max_tokens=2)


def answers(**changed: Any) -> list[Turn]:
    """Right answers; the last one with something changed."""
    facts: list[dict[str, Any]] = [
        {
            "prompt_tokens": request.prompt_tokens,
            "tokens": (5, 6),
            "sampler_logprobs": (-0.5, 0.0),
            "temperature": 1.0,
            "stop_reason": StopReason.STOP,
            "version": 3,
        }
        for request in REQUESTS
    ]
    facts[-1] |= changed
    return [Turn(**turn) for turn in facts]


def check(turns: Any, requests: Sequence[Request] = REQUESTS, quorum: Quorum | None = None) -> None:
    for request, turn in zip(requests, turns, strict=True):
        check_turn(request, turn, vocabulary=7, sampling=SAMPLING, quorum=quorum)


def test_right_answers_pass() -> None:
    nothing: dict[str, Any] = {"tokens": (), "sampler_logprobs": ()}
    check(answers())
    check(answers(**nothing, stop_reason=StopReason.DEADLINE))
    check(answers(**nothing, stop_reason=StopReason.ABANDONED), quorum=Quorum(prompts=1))
    check(answers(sampler_logprobs=(-1e9, 1e-6)))
    check(answers(sampler_entropies=(-1e-6, 0.5)))
    check([], [])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sampler_logprobs": (-0.5,)}, "has 1 log-probs for 2 tokens"),
        ({"sampler_logprobs": ()}, "has 0 log-probs"),
        ({"sampler_logprobs": (-0.5, 0.3)}, "log-prob 0.3 at 1, expected a finite number of at most 0"),
        ({"sampler_logprobs": (float("nan"), -0.5)}, "log-prob nan at 0"),
        ({"sampler_logprobs": (-float("inf"), -0.5)}, "log-prob -inf at 0"),
        ({"sampler_logprobs": (None, -0.5)}, "log-prob None at 0"),
        ({"sampler_logprobs": (False, -0.5)}, "log-prob False at 0"),
        ({"sampler_logprobs": ("-0.5", -0.5)}, "log-prob '-0.5' at 0"),
        ({"sampler_entropies": (0.5,)}, "has 1 entropies for 2 tokens"),
        ({"sampler_entropies": (0.5, -0.3)}, "entropy -0.3 at 1, expected a finite number of at least 0"),
        ({"sampler_entropies": (float("nan"), 0.5)}, "entropy nan at 0"),
        ({"sampler_entropies": (0.5, float("inf"))}, "entropy inf at 1"),
        ({"sampler_entropies": (None, 0.5)}, "entropy None at 0"),
        ({"tokens": (5, 7)}, "token 7 at 1, expected a whole number from 0 to 6"),
        ({"tokens": (-1, 6)}, "token -1 at 0"),
        ({"tokens": (5.0, 6)}, r"token 5\.0 at 0"),
        ({"tokens": (True, 6)}, "token True at 0"),
        ({"tokens": (None, 6)}, "token None at 0"),
        ({"prompt_tokens": (1, 2, 3)}, "belongs to another prompt"),
        ({"prompt_tokens": ()}, "belongs to another prompt"),
        ({"version": 2}, "sampled by policy version 2, expected 3"),
        ({"temperature": 0.7}, r"sampled at temperature 0\.7, expected 1\.0"),
        ({"tokens": (1, 2, 3), "sampler_logprobs": (-1.0,) * 3}, "has 3 tokens, more than the 2 that were allowed"),
        ({"stop_reason": StopReason.ABANDONED}, "was abandoned, though every answer is waited for"),
        ({"tokens": (), "sampler_logprobs": ()}, "is empty, though it ended by 'stop'"),
    ],
)
def test_a_wrong_answer_is_refused_by_name(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=rf"prompt 'p/1', sample 2, .*{message}"):
        check(answers(**changed))


def test_answers_in_another_order_are_refused() -> None:
    with pytest.raises(EngineError, match="belongs to another prompt"):
        check(answers()[::-1])


@pytest.mark.parametrize("turn", [None, {"tokens": [1]}, "text", answers()])
def test_what_is_no_turn_is_refused(turn: Any) -> None:
    with pytest.raises(EngineError, match=r"prompt 'p/1', sample 2, is .*, expected a turn"):
        check([*answers()[:2], turn])


@pytest.mark.parametrize("served", [2, 4])
def test_another_version_than_the_learners_is_refused_before_sampling(served: int) -> None:
    check_version(3, 3)
    with pytest.raises(EngineError, match=f"serves policy version {served}, but the learner is at 3"):
        check_version(served, 3)
