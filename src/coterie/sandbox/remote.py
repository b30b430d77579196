"""A remote sandbox over HTTP, with the protocol of E2B's code interpreter: one box a program, made and removed.

`POST {api}/sandboxes` makes a box, `POST https://49999-{sandboxID}.{domain}/execute` runs code in it and streams JSON
lines, `DELETE {api}/sandboxes/{sandboxID}` removes it (e2b.dev/docs; a self-hosted service speaks the same).
"""

from __future__ import annotations

import ast
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from coterie.sandbox.base import HARNESS, Limits, Run, SandboxError, Test, ended, job_of, read_reply

KEY, API, EXECUTE = "E2B_API_KEY", "E2B_API_URL", "COTERIE_SANDBOX_URL"
"""Environment variables: the key, the service (E2B's when unset), and the address of a box where it is another than
E2B's, with `{id}` for the box, e.g. `http://127.0.0.1:8000/{id}`."""
TEMPLATE = "code-interpreter-v1"
PORT, DOMAIN = 49999, "e2b.app"
START_S, SPARE_S = 30.0, 10.0
"""Deadline of a request that makes or removes a box; seconds beside a program's own until its reply is due."""
ATTEMPTS = 3
"""Of a request that failed on the way, or with a status of 429 or above 499."""
RUNNING = """\
import subprocess, sys
try:
    done = subprocess.run([sys.executable, "-I", "-c", {program!r}, {argument!r}], input={stdin!r}.encode(),
        capture_output=True, timeout={seconds!r}, preexec_fn=lambda: __import__("resource").setrlimit(
            __import__("resource").RLIMIT_AS, ({memory!r}, {memory!r})))
    print("\\n" + {mark!r} + repr((done.returncode, done.stdout[-{most!r}:].decode("latin-1"))))
except subprocess.TimeoutExpired:
    print("\\n" + {mark!r} + repr((None, "")))
"""
"""What a box is given: it runs the harness as a program of its own, whose output is told apart by a mark."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Where boxes are made."""

    url: str
    key: str
    box: str
    """Address of a box, with `{id}` and `{domain}`."""


class Remote:
    """Boxes of a remote service. A fault of the service raises: it says nothing about the program.

    Args:
        workers: programs at once.

    Raises:
        SandboxError: there is no key in the environment.
    """

    tier = "remote"

    def __init__(self, workers: int = 2) -> None:
        if not os.environ.get(KEY):
            raise SandboxError(f"the sandbox remote needs a key: set the environment variable {KEY}")
        box = os.environ.get(EXECUTE) or f"https://{PORT}-{{id}}.{{domain}}"
        url = os.environ.get(API) or f"https://api.{DOMAIN}"
        self.service = Service(url=url.rstrip("/"), key=os.environ[KEY], box=box.rstrip("/"))
        self._slots = threading.BoundedSemaphore(workers)
        self._pause = threading.Event()

    def run(self, code: str, *, stdin: str = "", tests: Sequence[Test] = (), limits: Limits | None = None) -> Run:
        """As of a `Sandbox`; waits while `workers` programs run.

        Raises:
            SandboxError: the service cannot be reached, refuses, or speaks another protocol.
        """
        limits = limits or Limits()
        job = job_of(code, tests, limits)
        if isinstance(job, Run):
            return job
        mark = f"reply {job.nonce} "
        program = RUNNING.format(
            program=HARNESS,
            argument=job.argument,
            stdin=stdin[: 1 << 20],
            seconds=limits.seconds,
            memory=limits.memory_mb << 20,
            most=job.bytes,
            mark=mark,
        )
        with self._slots:
            printed = self._printed(program, limits.seconds + SPARE_S, 8 * job.bytes)
        _, there, rest = printed.rpartition(f"\n{mark}")
        if not there:
            return ended("crashed", "the box ended before its program", tests)
        try:
            status, output = _pair(rest)
        except (ValueError, SyntaxError, TypeError) as error:
            raise SandboxError(f"the sandbox remote replied with something else than expected: {error}") from error
        if status is None:
            return ended("timeout", "computed, or waited, longer than its limit", tests)
        answer = read_reply(job, output.encode("latin-1"), tests)
        return answer or ended("exited" if status >= 0 else "crashed", f"ended with the code {status}", tests)

    def close(self) -> None:
        """Nothing is kept between programs."""

    def _printed(self, program: str, seconds: float, most: int) -> str:
        """What a program printed in a new box."""
        body = {"templateID": TEMPLATE, "timeout": int(seconds + START_S)}
        made = self._asked("POST", f"{self.service.url}/sandboxes", body)
        try:
            name, domain = str(made["sandboxID"]), str(made.get("domain") or DOMAIN)
        except (KeyError, TypeError, AttributeError) as error:
            raise SandboxError(f"{self.service.url} made no box: {str(made)[:200]}") from error
        token = {"X-Access-Token": str(made["envdAccessToken"])} if made.get("envdAccessToken") else {}
        try:
            return self._executed(self.service.box.format(id=name, domain=domain), token, program, seconds, most)
        finally:
            with suppress(SandboxError):  # it ends by itself after its time
                self._asked("DELETE", f"{self.service.url}/sandboxes/{name}", None)

    def _executed(self, box: str, token: dict[str, str], program: str, seconds: float, most: int) -> str:
        """Standard output of a program in a box; a program is sent once, since it may have run."""
        deadline = time.monotonic() + seconds
        body = json.dumps({"code": program, "language": "python"}).encode()
        request = urllib.request.Request(f"{box}/execute", body, {"Content-Type": "application/json", **token})
        texts: list[str] = []
        try:
            with urllib.request.urlopen(request, timeout=seconds) as reply:
                for line in _lines(reply, most, deadline):
                    item = json.loads(line)
                    if item.get("type") == "stdout":
                        texts.append(str(item["text"]))
                    if item.get("type") == "error":
                        raise SandboxError(f"the sandbox remote could not run a program: {str(item)[:300]}")
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise SandboxError(f"the sandbox remote failed while a program ran: {error}") from error
        return "".join(texts)

    def _asked(self, method: str, url: str, body: dict[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"X-API-Key": self.service.key, "Content-Type": "application/json"}
        request = urllib.request.Request(url, data, headers, method=method)
        for attempt in range(ATTEMPTS):
            try:
                with urllib.request.urlopen(request, timeout=START_S) as reply:
                    text = reply.read(1 << 20)
                return json.loads(text) if text else {}
            except urllib.error.HTTPError as error:
                error.close()
                if attempt + 1 == ATTEMPTS or (error.code != 429 and error.code < 500):
                    raise SandboxError(f"the sandbox remote at {self.service.url} refused: {error}") from error
            except (OSError, ValueError) as error:
                if attempt + 1 == ATTEMPTS:
                    raise SandboxError(f"the sandbox remote at {self.service.url} cannot be used: {error}") from error
            self._pause.wait(0.2 * 2**attempt)
        raise AssertionError("the last attempt returns or raises")


def _lines(reply: Any, most: int, deadline: float) -> Iterator[bytes]:
    """Lines of a stream, of at most `most` bytes in all, until a monotonic time."""
    total = 0
    while line := reply.readline(most + 1):
        total += len(line)
        if total > most or time.monotonic() > deadline:
            raise OSError("its output is longer than expected" if total > most else "it did not end in time")
        if line.strip():
            yield line


def _pair(text: str) -> tuple[int | None, str]:
    status, output = ast.literal_eval(text.strip())
    if not (status is None or isinstance(status, int)) or not isinstance(output, str):
        raise TypeError(f"{text[:80]!r}")
    return status, output
