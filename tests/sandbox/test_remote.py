"""The remote sandbox against a small local server of E2B's protocol: what a program does is a result, and what the
service does wrong an error."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from coterie.errors import CoterieError
from coterie.rewards.programs import code
from coterie.sandbox import choice, remote
from coterie.sandbox.base import Limits, SandboxError, Test
from coterie.sandbox.choice import make_sandbox
from coterie.sandbox.remote import Remote
from coterie.tools.base import ToolUnavailableError
from coterie.tools.registry import tools_for


class Service(ThreadingHTTPServer):
    """Runs code on this machine, which the tests' programs may."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.mode, self.refusals, self.apart = "well", [0], True
        """`apart`: the file of the self-test is not there, as on another machine."""
        self.boxes: set[str] = set()
        self.made = 0
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    server: Any

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/sandboxes":
            self.make(body)
        else:
            self.execute(body)

    def make(self, body: dict[str, Any]) -> None:
        assert body["templateID"] == "code-interpreter-v1"
        if self.headers["X-API-Key"] != "geheim":
            return self.reply(401, {"message": "no"})
        if self.server.refusals[0] > 0:
            self.server.refusals[0] -= 1
            return self.reply(429, {"message": "slowly"})
        with self.server.lock:
            self.server.made += 1
            name = f"box{self.server.made}"
            self.server.boxes.add(name)
        made = {"sandboxID": name, "envdAccessToken": "token"}
        return self.reply(201, {"other": 1} if self.server.mode == "odd" else made)

    def execute(self, body: dict[str, Any]) -> None:
        assert self.path.endswith("/execute")
        assert self.headers["X-Access-Token"] == "token"
        mode = self.server.mode
        if mode == "hang":
            time.sleep(3)
        if mode == "broken":
            return self.reply(502, {})
        self.send_response(200)
        self.end_headers()
        if mode == "cut":
            self.wfile.write(b'{"type": "std')
            return None
        items: list[dict[str, Any]] = [{"type": "number_of_executions", "execution_count": 1}]
        if mode == "error":
            items.append({"type": "error", "name": "MemoryError", "value": "", "traceback": ""})
        elif mode == "flood":
            items += [{"type": "stdout", "text": "x" * 1000}] * 3000
        else:
            program = body["code"].replace("coterie-probe", "elsewhere") if self.server.apart else body["code"]
            done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
            parts = [done.stdout[at : at + 999] for at in range(0, len(done.stdout), 999)]
            items += [{"type": "stdout", "text": part, "timestamp": 0} for part in parts]
        self.wfile.write(b"".join(json.dumps(item).encode() + b"\n" for item in items))
        return None

    def do_DELETE(self) -> None:
        self.server.boxes.discard(self.path.rpartition("/")[2])
        self.reply(204, None)

    def reply(self, status: int, value: Any) -> None:
        data = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Write no line a request."""


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    with Service() as server:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv(remote.KEY, "geheim")
        monkeypatch.setenv(remote.API, url)
        monkeypatch.setenv(remote.EXECUTE, f"{url}/{{id}}")
        monkeypatch.setattr(remote, "SPARE_S", 0.5)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()


def test_programs_run_and_boxes_are_removed(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "SPARE_S", 30.0)
    box = Remote()
    tests = [Test(call="double(4)", expected="8"), Test(call="double('a')", expected="'b'")]
    run = box.run("def double(x):\n    return 2 * x\nprint(input(), 'é\\n' * 999)", stdin="ü", tests=tests)
    assert run.end == "ok"
    assert run.stdout.startswith("ü é\n")
    assert run.passed == (True, False)
    ends = {
        "1 / 0": "raised",
        "import os; os._exit(3)": "exited",
        "import os; os.kill(os.getpid(), 9)": "crashed",
        "while True: pass": "timeout",
        "x = 'a' * (1 << 30)": "raised",
        "#" * 70_000: "refused",
    }
    assert {program: box.run(program, limits=Limits(seconds=2.0)).end for program in ends} == ends
    assert service.boxes == set()
    service.refusals = [2]
    assert box.run("print(1)").stdout == "1\n", "a service that is busy is asked again"


@pytest.mark.parametrize(
    ("mode", "cause"),
    [
        ("odd", "made no box"),
        ("hang", "failed while a program ran: timed out"),
        ("broken", "failed while a program ran: HTTP Error 502"),
        ("cut", "failed while a program ran"),
        ("error", "could not run a program: .*MemoryError"),
        ("flood", "its output is longer than expected"),
    ],
)
def test_a_fault_of_the_service_is_an_error(service: Service, mode: str, cause: str) -> None:
    service.mode = mode
    with pytest.raises(SandboxError, match=cause):
        Remote().run("print(1)", limits=Limits(seconds=0.5))


def test_a_fault_of_the_service_is_no_reward(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "SPARE_S", 30.0)
    choice.sandbox_for.cache_clear()
    (tool,) = tools_for([{"name": "python", "tier": "remote"}]).values()
    assert tool.function is not None
    assert tool.function(code="print(6 * 7)") == "42"
    rows = [[{"call": "f(2)", "expected": "4"}]]
    program = "```python\ndef f(x):\n    return 2 * x\n```"
    assert code([program], tests=rows, tier="remote") == [1.0]
    service.mode = "broken"
    with pytest.raises(ToolUnavailableError, match="502"):
        tool.function(code="print(6 * 7)")
    with pytest.raises(CoterieError, match="502"):
        code([program], tests=rows, tier="remote")
    choice.sandbox_for.cache_clear()


def test_what_keeps_it_from_starting(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "SPARE_S", 30.0)
    service.apart = False
    with pytest.raises(SandboxError, match="the sandbox remote does not hold: reached"):
        make_sandbox("remote")
    monkeypatch.setenv(remote.KEY, "falsch")
    with pytest.raises(SandboxError, match="refused: HTTP Error 401"):
        make_sandbox("remote")
    monkeypatch.delenv(remote.KEY)
    with pytest.raises(SandboxError, match="set the environment variable E2B_API_KEY"):
        make_sandbox("remote")
    monkeypatch.setenv(remote.KEY, "geheim")
    service.shutdown()
    service.server_close()
    with pytest.raises(SandboxError, match="cannot be used"):
        make_sandbox("remote")
