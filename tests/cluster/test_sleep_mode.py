"""Engine services that give their memory back while the learner updates, and are woken by the next request."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cluster_hosts import ThreadHost, process_host
from cluster_pools import SAMPLING, Make, expected, requests, scripted_pools
from coterie import launch
from coterie.build import services
from coterie.cluster.engine_pool import EnginePool
from coterie.cluster.hosts import ChildService
from coterie.cluster.vllm_engine import VllmEngine
from coterie.config.schema import RunConfig
from coterie.errors import ConfigError, EngineError
from coterie.policy.shared_memory import ServiceWeights, SharedWeights
from engines_for_tests import Codec
from runs_for_tests import fingerprint, make_config
from tiny_models import tiny_policy


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Pools of scripted services, closed at the end, and what they report."""
    monkeypatch.setenv("PYTHONPATH", "")
    with scripted_pools(lambda names: process_host(tmp_path)) as pool:
        yield pool


def test_a_service_is_woken_by_a_request_with_or_without_a_new_version(make: Make, tmp_path: Path) -> None:
    file = tmp_path / "diary"
    engine, _ = make(target="diary", sleeps=True, file=str(file))
    assert engine.generate(requests(), SAMPLING) == expected(requests())
    engine.sleep()
    engine.sleep()
    assert engine.generate(requests(), SAMPLING) == expected(requests()), "an evaluation of the same version"
    engine.sleep()
    engine.commit(1)
    engine.sleep()  # nothing was asked since the commit: it sleeps already
    assert engine.generate(requests(1), SAMPLING) == expected(requests(1))
    assert file.read_text().split() == ["load", "rest", "rest", "load", "rest", "load"]


def test_without_the_setting_nothing_sleeps(make: Make, tmp_path: Path) -> None:
    engine, _ = make(target="diary", file=str(tmp_path / "diary"))
    engine.generate(requests(), SAMPLING)
    engine.sleep()
    assert (tmp_path / "diary").read_text().split() == ["load"]


def test_it_does_not_sleep_while_requests_are_open(make: Make, tmp_path: Path) -> None:
    engine, _ = make(target="diary", sleeps=True, file=str(tmp_path / "diary"))
    engine.submit(requests()[0], SAMPLING)
    with pytest.raises(EngineError, match="1 requests are open"):
        engine.sleep()


@pytest.mark.parametrize("asleep", [True, False])
def test_a_service_that_is_lost_around_its_sleep_is_replaced(make: Make, asleep: bool) -> None:
    engine, reports = make(sleeps=True)
    engine.generate(requests(), SAMPLING)
    if asleep:
        engine.sleep()
    kill(engine)
    engine.sleep()
    assert len(reports) == 1
    engine.commit(1)
    assert engine.generate(requests(1), SAMPLING) == expected(requests(1))


def kill(engine: EnginePool) -> None:
    (member,) = engine._members
    assert isinstance(member.service, ChildService)
    member.service.process.kill()
    member.service.process.wait()


def test_weights_without_memory_are_read_again_to_the_bit() -> None:
    policy = tiny_policy("llama", dtype=torch.float64)
    before = {name: parameter.detach().clone() for name, parameter in policy.parameters().items()}
    shared = SharedWeights.of(before)
    shared.write(before)
    weights = ServiceWeights(shared, policy.parameters())
    weights.release()
    assert {parameter.untyped_storage().nbytes() for parameter in policy.parameters().values()} == {0}
    for _ in range(2):
        weights.load()
        assert all(torch.equal(policy.parameters()[name], tensor) for name, tensor in before.items())
    shared.close()


def test_a_run_has_the_bits_of_one_whose_engine_stays_awake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "host_for", lambda *args, **options: ThreadHost())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    changed: dict[str, Any] = {"steps": 3, "eval": {"every": 2}}
    awake = launch.train(make_config(tmp_path, name="awake", **changed))
    sleeping = {"cluster": {"host": "processes"}, "engine": {"sleep_mode": True}}
    slept = launch.train(make_config(tmp_path, name="slept", **changed, **sleeping))
    assert fingerprint(slept) == fingerprint(awake)


def test_vllm_gets_its_weights_before_its_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order that vLLM's sleep mode asks for: old weights, new ones and the cache are never there at once."""
    calls: list[Any] = []

    class FakeLLMEngine:
        def __getattr__(self, name: str) -> Any:
            return lambda *words, **named: calls.append((name, *words[:1], *named.values()))

    fake: Any = SimpleNamespace(RequestOutputKind=None)
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", fake)
    engine = VllmEngine(FakeLLMEngine(), vocabulary=97, context=64, stop_ids=sorted(Codec.stop_ids))
    engine.load(0, [])
    awake = [name for name, *_ in calls]
    assert awake == ["collective_rpc", "reset_prefix_cache"]
    calls.clear()
    engine.sleep()
    engine.load(0, [])
    assert [call[:2] for call in calls] == [
        ("sleep", 2),
        ("wake_up", ["weights"]),
        ("collective_rpc", "read_shared_weights"),
        ("wake_up", ["kv_cache"]),
        ("reset_prefix_cache",),
    ]
    calls.clear()
    sizes: dict[str, Any] = {"vocabulary": 97, "context": 64, "stop_ids": []}
    VllmEngine(FakeLLMEngine(), **sizes, adapter={"r": 4}).sleep()
    assert calls == [("sleep", 1)], "nobody would bring the base of an adapter back"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"engine": {"sleep_mode": True}}, "reads the learner's weights in place; set cluster.host"),
        ({"engine": {"sleep_mode": True, "lag": 1}, "cluster": {"host": "processes"}}, "they sample then"),
        ({"engine": {"enable_lora": True}}, r"is of a LoRA run with vLLM; set engine.name"),
        (
            {"engine": {"enable_lora": True, "name": "vllm"}, "cluster": {"host": "processes"}},
            r"is of a LoRA run with vLLM; set engine.name",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        RunConfig.model_validate(changed)
