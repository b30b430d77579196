"""What a run on Ray says and refuses before Ray is asked; none of it needs Ray."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch

from coterie import machine
from coterie.build import services
from coterie.cluster import ray_session
from coterie.cluster.ray_actor import ServiceActor
from coterie.cluster.sockets import descendants, open_to_others
from coterie.config.load import load
from coterie.config.schema import RunConfig
from coterie.errors import ConfigError
from coterie.policy.ranks import Ranks, Store
from coterie.policy.shared_memory import SharedWeights


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cluster.host", "rya"], r"cluster.host = 'rya'.*expected .*did you mean 'ray'"),
        (["--cluster.adress", "auto"], r"unknown setting cluster.adress .*did you mean cluster.address"),
        (["--cluster.host", "ray", "--cluster.placement", "STRICT_PAK"], "did you mean 'STRICT_PACK'"),
        (["--cluster.address", "auto"], 'address = \'auto\' is of Ray, and host = "local"; set host = "ray"'),
        (["--cluster.host", "processes", "--cluster.num_gpus", "1"], "num_gpus = 1.0 is of Ray"),
        (["--cluster.host", "ray", "--cluster.address", "ray://a:10001"], "expected HOST:PORT of the head, or auto"),
        (["--cluster.host", "ray", "--engine.python", "x/python"], "a Ray actor has that of its node"),
    ],
)
def test_settings_of_ray_that_do_not_fit_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(words)


def test_without_ray_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_session, "find_spec", lambda name: None)
    config = RunConfig.model_validate({"cluster": {"host": "ray"}})
    with pytest.raises(ConfigError, match=r'cluster.host = "ray" needs Ray: .*pip install .*ray'):
        services.require_host(config)
    services.require_host(RunConfig())


def test_an_actor_that_would_see_no_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "require_ray", lambda: None)
    monkeypatch.setattr(services, "device_of", lambda config: torch.device("cuda", 0))
    with pytest.raises(ConfigError, match=r"cluster.num_gpus = 0 with the policy on a GPU"):
        services.require_host(RunConfig.model_validate({"cluster": {"host": "ray"}}))
    services.require_host(RunConfig.model_validate({"cluster": {"host": "ray", "num_gpus": 0.5}}))


def test_a_dry_run_says_what_would_be_placed() -> None:
    cluster = {"host": "ray", "learners": 3, "threads": 2, "num_gpus": 0.5}
    config = RunConfig.model_validate({"cluster": cluster, "engine": {"replicas": 2}})
    assert services.all_cpus(config) == 8
    assert services.placement_words(config) == (
        "on a Ray of its own on 127.0.0.1, PACK; engine-0, engine-1: CPU 2, GPU 0.5; learner-1, learner-2: CPU 2 each; "
        "the run itself asks for none"
    )
    config = RunConfig.model_validate({"cluster": {"host": "ray", "threads": 1, "address": "auto"}})
    assert services.placement_words(config).startswith("on the cluster at auto, PACK; engine-0: CPU 1 each")


def test_doctor_names_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(machine, "_version", lambda package: "2.60.0")
    (line,) = [line for line in machine.plan(machine.facts(), [], "2") if line.startswith("hosts")]
    assert 'with "ray" actors of Ray 2.60.0' in line
    assert '("auto": 10.0.0.1:6379, of RAY_ADDRESS)' in line
    monkeypatch.setattr(machine, "_version", lambda package: None)
    (line,) = [line for line in machine.plan(machine.facts(), [], "2") if line.startswith("hosts")]
    assert 'cluster.host = "ray" needs the extra ray' in line


def test_sockets_that_others_reach_are_found() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))):
        assert open_to_others([os.getpid()]) == []
        for host, family in (("0.0.0.0", socket.AF_INET), ("::", socket.AF_INET6)):
            try:
                server = socket.create_server((host, 0), family=family)
            except OSError:
                continue  # no IPv6 here
            with closing(server):
                expected = f"{host}:{server.getsockname()[1]} (process {os.getpid()})"
                assert open_to_others([os.getpid()]) == [expected]


def test_children_of_children_are_found() -> None:
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert {os.getpid(), process.pid, child} <= descendants(os.getpid())
    os.kill(child, 9)
    process.communicate("")


def test_an_actor_reads_weights_into_memory_of_its_own_and_answers_as_a_process_does() -> None:
    """Without Ray: its methods are those of any object."""
    weights = {"a": torch.randn(3, 5, dtype=torch.bfloat16), "none": torch.empty(0, 4), "c": torch.tensor(2.5)}
    sent = SharedWeights.of(weights)
    sent.write(weights)
    memory = SharedWeights.laid_out(sent.slots)
    assert len(memory.content) == len(sent.content)
    memory.content[:] = sent.content
    for name, tensor in memory.tensors().items():
        assert torch.equal(tensor, weights[name])
    memory.close()

    actor = ServiceActor()
    missing = json.loads(actor.begin(json.dumps({"target": "cluster_hosts:recited", "arguments": {"at": 1}})))
    assert "a bug: TypeError" in missing["error"], "what it cannot build is said, as by a process"
    order = {"target": "cluster_hosts:recited", "arguments": {"weights": {"slots": sent.slots}}}
    assert json.loads(actor.begin(json.dumps(order))) == {"id": 0}
    content = np.frombuffer(sent.content, dtype=np.uint8)
    answer = json.loads(actor.answer(json.dumps({"id": 7, "calls": [["commit", 3, 1], ["step"]]}), content))
    assert answer == {"id": 7, "ended": [], "value": []}
    assert actor._memory is not None
    assert bytes(actor._memory.content) == bytes(sent.content)
    assert "a bug" in json.loads(actor.answer(json.dumps({"id": 8, "calls": [["nothing"]]})))["error"]
    actor.end()
    sent.close()


def test_ranks_of_other_machines_meet_at_a_port_of_the_first() -> None:
    """Rank 0 listens at the address that it is given, and each other at the one from which it reached rank 0."""
    store = Store.port("127.0.0.1", 2)
    assert store.name.startswith("tcp://127.0.0.1:")
    ranks: list[Any] = []
    other = threading.Thread(target=lambda: ranks.append(Ranks(1, 2, store.name, start_s=20, timeout_s=20)))
    other.start()
    first = Ranks(0, 2, store, start_s=20, timeout_s=20)
    other.join()
    assert open_to_others([os.getpid()]) == []
    total = torch.ones(3)

    def add() -> None:
        ranks[0]._reduce(torch.full((3,), 2.0))

    other = threading.Thread(target=add)
    other.start()
    first._reduce(total)
    other.join()
    assert total.tolist() == [3.0] * 3
    first.close()
    ranks[0].close()
