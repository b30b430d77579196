"""Engine services in child processes: lost ones are replaced, hung ones noticed, none outlives its run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster_hosts import ThreadHost, alive, process_host
from cluster_pools import SAMPLING, Make, expected, requests, scripted_pools
from coterie.cluster.engine_pool import EnginePool, ServiceOrder
from coterie.cluster.frames import BrokenStreamError, Frames
from coterie.cluster.hosts import ChildService
from coterie.config.schema import RunConfig
from coterie.errors import ConfigError, EngineError
from coterie.policy.shared_memory import SharedWeights
from coterie.types import Turn

PATIENCE = 10.0


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Pools of scripted services, closed at the end, and what they report."""
    monkeypatch.setenv("PYTHONPATH", "")
    with scripted_pools(lambda names: process_host(tmp_path)) as pool:
        yield pool


def services(engine: EnginePool) -> list[ChildService]:
    return [member.service for member in engine._members if isinstance(member.service, ChildService)]


@pytest.mark.parametrize("kind", ["dies", "hangs"])
@pytest.mark.parametrize("replicas", [1, 2])
def test_a_lost_service_is_replaced_and_nobody_can_tell(make: Make, tmp_path: Path, replicas: int, kind: str) -> None:
    trouble = {"at": 7, "kind": kind, "once": str(tmp_path / "once")}
    engine, reports = make(replicas, timeout_s=0.7 if kind == "hangs" else 60.0, **trouble)
    assert engine.generate(requests(), SAMPLING) == expected(requests())
    (report,) = reports
    cause = "ended with exit code 3" if kind == "dies" else "did not answer within 0.7 s"
    assert f"{cause}; it last printed '{kind} at pass 7'; a new one makes its 7 passes again" in report
    engine.commit(4)
    assert engine.generate(requests(4), SAMPLING) == expected(requests(4))


def test_turns_come_in_the_same_pass_after_a_loss(make: Make) -> None:
    """So that a conversation's next turn joins the same pass as in a run that was left alone."""

    def passes(kill: bool) -> list[list[tuple[int, Turn]]]:
        engine, reports = make()
        for request in requests():
            engine.submit(request, SAMPLING)
        steps = []
        while engine.unfinished:
            if kill and len(steps) in (3, 9):
                services(engine)[0].process.kill()
            steps.append(engine.step())
        assert len(reports) == 2 * kill
        return steps

    assert passes(kill=True) == passes(kill=False)


def test_a_service_that_is_lost_again_and_again_ends_the_run(make: Make) -> None:
    engine, reports = make(restarts=2, at=2, kind="dies")
    with pytest.raises(EngineError, match=r"lost 3 times while policy version 0 .* cluster.restarts allows 2"):
        engine.generate(requests(), SAMPLING)
    assert len(reports) == 2
    assert engine.unfinished == 0


def test_what_the_engine_refuses_is_said_here_and_leaves_nothing_open(make: Make) -> None:
    engine, reports = make(2, at=4, kind="refuses")
    with pytest.raises(EngineError, match=r"^the model returned logits that are not finite$"):
        engine.generate(requests(), SAMPLING)
    assert (engine.unfinished, reports) == (0, [])
    assert engine.generate(requests(), SAMPLING) == expected(requests()), "its trouble is over"


def test_a_bug_in_a_service_is_named_and_its_place_logged(make: Make, tmp_path: Path) -> None:
    engine, _ = make(at=2, kind="bug")
    with pytest.raises(EngineError, match="a bug: KeyError: 'layer 3'"):
        engine.generate(requests(), SAMPLING)
    assert "in step" in (tmp_path / "engine-0.log").read_text()


def test_a_service_that_cannot_start_is_not_tried_again(make: Make) -> None:
    engine, reports = make(kind="start")
    with pytest.raises(EngineError, match="engine-0 cannot start: the model folder is gone"):
        engine.generate(requests(), SAMPLING)
    assert reports == []


def test_aborted_requests_of_a_lost_service_keep_what_was_said(make: Make) -> None:
    engine, reports = make()
    ids = [engine.submit(request, SAMPLING) for request in requests()]
    for _ in range(3):
        engine.step()
    services(engine)[0].process.kill()
    turns = [engine.abort(number) for number in ids]
    whole = expected(requests())
    for turn, full in zip(turns, whole, strict=True):
        assert len(full.tokens) <= 3 if turn is None else turn.tokens == full.tokens[:3]
    assert len(reports) == 1


def test_a_prompt_stays_with_its_service_and_the_others_are_shared_out(make: Make) -> None:
    engine, _ = make(2)
    for request in requests():
        engine.submit(request, SAMPLING)
    assert [len(member.open) for member in engine._members] == [6, 6]
    places = {request.key.prompt: engine._places[request.key.prompt] for request in requests()}
    assert [place.name for place in places.values()] == ["engine-0", "engine-1"] * 2
    engine.close()


