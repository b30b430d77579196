from __future__ import annotations

import pytest

from coterie.engines.base import Request, Sampling
from coterie.engines.scripted import ScriptedEngine
from coterie.errors import EngineError
from coterie.types import SampleKey, StopReason


def request(sample: int, version: int = 0) -> Request:
    return Request(key=SampleKey(seed=0, version=version, prompt="q", sample=sample), prompt_tokens=(1, 2))


def test_it_says_what_the_script_says() -> None:
    engine = ScriptedEngine(lambda request: [7] * request.key.sample)
    turns = engine.generate([request(1), request(9)], Sampling(temperature=1.0, max_tokens=4))
    assert [turn.tokens for turn in turns] == [(7,), (7, 7, 7, 7)]
    assert [turn.stop_reason for turn in turns] == [StopReason.STOP, StopReason.LENGTH]
    assert turns[1].sampler_logprobs == pytest.approx([-0.6931] * 4, abs=1e-3)


def test_versions_are_checked_as_in_a_real_engine() -> None:
    engine = ScriptedEngine(lambda request: [7])
    engine.commit(3)
    assert engine.version == 3
    with pytest.raises(EngineError, match="version 0, but the engine serves 3"):
        engine.generate([request(0)], Sampling(temperature=1.0, max_tokens=4))
