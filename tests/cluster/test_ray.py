"""Services in real Ray actors: nobody else reaches them, lost ones are replaced, none stays, numbers are the same.

`python3 bootstrap.py cluster` installs Ray and runs this; Ray starts once for the module.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster_hosts import RAY
from cluster_pools import SAMPLING, Make, expected, requests, scripted_pools
from coterie import launch
from coterie.cluster.engine_pool import EnginePool
from coterie.cluster.hosts import UnplacedError
from coterie.cluster.ray_host import RayHost, RayService
from coterie.cluster.ray_session import RaySession, session_for
from coterie.cluster.sockets import descendants, open_to_others
from coterie.errors import ConfigError, EngineError, LearnerError
from coterie.types import Turn
from ray_runs import wait_until
from runs_for_tests import Watch, fingerprint, make_config

pytestmark = [
    pytest.mark.skipif(not RAY, reason="COTERIE_RAY is not set; `python3 bootstrap.py cluster` sets it"),
    pytest.mark.filterwarnings("default"),
]
TESTS = Path(__file__).parents[1]
CPUS = 8
"""That Ray is told of; none of them is asked for its time at once."""
TINY: dict[str, Any] = {"steps": 4, "eval": {"every": 2}}


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RaySession]:
    """A Ray of this process's own, kept for all tests; its workers find the modules of the tests."""
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)
    session = session_for("", CPUS)
    yield session
    folder = session.folder
    assert folder is not None
    session.release()
    patch.undo()
    assert not folder.exists(), "its folder, with the token, is gone"
    assert not session.ray.is_initialized()
    wait_until(lambda: not ray_processes(os.getpid()))


def ray_processes(pid: int) -> list[str]:
    """Command lines of Ray's processes below a process."""
    lines = []
    for child in descendants(pid) - {pid}:
        try:
            words = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if "ray" in words and Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
            lines.append(words[:120])
    return lines


def host(logs: Path | None = None, names: tuple[str, ...] = ("engine-0",), **changed: Any) -> RayHost:
    options: dict[str, Any] = {"address": "", "resources": {"CPU": 1}, "total": CPUS, "start_s": 120.0}
    return RayHost(names=names, logs=logs, **(options | changed))


@pytest.fixture
def make(ray: RaySession, tmp_path: Path) -> Iterator[Make]:
    """Pools of scripted engines in actors, closed at the end, and what they report."""
    with scripted_pools(lambda names: host(tmp_path, names)) as pool:
        yield pool
    assert ray.users == 1, "hosts give the session back"


def actors(engine: EnginePool) -> list[RayService]:
    return [member.service for member in engine._members if isinstance(member.service, RayService)]


def test_nobody_else_reaches_it(ray: RaySession) -> None:
    """Neither from another machine, for no socket is open to one, nor from this one without the token."""
    assert ray.folder is not None
    pids = descendants(os.getpid())
    assert len(pids) > 5
    assert open_to_others(pids) == []
    assert all((ray.folder / name).exists() for name in ("r", "token", "lock"))
    listening = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True).stdout.splitlines()
    ours = [line for line in listening if any(f"pid={pid}," in line for pid in pids)]
    assert len(ours) > 3
    assert all(line.split()[3].startswith(("127.0.0.1:", "[::1]:", "[::ffff:127.0.0.1]:")) for line in ours), ours
    assert stat.S_IMODE(ray.folder.stat().st_mode) == 0o700
    token = ray.folder / "token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert len(token.read_text()) == 64
    address = ray.ray.get_runtime_context().gcs_address
    code = f"import ray; ray.init(address={address!r}, log_to_driver=False, logging_level='ERROR'); ray.nodes()"
    other = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    process = subprocess.run([sys.executable, "-c", code], env=other, capture_output=True, text=True, timeout=120)
    assert process.returncode != 0, "another token opens nothing"


def test_actors_get_their_share_of_a_busy_machine(make: Make) -> None:
    """Ray lowers the priority of its workers, unless it is told not to."""
    engine, _ = make()
    engine.generate(requests(), SAMPLING)
    (service,) = actors(engine)
    assert service.place is not None
    assert os.getpriority(os.PRIO_PROCESS, service.place["pid"]) == os.getpriority(os.PRIO_PROCESS, 0)


@pytest.mark.parametrize("how", ["dies", "hangs", "SIGKILL", "SIGSTOP"])
def test_a_lost_actor_is_replaced_and_nobody_can_tell(make: Make, tmp_path: Path, how: str) -> None:
    trouble = {} if how.startswith("SIG") else {"at": 7, "kind": how, "once": str(tmp_path / "once")}
    engine, reports = make(2, timeout_s=60.0 if how in ("dies", "SIGKILL") else 2.0, **trouble)
    asked = requests()
    numbers = [engine.submit(request, SAMPLING) for request in asked]
    turns: dict[int, Turn] = {}
    passes = 0
    while engine.unfinished:
        if how.startswith("SIG") and passes == 3:
            place = actors(engine)[0].place
            assert place is not None
            os.kill(place["pid"], getattr(signal, how))
        turns.update(engine.step())
        passes += 1
    assert [turns[number] for number in numbers] == expected(asked)
    (report,) = reports
    assert "a new one makes its" in report
    assert ("did not answer within 2 s" if how in ("hangs", "SIGSTOP") else "was lost by Ray") in report
    if not how.startswith("SIG"):
        assert f"it last printed '{how} at pass 7'" in report
        assert f"{how} at pass 7" in (tmp_path / "engine-0.log").read_text() + (tmp_path / "engine-1.log").read_text()