def test_the_journal_ends_with_the_call_unless_a_conversation_is_kept(make: Make) -> None:
    engine, _ = make()
    engine.generate(requests(), SAMPLING)
    assert engine._members[0].journal == [["commit", 0, 0]]
    engine.generate([replace(request, may_continue=True) for request in requests()], SAMPLING)
    assert len(engine._members[0].journal) > 12
    engine.commit(1)
    assert engine._members[0].journal == [["commit", 1, 1]]


def test_ctrl_c_in_the_middle_of_an_answer_leaves_nothing_open(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = make()
    engine.generate(requests(), SAMPLING)

    def receive(self: ChildService, seconds: float) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ChildService, "receive", receive)
        with pytest.raises(KeyboardInterrupt):
            engine.generate(requests(), SAMPLING)
    assert (engine.unfinished, services(engine)) == (0, [])
    assert engine.generate(requests(), SAMPLING) == expected(requests())


def test_closing_ends_the_processes(make: Make) -> None:
    engine, _ = make(2)
    engine.generate(requests(), SAMPLING)
    pids = [service.process.pid for service in services(engine)]
    assert all(map(alive, pids))
    engine.close()
    assert not any(map(alive, pids))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_no_service_outlives_its_run(how: signal.Signals, tmp_path: Path) -> None:
    code = f"""
import sys, time
sys.path.insert(0, {os.path.dirname(os.path.dirname(__file__))!r})
from cluster_hosts import process_host
order = {{"target": "cluster_hosts:recited", "arguments": {{"weights": {{}}}}}}
services = [process_host().start(f"engine-{{k}}", order) for k in range(2)]
assert [service.receive(60) for service in services] == [{{"id": 0}}] * 2
print(*(service.process.pid for service in services), flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = [int(word) for word in process.stdout.readline().split()]
    assert len(pids) == 2
    process.send_signal(how)
    process.wait()
    process.stdout.close()
    limit = time.monotonic() + PATIENCE
    while any(map(alive, pids)) and time.monotonic() < limit:
        time.sleep(0.02)
    assert not any(map(alive, pids))


def test_weights_reach_every_service_once_a_version() -> None:
    """Services begin with other weights than the run's, and must sample from the run's."""
    from coterie.engines.embedded import EmbeddedEngine
    from engines_for_tests import Codec
    from tiny_models import tiny_policy

    policy, written = tiny_policy("llama", dtype=torch.float64), []

    def weights() -> dict[str, torch.Tensor]:
        written.append(1)
        return dict(policy.parameters())

    order = ServiceOrder(target="cluster_hosts:computed", arguments={})
    pool = EnginePool(ThreadHost(), order, weights, vocabulary=97, context=policy.context, replicas=2)
    alone = EmbeddedEngine(policy, Codec(), max_num_seqs=4)
    for version in range(3):
        with torch.no_grad():
            for parameter in policy.parameters().values():
                parameter.mul_(1.0 + 0.1 * version)
        pool.commit(version)
        alone.commit(version)
        for _ in range(2):
            turns, same = (engine.generate(requests(version), SAMPLING) for engine in (pool, alone))
            assert [turn.tokens for turn in turns] == [turn.tokens for turn in same]
    assert len(written) == 1 + 3
    pool.close()


def test_shared_weights_are_read_back_to_the_bit_and_refuse_another_model() -> None:
    weights = {
        "a": torch.randn(3, 5, dtype=torch.bfloat16),
        "b": torch.randn(7, dtype=torch.float64),
        "none": torch.empty(0, 4),
        "scalar": torch.tensor(2.5),
    }
    memory = SharedWeights.of(weights)
    memory.write(weights)
    other = SharedWeights(memory.file, memory.slots)
    copy = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    other.read_into(copy)
    for name, tensor in weights.items():
        assert torch.equal(copy[name], tensor)
    with pytest.raises(EngineError, match=r"other weights than the learner's \(a, z\)"):
        other.read_into({"z": copy["a"], "b": copy["b"]} | {name: copy[name] for name in ("none", "scalar")})
    memory.close()


def test_a_stream_that_says_nonsense_is_broken() -> None:
    import socket

    for data, message in (
        (b"\xff\xff\xff\xff", "expected at most"),
        (b"\0\0\0\2{]", "no JSON"),
        (b"\0\0\0\2[]", "expected a JSON object"),
        (b"\0\0\0\7{", "closed its stream"),
    ):
        ours, theirs = socket.socketpair()
        theirs.sendall(data)
        theirs.close()
        frames = Frames(ours)
        with pytest.raises(BrokenStreamError, match=message):
            frames.receive(1.0)
        frames.close()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"engine": {"replicas": 2}}, 'cluster.host = "local" has none; set cluster.host = "processes"'),
        ({"engine": {"draft": "history"}, "cluster": {"host": "processes"}}, "engine.draft"),
        (
            {"engine": {"name": "http", "base_url": "http://127.0.0.1:1/v1"}, "cluster": {"host": "processes"}},
            "lives elsewhere already",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        RunConfig.model_validate(changed)
