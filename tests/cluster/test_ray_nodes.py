"""Ray over several nodes, and what a run leaves and survives: nodes lost and cut off, a full object store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cluster_hosts import RAY, alive
from coterie import launch
from coterie.cluster import ray_session
from coterie.cluster.sockets import descendants
from ray_runs import clean_environment, run_elsewhere, three_nodes, told, wait_until
from runs_for_tests import fingerprint, make_config

pytestmark = [
    pytest.mark.skipif(not RAY, reason="COTERIE_RAY is not set; `python3 bootstrap.py cluster` sets it"),
    pytest.mark.filterwarnings("default"),
]


def test_nothing_outlives_a_run_that_is_killed(tmp_path: Path) -> None:
    process = run_elsewhere(tmp_path, "killed", 500, {"host": "ray"})
    pids = told(process, "step")
    assert len(pids) > 6
    process.kill()
    process.communicate()
    wait_until(lambda: not any(map(alive, pids[1:])), 150.0)
    ray_session._sweep()
    session = ray_session._session
    left = list(ray_session._root().glob(f"{ray_session.PREFIX}*"))
    assert left == ([] if session is None else [session.folder]), "what a killed run left is swept by the next"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Address and variables of a cluster of three nodes."""
    with three_nodes(tmp_path) as place:
        yield place


def test_a_cluster_is_joined_and_a_lost_node_is_made_good(
    tmp_path: Path, monkeypatch: Any, cluster: tuple[str, dict[str, str]]
) -> None:
    """The numbers are those of one process, though the node of the engine is killed after the first step."""
    settings, secret = joined(cluster)
    process = run_elsewhere(tmp_path, "joined", 4, settings, **secret)
    os.kill(raylet_of(process), signal.SIGKILL)
    output, _ = process.communicate("\n", timeout=300)
    assert process.returncode == 0, output
    assert "a new one makes its" in output
    assert fingerprint(tmp_path / "runs" / "joined") == fingerprint(alone(tmp_path, monkeypatch))
    crowded = settings | {"learners": 3, "start_s": 5.0}
    process = run_elsewhere(tmp_path, "crowded", 2, crowded, **secret)
    process.communicate("\n", timeout=300)
    assert process.returncode != 0, "one node is left, with one CPU"


def test_a_node_that_is_cut_off_is_replaced_and_does_no_harm_when_it_is_back(
    tmp_path: Path, monkeypatch: Any, cluster: tuple[str, dict[str, str]]
) -> None:
    """As by a network that is cut: connections stay open, and nothing answers. All processes of the node are frozen."""
    settings, secret = joined(cluster)
    process = run_elsewhere(tmp_path, "joined", 4, settings | {"timeout_s": 5.0}, **secret)
    raylet = raylet_of(process)
    node = {raylet, *descendants(raylet)}
    for pid in node:
        os.kill(pid, signal.SIGSTOP)
    process.stdin.write("\n")
    process.stdin.flush()
    told(process, "event", "a new one makes its")
    for pid in node:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert fingerprint(tmp_path / "runs" / "joined") == fingerprint(alone(tmp_path, monkeypatch))


def joined(cluster: tuple[str, dict[str, str]]) -> tuple[dict[str, Any], dict[str, str]]:
    """Settings of a run on the cluster, and variables of its environment."""
    address, secret = cluster
    return {"host": "ray", "address": address, "threads": 1, "start_s": 120.0}, secret


def raylet_of(process: Any) -> int:
    """Process of Ray on the node of the run's engine, once the first step is over."""
    (actor,) = told(process, "actors")
    raylet = int(Path(f"/proc/{actor}/stat").read_text().rpartition(")")[2].split()[1])
    assert b"raylet" in Path(f"/proc/{raylet}/cmdline").read_bytes()
    return raylet


def alone(folder: Path, monkeypatch: Any) -> Path:
    """The same run in one process."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    return launch.train(make_config(folder, name="alone", steps=4, eval={"every": 2}))


STORE = """
import numpy as np, torch
from coterie.cluster.ray_host import StoredWeights
from coterie.cluster.ray_session import session_for
from coterie.errors import EngineError

session = session_for("", 1)
others = [session.ray.put(np.zeros(10_000_000, dtype=np.uint8)) for _ in range({others})]
weights = {{"weight": torch.arange(5_000_000, dtype=torch.float32)}}
memory = StoredWeights(session, weights)
try:
    memory.write(weights)
    back = session.ray.get(memory.reference)
    print("read back", bool((back.view(np.float32)[: 5_000_000] == weights["weight"].numpy()).all()))
except EngineError as error:
    print("refused:", error)
session.release()
"""


@pytest.mark.parametrize(
    ("others", "variables", "expected"),
    [
        (2, {}, "read back True"),
        (12, {}, "read back True"),  # Ray moves others to the disk
        (7, {"RAY_local_fs_capacity_threshold": "0.0"}, "refused: Ray's object store has no room for 20000000 bytes"),
    ],
    ids=["room", "full", "the disk full too"],
)
def test_an_object_store_that_is_full(tmp_path: Path, others: int, variables: dict[str, str], expected: str) -> None:
    """A store of 80 MB, and weights of 20 MB."""
    environment = clean_environment(tmp_path) | {"RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": "80000000"} | variables
    code = STORE.format(others=others)
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=180)
    assert expected in process.stdout, process.stdout + process.stderr