def test_an_actor_that_is_lost_again_and_again_ends_the_run(make: Make) -> None:
    engine, reports = make(restarts=1, at=2, kind="dies")
    with pytest.raises(EngineError, match=r"lost 2 times while policy version 0 .* cluster.restarts allows 1"):
        engine.generate(requests(), SAMPLING)
    assert len(reports) == 1


def test_what_an_engine_in_an_actor_refuses_is_said_here(make: Make) -> None:
    engine, reports = make(at=4, kind="refuses")
    with pytest.raises(EngineError, match=r"^the model returned logits that are not finite$"):
        engine.generate(requests(), SAMPLING)
    assert engine.generate(requests(), SAMPLING) == expected(requests()), "its trouble is over"
    engine, reports = make(kind="start")
    with pytest.raises(EngineError, match="engine-0 cannot start: the model folder is gone"):
        engine.generate(requests(), SAMPLING)
    assert reports == []


def test_what_cannot_be_placed_is_said_in_time(ray: RaySession) -> None:
    """Ray itself would wait for ever."""
    crowded = host(names=("engine-0", "engine-1"), resources={"CPU": CPUS - 1}, start_s=3.0)
    order = {"target": "cluster_hosts:recited", "arguments": {"weights": {"slots": []}}}
    services = [crowded.start(name, order) for name in crowded.names]
    with pytest.raises(
        UnplacedError,
        match=rf"engine-0 on no node within 3 s: the run asks for CPU {CPUS - 1} for each of engine-0, engine-1 "
        rf"\(PACK\), and the cluster has CPU {CPUS} .* on 1 nodes; lower cluster.threads",
    ):
        services[0].receive(60.0)
    for service in services:
        service.kill()
    crowded.close()


def test_another_cluster_than_the_one_in_use_is_refused(ray: RaySession) -> None:
    with pytest.raises(ConfigError, match=r"this process is connected to the Ray at 'this machine, of its own'"):
        session_for("10.0.0.1:6379", 1)


def test_the_same_numbers_wherever_the_parts_live(ray: RaySession, tmp_path: Path, monkeypatch: Any) -> None:
    """Metrics, evaluations, rollouts, prompts and weights, to the bit."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    def trained(name: str, **changed: Any) -> Path:
        return launch.train(make_config(tmp_path, name=name, **TINY, **changed), Watch())

    single = [trained(name, cluster={"host": name}) for name in ("local", "processes", "ray")]
    assert fingerprint(single[0]) == fingerprint(single[1]) == fingerprint(single[2])
    assert (single[2] / "logs" / "engine-0.log").is_file()
    more: dict[str, Any] = {"engine": {"replicas": 2}}
    ranks = {"learners": 2, "threads": 1}
    double = [trained(f"{name}-2", cluster={"host": name, **ranks}, **more) for name in ("processes", "ray")]
    assert fingerprint(double[0]) == fingerprint(double[1])
    assert {path.name for path in (double[1] / "logs").glob("*-*.log")} >= {
        "engine-0.log",
        "engine-1.log",
        "learner-1.log",
    }
    assert ray.users == 1


def test_ranks_with_shards_have_the_numbers_of_child_processes(
    ray: RaySession, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    shards = {"learners": 2, "threads": 1, "strategy": "fsdp"}
    processes, actors = (
        launch.train(make_config(tmp_path, name=name, steps=2, cluster={"host": name, **shards}))
        for name in ("processes", "ray")
    )
    assert fingerprint(processes) == fingerprint(actors)
    assert ray.users == 1


def test_a_lag_on_two_ranks_has_the_numbers_of_child_processes(
    ray: RaySession, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    ranks = {"learners": 2, "threads": 1}
    processes, actors = (
        launch.train(make_config(tmp_path, name=name, **TINY, engine={"lag": 1}, cluster={"host": name, **ranks}))
        for name in ("processes", "ray")
    )
    assert fingerprint(processes) == fingerprint(actors)
    assert ray.users == 1


def test_a_run_whose_actors_are_killed(ray: RaySession, tmp_path: Path, monkeypatch: Any) -> None:
    """An engine is replaced, with the same bits; a learner rank ends the run, and resume gives them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    cluster = {"host": "ray", "learners": 2, "threads": 1}
    whole = launch.train(make_config(tmp_path, name="whole", **TINY, cluster=cluster))
    watch = Kills(monkeypatch, step=1, engine=True)
    replaced = launch.train(make_config(tmp_path, name="replaced", **TINY, cluster=cluster), watch)
    assert fingerprint(replaced) == fingerprint(whole)
    assert any("a new one makes its" in text for text in [text for _, text in watch.notes])
    lost = make_config(tmp_path, name="lost", **TINY, cluster=cluster)
    with pytest.raises(LearnerError, match=r"learner rank 1 was lost by Ray.*coterie resume"):
        launch.train(lost, Kills(monkeypatch, step=3, engine=False))
    launch.resume(Path(lost.runs) / "lost")
    assert fingerprint(Path(lost.runs) / "lost") == fingerprint(whole)


class Kills(Watch):
    """Kills the actor of the engine, or of learner rank 1, when this step has been reported."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int, *, engine: bool) -> None:
        super().__init__()
        self.step, self.engine = step, engine
        begin, self.services = RayService.begin, list[RayService]()
        services = self.services

        def begun(service: RayService, *args: Any) -> None:
            begin(service, *args)
            services.append(service)

        monkeypatch.setattr(RayService, "begin", begun)

    def on_step(self, step: int, metrics: Any, sample: Any) -> None:
        super().on_step(step, metrics, sample)
        if step == self.step:
            name = "engine-0" if self.engine else "learner-1"
            (service,) = [service for service in self.services if service.name == name]
            assert service.place is not None
            os.kill(service.place["pid"], signal.SIGKILL)
