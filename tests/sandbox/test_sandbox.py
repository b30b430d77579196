"""Sandboxes: hostile programs are contained, benign ones run, and the pool survives all of them."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.sandbox.probes import BENIGN, ENDLESS, GRADER, HELPERS, MODULES, REACH
from coterie.data import assets
from coterie.errors import ConfigError
from coterie.sandbox import choice, native, wasi
from coterie.sandbox.base import LONGEST, Limits, Run, Sandbox, SandboxError, Test, is_equal, with_input
from coterie.sandbox.choice import make_sandbox
from coterie.sandbox.native import Rlimits

SECOND = Limits(seconds=1.0)


@pytest.fixture(scope="module", params=["wasi", "bubblewrap"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """Each tier that can be had on this machine without fetching anything."""
    if request.param == "wasi" and assets.locate("python-wasi") is None:
        pytest.skip("needs `coterie assets fetch python-wasi`")
    try:
        box = make_sandbox(request.param)
    except SandboxError as error:
        pytest.skip(str(error))
    yield box
    box.close()


@pytest.fixture(scope="module")
def unsafe() -> Rlimits:
    return Rlimits()


class Outside:
    """What a guest must not reach: a secret, a listener, a socket file; and a canary in the environment."""

    def __init__(self, folder: Path) -> None:
        self.secret = folder / "secret"
        self.secret.write_text("canary of the host")
        folder.chmod(0o755)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.unix = socket.socket(socket.AF_UNIX)
        self.path = folder / "socket"
        self.unix.bind(str(self.path))
        self.unix.listen()
        self.names = {
            "secret": str(self.secret),
            "port": self.listener.getsockname()[1],
            "pid": os.getpid(),
            "socket": str(self.path),
        }

    def close(self) -> None:
        self.listener.close()
        self.unix.close()


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[Outside]:
    monkeypatch.setenv("TOKEN_CANARY", "CANARY")
    with tempfile.TemporaryDirectory(prefix="host-") as folder:
        world = Outside(Path(folder))
        yield world
        world.close()


def contained(run: Run, name: str) -> None:
    """Every value is false, or the probe raised."""
    holes = [(name, value) for value in run.values if value not in (None, "False")]
    assert holes == []


def test_what_reaches_out_is_contained(sandbox: Sandbox, outside: Outside) -> None:
    """All probes in one box; one that ends the box is looked at alone by the next test."""
    tests = [Test(call=f"bool({probe.format(**outside.names)})", expected="False") for probe in REACH.values()]
    run = sandbox.run(HELPERS, tests=tests, limits=Limits(seconds=20.0, memory_mb=512))
    assert run.end == "ok", run.error
    assert [name for name, value in zip(REACH, run.values, strict=True) if value not in (None, "False")] == []
    assert outside.secret.read_text() == "canary of the host"


@pytest.mark.slow
@pytest.mark.parametrize("name", REACH)
def test_each_probe_alone_is_contained(sandbox: Sandbox, outside: Outside, name: str) -> None:
    test = Test(call=f"bool({REACH[name].format(**outside.names)})", expected="False")
    contained(sandbox.run(HELPERS, tests=[test], limits=Limits(seconds=5.0)), name)


def test_the_probes_would_see_a_hole(unsafe: Rlimits, outside: Outside) -> None:
    """Under resource limits alone the same probes reach out: this tier is labelled unsafe."""
    names = ("1 passwd", "2 secret", "46 TCP", "28 signal to the host", "12 symlink")
    tests = [Test(call=f"bool({REACH[name].format(**outside.names)})", expected="True") for name in names]
    run = unsafe.run(HELPERS, tests=tests)
    Path("/tmp/link").unlink(missing_ok=True)
    assert run.passed == (True,) * len(names)


SLOW = pytest.mark.slow
QUICK = (
    "36 big allocation",
    "39 endless output",
    "42 closed output",
    "66 exit",
    "26 daemon",
    "33 core",
    "34 busy loop",
)


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(n, marks=SLOW) for n in ENDLESS if n not in QUICK)])
def test_endless_programs_end(sandbox: Sandbox, name: str) -> None:
    before = set(os.listdir("/proc"))
    started = time.monotonic()
    run = sandbox.run(ENDLESS[name], tests=[Test(call="f()", expected="7")], limits=SECOND)
    assert run.end != "ok" or name == "42 closed output"
    assert run.passed == (False,)
    assert time.monotonic() - started < 60
    after = sandbox.run("print(6 * 7)", limits=SECOND)
    assert (after.end, after.stdout) == ("ok", "42\n")
    left = {pid for pid in set(os.listdir("/proc")) - before if pid.isdigit() and is_guest(pid)}
    deadline = time.monotonic() + 20  # those of another test at the same time end with it
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = {pid for pid in left if is_guest(pid)}
    assert left == set()


def is_guest(pid: str) -> bool:
    try:
        return b"nonce, code, calls" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_a_grader_cannot_be_fooled(sandbox: Sandbox) -> None:
    for name, code in GRADER.items():
        run = sandbox.run(code, tests=[Test(call="f()", expected="7")], limits=SECOND)
        assert run.passed == (False,), name


def test_benign_programs_run(sandbox: Sandbox) -> None:
    assert len(BENIGN) == 60
    tests = [Test(call=line, expected="True") for line in BENIGN]
    run = sandbox.run("import " + ", ".join(MODULES.split()), tests=tests, limits=Limits(seconds=10.0))
    assert run.end == "ok", run.error
    assert [line for line, passed in zip(BENIGN, run.passed, strict=True) if not passed] == []


def test_a_program_its_input_output_and_tests(sandbox: Sandbox) -> None:
    code = "name = input()\nprint('hello', name)\ndef f(x): return [x, x / 3]\n"
    tests = [
        Test(call="f(1)", expected="[1, 0.33333333333]"),
        Test(call="f('a')", expected="1"),
        Test(call="name", expected="'ä'"),
    ]
    run = sandbox.run(code, stdin="ä\n", tests=tests)
    assert (run.end, run.stdout) == ("ok", "hello ä\n")
    assert run.values == ("[1, 0.3333333333333333]", None, "'ä'")
    assert with_input(run, "hello ä").passed == (True,)
    failed = sandbox.run("x = 1\nraise ValueError('no')", tests=[Test(call="x", expected="1")])
    assert (failed.end, failed.error, failed.passed) == ("raised", "ValueError: no", (False,))
    assert sandbox.run("def f(:").error.startswith("SyntaxError")
    assert sandbox.run("x" * (LONGEST + 1)).end == "refused"
    flood = sandbox.run("print('x' * 10 ** 6)", limits=Limits(output=50))
    assert flood.stdout == "x" * 50
    assert sandbox.run("print('\\x00\\ud800\\x1b[2J')").stdout.endswith("\x1b[2J\n")


def test_no_run_sees_another(sandbox: Sandbox) -> None:
    sandbox.run("import builtins, os\nbuiltins.left = 1\ntry: open('/tmp/left', 'w').write('x')\nexcept OSError: pass")
    run = sandbox.run(
        "import builtins, os",
        tests=[Test(call="hasattr(builtins, 'left') or os.path.exists('/tmp/left')", expected="False")],
    )
    assert run.passed == (True,)


def test_many_threads_share_the_pool(sandbox: Sandbox) -> None:
    ends: list[tuple[str, str]] = []

    def one_program(number: int) -> None:
        code = "import os; os._exit(1)" if number % 4 == 0 else f"print({number})"
        run = sandbox.run(code, limits=SECOND)
        ends.append((run.end, run.stdout.strip() or str(number)))

    threads = [threading.Thread(target=one_program, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(int(text) for _, text in ends) == list(range(12))
    assert sum(end == "exited" for end, _ in ends) == 3


def test_a_killed_wasi_process_is_replaced() -> None:
    if assets.locate("python-wasi") is None:
        pytest.skip("needs `coterie assets fetch python-wasi`")
    try:
        box = make_sandbox("wasi", workers=1)
    except SandboxError as error:
        pytest.skip(str(error))
    assert isinstance(box, wasi.Wasi)
    for pid in box.pids:
        os.kill(pid, 9)
    time.sleep(0.1)
    ends = [box.run("print(1)").end for _ in range(2)]
    assert ends[1] == "ok"
    box.close()
    assert box.pids == []


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wasi, "find_spec", lambda name: None)
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    with pytest.raises(SandboxError, match=r"needs the package wasmtime: .*install"):
        make_sandbox("wasi")
    with pytest.raises(SandboxError, match="apt-get install bubblewrap"):
        make_sandbox("bubblewrap")
    with pytest.raises(SandboxError, match=r"no sandbox can be had here: .*wasmtime.*; or: .*bubblewrap"):
        make_sandbox("auto")
    with pytest.raises(ConfigError, match="expected one of auto, wasi, bubblewrap, remote, unsafe_rlimits"):
        make_sandbox("docker")


def test_a_sandbox_that_does_not_hold_is_not_used(unsafe: Rlimits) -> None:
    with pytest.raises(SandboxError, match="does not hold: reached"):
        choice._tested(unsafe)


@pytest.mark.parametrize(
    ("value", "expected", "equal"),
    [
        ("[1, 2]", "[1,2]", True),
        ("(1,)", "[1]", False),
        ("{'a': 0.1}", "{'a': 0.10000000000001}", True),
        ("nan", "nan", False),
        ("True", "1", True),
        ("9" * 20_000, "9" * 20_000, False),
        ("[" * 5000, "[" * 5000, False),
        ("__import__('os')", "1", False),
        (None, "None", False),
    ],
)
def test_values_are_compared_outside(value: str | None, expected: str, equal: bool) -> None:
    assert is_equal(value, expected) is equal
