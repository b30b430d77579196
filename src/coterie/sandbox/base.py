"""Interface of sandboxes: a program in, its output and the values of calls out; what is expected never goes in."""

from __future__ import annotations

import ast
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from coterie.errors import CoterieError

LONGEST = 60_000
"""Characters of a program and its calls; the system's own limit for an argument is 128 KiB."""
VALUE = 10_000
"""Characters of the value of a call."""


class SandboxError(CoterieError):
    """No sandbox of this kind can be had here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of a program."""

    seconds: float = 2.0
    """Of computing. WASI counts instructions instead, so that the limit is the same on a busy machine."""
    memory_mb: int = 256
    """Of memory."""
    output: int = 10_000
    """Characters of standard output that are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    """A hidden test: an expression, evaluated after the program, and the literal that its value must equal."""

    __test__ = False  # pytest's own classes are called so

    call: str
    """E.g. `f([1, 2])`."""
    expected: str
    """A Python literal, e.g. `3`."""


End = Literal["ok", "raised", "timeout", "exited", "crashed", "refused"]
"""How a program ended: by itself; with an exception; at a limit; by exiting before its calls; killed; or it was not
run, since it is too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What became of a program."""

    end: End
    stdout: str = ""
    """What it printed, cut to the limit."""
    error: str = ""
    """Last line of the exception, or the cause of another end."""
    values: tuple[str | None, ...] = ()
    """`repr` of the value of each call; None where it raised, or was not reached."""
    passed: tuple[bool, ...] = ()
    """Of each test, compared outside of the sandbox."""


class Sandbox(Protocol):
    """Runs programs. Safe to use from several threads."""

    tier: str

    def run(self, code: str, *, stdin: str = "", tests: Sequence[Test] = (), limits: Limits = ...) -> Run:
        """What became of a program; nothing that it does raises here.

        Args:
            stdin: its standard input.
            tests: calls that are evaluated after it, each in the state that the calls before left.
        """
        ...

    def close(self) -> None: ...


HARNESS = """\
import os, sys
nonce, code, calls, most, longest = eval(sys.argv[1])
sys.argv = ["program"]
send, text, bound = os.write, repr, {}
class Output:
    encoding, errors = "utf-8", "replace"
    def __init__(self):
        self.parts, self.left = [], most
    def write(self, words):
        if type(words) is not str:
            raise TypeError("expected text")
        if self.left > 0:
            self.parts.append(words[:self.left])
            self.left -= len(words)
        return len(words)
    def flush(self): pass
    def isatty(self): return False
    def writable(self): return True
out = sys.stdout = Output()
sys.stderr = Output()
def last(error):
    try:
        return (type(error).__name__ + ": " + str(error))[:500]
    except BaseException:
        return "an exception"
error, values = "", []
bound = {"__name__": "__main__", "__builtins__": __builtins__}
try:
    exec(compile(code, "program", "exec"), bound)
except BaseException as problem:
    error = last(problem)
if not error:
    for call in calls:
        try:
            value = text(eval(call, bound))
            values.append(value if type(value) is str and len(value) <= longest else None)
        except BaseException as problem:
            values.append(None)
reply = text((error, "".join(out.parts), values)).encode("utf-8", "backslashreplace")
reply = b"\\n" + nonce.encode() + reply + b"\\n"
while reply:
    reply = reply[send(1, reply):]
"""
"""Program of the guest: runs the code, then the calls, and writes their values behind a nonce. It knows no expected
value, so there is nothing in it to steal, and a faked reply is worth what a wrong value is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A program with the nonce of its reply."""

    nonce: str
    argument: str
    """Of `HARNESS`."""
    bytes: int
    """Longest output of the guest."""


def job_of(code: str, tests: Sequence[Test], limits: Limits) -> Job | Run:
    """The job of a program, or its end where it is not run."""
    code, calls = _clean(code), [_clean(test.call) for test in tests]
    if len(code) + sum(map(len, calls)) > LONGEST:
        return Run(end="refused", error=f"the program has more than {LONGEST} characters", passed=(False,) * len(tests))
    nonce = secrets.token_hex(16)
    argument = repr((nonce, code, calls, limits.output, VALUE))
    if len(argument.encode()) > 2 * LONGEST:
        return Run(end="refused", error=f"the program has more than {LONGEST} characters", passed=(False,) * len(tests))
    return Job(nonce=nonce, argument=argument, bytes=8 * (limits.output + VALUE * (len(tests) + 1)) + 4096)


def read_reply(job: Job, output: bytes, tests: Sequence[Test]) -> Run | None:
    """What the guest replied; None where it did not."""
    _, mark, rest = output.rpartition(f"\n{job.nonce}".encode())
    if not mark:
        return None
    reply = literal(rest.decode("utf-8", "replace"), len(rest))
    if not isinstance(reply, tuple) or len(reply) != 3:
        return None
    error, stdout, values = reply
    if not (isinstance(error, str) and isinstance(stdout, str) and isinstance(values, list)):
        return None
    values = [value if isinstance(value, str) else None for value in values][: len(tests)]
    values += [None] * (len(tests) - len(values))
    return Run(
        end="raised" if error else "ok",
        stdout=stdout,
        error=error,
        values=tuple(values),
        passed=tuple(is_equal(value, test.expected) for value, test in zip(values, tests, strict=True)),
    )


def ended(end: End, error: str, tests: Sequence[Test]) -> Run:
    """A program that gave no reply: every test failed."""
    return Run(end=end, error=error, values=(None,) * len(tests), passed=(False,) * len(tests))


def is_equal(value: str | None, expected: str) -> bool:
    """True if two literals are equal, floats to a part in a billion; what is no literal equals nothing.

    >>> is_equal("[1, 2]", "[1,2]"), is_equal("0.1", "0.1000000000001"), is_equal("<f object>", "3"), is_equal("[", "[")
    (True, True, False, False)
    """
    left, right = literal(value or "", VALUE), literal(expected, VALUE)
    return left is not _NONE and right is not _NONE and _same(left, right)


_NONE = object()


def literal(text: str, longest: int) -> Any:
    """The value of a literal; an object of its own where there is none."""
    if len(text) > longest:
        return _NONE
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return _NONE


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, float) and isinstance(right, int | float):
        return math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-12) or (left != left and right != right)
    if type(left) is type(right) and isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(_same, left, right))
    if type(left) is type(right) is dict:
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    try:
        return bool(left == right)
    except RecursionError:
        return False


def _clean(text: str) -> str:
    return text.replace("\x00", "").encode("utf-8", "replace").decode()


def with_input(run: Run, expected: str) -> Run:
    """A run judged by what it printed, up to white space at the ends of lines."""
    lines = [[line.rstrip() for line in text.strip().splitlines()] for text in (run.stdout, expected)]
    return replace(run, passed=(run.end == "ok" and lines[0] == lines[1],))
