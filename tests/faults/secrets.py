"""What the environment holds must not turn up in anything that a run leaves, and a run listens to nobody."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from faults.cases import Case
from faults.child import TRIAL, Prepare, at_step, log_of
from faults.harness import Harness

CANARIES = {
    "HF_TOKEN": "hf_canaryAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    "WANDB_API_KEY": "canary0123456789abcdef0123456789abcdef01",
    "AWS_SECRET_ACCESS_KEY": "canary/wJalrXUtnFEMI/K7MDENG/bPxRfiCY",
    "OPENAI_API_KEY": "sk-canary-BBBBBBBBBBBBBBBBBBBBBBBB",
    "GITHUB_TOKEN": "ghp_canaryCCCCCCCCCCCCCCCCCCCCCCCC",
    "HTTPS_PROXY": "http://canary:hunter2@127.0.0.1:9",
}
LISTENING = "0A"
"""State of a TCP socket in /proc/net/tcp."""


def leaks(harness: Harness) -> Iterator[Case]:
    """Three attempts with canaries in their environment: killed, ended by a bug, finished."""
    runs = harness.folder("canaries")

    def planted(trap: Prepare) -> Prepare:
        def arm() -> None:
            os.environ |= CANARIES
            trap()

        return arm

    ports = runs / "ports"
    harness.wait(harness.start(runs, planted(at_step(3, lambda: os.kill(os.getpid(), signal.SIGKILL)))))
    harness.wait(harness.start(runs, planted(at_step(4, lambda: {}["a bug"]))))
    last = harness.wait(
        harness.start(runs, planted(at_step(4, lambda: ports.write_text("\n".join(_listening(str(runs)))))))
    )
    problem = log_of(runs) if last.code else None
    problem = problem or harness.differs(runs)
    leaking = [str(path.relative_to(runs)) for path in runs.rglob("*") if path.is_file() and _holds(path)]
    problem = problem or (f"secrets of the environment are in {', '.join(leaking)}" if leaking else None)
    count = sum(path.is_file() for path in runs.rglob("*"))
    yield Case(section="secrets", name="canaries", problem=problem, facts={"files": count, "canaries": len(CANARIES)})
    heard = ports.read_text() if ports.exists() else "not looked at"
    yield Case(section="secrets", name="listening sockets", problem=heard or None)


def _holds(path: Path) -> bool:
    data = path.read_bytes()
    return any(value.encode() in data or value.encode()[::-1] in data for value in CANARIES.values())


def _listening(runs: str) -> list[str]:
    """TCP sockets that this process or a worker of its own listens on."""
    mark = f"{TRIAL}={runs}".encode()
    sockets: set[str] = set()
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            ours = entry.name == str(os.getpid()) or mark in (entry / "environ").read_bytes()
            if entry.name.isdecimal() and ours:
                sockets |= {os.readlink(handle) for handle in (entry / "fd").iterdir()}
    listeners = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == LISTENING and f"socket:[{words[9]}]" in sockets:
                listeners.append(words[1])
    return listeners
