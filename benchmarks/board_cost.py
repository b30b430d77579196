"""What a board costs the training that it shows: python -m benchmarks.board_cost RUNS RUN, while the run trains.

    coterie train @ recipes/group-aware/config.toml --name watched &
    python -m benchmarks.board_cost runs watched --seconds 300

The board runs in a process of its own, as `train --board` starts it. A client asks it as open pages do: after each
change that the board tells of it asks for every page of the run, and after an answer that took t not again within 30 t.
That is more than a person sees, who has one page open. The figure is the board's processor time by that of the training
in the same seconds; what the board's start and the first answers take, once, is told apart.
"""

from __future__ import annotations

import argparse
import http.client
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

from coterie import machine
from coterie.board.server import beside
from coterie.runs.lock import lock_holder

QUESTIONS = ("run", "curves", "doctor", "parts", "regions", "map", "prompts")
"""Of a run's overview and of its page of groups."""
SHARE, LONGEST = 30, 20.0
"""Of web/base.js: a question waits as many times the seconds that its answer took, and this long at most."""


@dataclass(slots=True)
class Pages:
    """The pages of a run, all of them open."""

    host: str
    token: str
    run: str
    answers: int = 0
    problems: list[str] = field(default_factory=list)
    _pause: dict[str, float] = field(default_factory=dict)
    """Question → when it may be asked again."""

    @classmethod
    def at(cls, address: str, run: str) -> Pages:
        host, _, token = address.removeprefix("http://").partition("/?token=")
        return cls(host, token.partition("#")[0], run)

    def follow(self) -> None:
        """Ask again after each change that the board tells of, until it ends."""
        with suppress(OSError):  # the board has ended
            for line in iter(self._request("/api/changes", None).readline, b""):
                if line.startswith(b"data: [") and f'"{self.run}"'.encode() in line:
                    self.ask_all()

    def ask_all(self) -> None:
        """Every question that may be asked."""
        for question in QUESTIONS:
            if time.monotonic() >= self._pause.get(question, 0.0):
                began = time.monotonic()
                response = self._request(f"/api/{question}?{urlencode({'run': self.run})}", 120)
                body = response.read()
                self.answers += 1
                if response.status != 200:
                    self.problems.append(f"{question}: {response.status} {body[:200]!r}")
                self._pause[question] = time.monotonic() + min(SHARE * (time.monotonic() - began), LONGEST)

    def _request(self, path: str, timeout: float | None) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(self.host, timeout=timeout)
        headers = {"authorization": f"Bearer {self.token}", "accept-encoding": "gzip"}
        connection.request("GET", path, headers=headers)
        return connection.getresponse()


def processor(pid: int) -> float:
    """Seconds of the processor that a process and its ended children took until now (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def board_of(parent: int) -> int:
    """The board's process, which this one started."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii").split()
    return next(int(pid) for pid in children if b"--beside" in Path(f"/proc/{pid}/cmdline").read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("run", help="one that trains now, on this machine")
    parser.add_argument("--seconds", type=float, default=300.0)
    options = parser.parse_args()
    training = lock_holder(options.runs / options.run)
    if not training:
        raise SystemExit(f"{options.runs / options.run} does not train now; start it first")
    print(f"{machine.facts().line()}; load {os.getloadavg()[0]:.1f}", flush=True)
    with beside(options.runs) as address:
        board = board_of(os.getpid())
        pages = Pages.at(address, options.run)
        pages.ask_all()
        started = processor(board)
        threading.Thread(target=pages.follow, daemon=True).start()
        before = processor(training), processor(board)
        began = time.monotonic()
        while time.monotonic() - began < options.seconds and lock_holder(options.runs / options.run) == training:
            spent = processor(training) - before[0], processor(board) - before[1]
            time.sleep(1.0)
    print(f"in {time.monotonic() - began:.0f} s: training {spent[0]:.1f} s of the processor, board {spent[1]:.1f} s,")
    print(
        f"{100 * spent[1] / max(spent[0], 1e-9):.2f} % of the training's; before, to start and answer {started:.1f} s"
    )
    print(f"{pages.answers} answers; {len(pages.problems)} problems {pages.problems[:3]}")


if __name__ == "__main__":
    main()
