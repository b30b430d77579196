"""What an engine answers is checked before anything is scored or trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from coterie.engines.base import Request
from coterie.engines.contract import check_turns
from coterie.errors import EngineError
from coterie.types import SampleKey, StopReason, Turn

REQUESTS = [
    Request(key=SampleKey(seed=0, version=3, prompt="p/1", sample=k), prompt_tokens=(1, 2, 3 + k)) for k in range(3)
]


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
    return [Turn(**one) for one in facts]


def test_right_answers_pass() -> None:
    check_turns(REQUESTS, answers(), vocabulary=7)
    check_turns(REQUESTS, answers(tokens=(), sampler_logprobs=()), vocabulary=7)
    check_turns(REQUESTS, answers(sampler_logprobs=(-1e9, 1e-6)), vocabulary=7)
    check_turns([], [], vocabulary=7)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sampler_logprobs": (-0.5,)}, "has 1 log-probs for 2 tokens"),
        ({"sampler_logprobs": ()}, "has 0 log-probs"),
        ({"sampler_logprobs": (-0.5, 0.3)}, "log-prob 0.3 at 1, expected a finite number of at most 0"),
        ({"sampler_logprobs": (float("nan"), -0.5)}, "log-prob nan at 0"),
        ({"sampler_logprobs": (-float("inf"), -0.5)}, "log-prob -inf at 0"),
        ({"sampler_logprobs": (None, -0.5)}, "log-prob None at 0"),
        ({"sampler_logprobs": (False, -0.5)}, "log-prob False at 0"),
        ({"sampler_logprobs": ("-0.5", -0.5)}, "log-prob '-0.5' at 0"),
        ({"tokens": (5, 7)}, "token 7 at 1, expected a whole number from 0 to 6"),
        ({"tokens": (-1, 6)}, "token -1 at 0"),
        ({"tokens": (5.0, 6)}, r"token 5\.0 at 0"),
        ({"tokens": (True, 6)}, "token True at 0"),
        ({"tokens": (None, 6)}, "token None at 0"),
        ({"prompt_tokens": (1, 2, 3)}, "belongs to another prompt"),
        ({"prompt_tokens": ()}, "belongs to another prompt"),
        ({"version": 2}, "sampled by policy version 2, expected 3"),
    ],
)
def test_a_wrong_answer_is_refused_by_name(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(EngineError, match=rf"prompt 'p/1', sample 2, .*{said}"):
        check_turns(REQUESTS, answers(**changed), vocabulary=7)


@pytest.mark.parametrize("turns", [[], answers()[:2], [*answers(), *answers()]])
def test_missing_and_surplus_answers_are_refused(turns: Sequence[Turn]) -> None:
    with pytest.raises(EngineError, match=rf"answered {len(turns)} of 3 requests"):
        check_turns(REQUESTS, turns, vocabulary=7)


def test_answers_in_another_order_are_refused() -> None:
    with pytest.raises(EngineError, match="belongs to another prompt"):
        check_turns(REQUESTS, answers()[::-1], vocabulary=7)
