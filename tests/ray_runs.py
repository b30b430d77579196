"""Runs in processes of their own that use Ray, and a cluster of three nodes on this machine."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from coterie.cluster.sockets import descendants

TESTS = Path(__file__).parent
PATIENCE = 20.0


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.05)


RUN = """
import os, sys
sys.path[:0] = {paths!r}
from pathlib import Path
from coterie import launch
from coterie.callbacks import Callback
from coterie.cluster.ray_host import RayService
from coterie.cluster.sockets import descendants
from runs_for_tests import make_config

services, begin = [], RayService.begin

def begun(service, *args):
    begin(service, *args)
    services.append(service)

RayService.begin = begun

class Tells(Callback):
    def on_step(self, step, metrics, sample):
        print("step", step, *descendants(os.getpid()), flush=True)
        print("actors", *(service.place["pid"] for service in services if service.place), flush=True)
        if step == 1:
            sys.stdin.readline()

    def on_event(self, kind, message):
        print("event", message, flush=True)

root = Path({root!r})
os.chdir(root)
launch.train(make_config(root, name={name!r}, steps={steps}, eval={{"every": 2}}, cluster={cluster!r}), Tells())
"""


def run_elsewhere(root: Path, name: str, steps: int, cluster: dict[str, Any], **environment: str) -> Any:
    """A run in a process of its own, which prints all processes below it and its actors, and waits after step 1."""
    paths = [str(TESTS), str(root)]
    code = RUN.format(paths=paths, root=str(root), name=name, steps=steps, cluster=cluster)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=clean_environment(root) | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def clean_environment(root: Path) -> dict[str, str]:
    """The environment as it is without the Ray of this process."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return kept | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(root)])}


def told(process: Any, subject: str, text: str = "") -> list[int]:
    """Numbers in the next line that begins with this word and has this text."""
    for line in process.stdout:
        first, *words = line.split() or [""]
        if first == subject and text in line:
            return [int(word) for word in words if word.isdecimal()]
    raise AssertionError(f"it ended with exit code {process.wait()}")


@contextmanager
def three_nodes(tmp_path: Path) -> Generator[tuple[str, dict[str, str]]]:
    """A cluster of three nodes on this machine, of which the head has no CPU: its address, and its variables."""
    command = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--disable-usage-stats"]
    token, folder = tmp_path / "token", Path(tempfile.mkdtemp(dir="/tmp"))
    token.write_text("1" * 64)
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    head, address = ["--head", "--include-dashboard", "false", "--temp-dir", str(folder)], ""
    nodes: list[subprocess.Popen[bytes]] = []
    try:
        for index in range(3):
            log = tmp_path / f"node-{index}.log"
            words = [*head, "--port", "0", "--num-cpus", "0"] if index == 0 else ["--address", address]
            words += ["--num-cpus", "1"] if index else []
            with log.open("w") as output:
                nodes.append(
                    subprocess.Popen(
                        [*command, *words],
                        env=clean_environment(tmp_path) | secret,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        process_group=0,
                    )
                )
            wait_until(lambda log=log: "Ray runtime started" in log.read_text(), 120.0)
            if not index:
                match = re.search(r"--address='([^']+)'", log.read_text())
                assert match is not None, log.read_text()
                address = match[1]
        yield address, secret
    finally:
        for node in nodes:
            for pid in descendants(node.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            node.wait()
        shutil.rmtree(folder, ignore_errors=True)
