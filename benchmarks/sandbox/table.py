"""Table of the sandboxes: probes contained, benign programs, time of a start: python -m benchmarks.sandbox.table."""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.sandbox.probes import BENIGN, ENDLESS, GRADER, HELPERS, MODULES, REACH
from coterie.errors import AssetError
from coterie.sandbox.base import Limits, Sandbox, SandboxError, Test
from coterie.sandbox.choice import TIERS, make_sandbox

HEAD = "| tier | probes contained | not contained | benign programs run | start p50, p95 | programs a second |"
RUNS = 60
"""Programs whose time is taken."""


@contextmanager
def outside() -> Generator[dict[str, object]]:
    """What probes try to reach: a file, a listener, a socket file and a canary in the environment of this machine."""
    os.environ["TOKEN_CANARY"] = "CANARY"
    with tempfile.TemporaryDirectory(prefix="host-") as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        Path(folder).chmod(0o755)
        secret, path = Path(folder, "secret"), Path(folder, "socket")
        secret.write_text("canary of the host")
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind(str(path))
            unix.listen()
            port = listener.getsockname()[1]
            yield {"secret": str(secret), "port": port, "pid": os.getpid(), "socket": str(path)}


def holes(sandbox: Sandbox) -> list[str]:
    """Names of the probes that were not contained."""
    names = []
    with outside() as world:
        for name, probe in REACH.items():
            test = Test(call=f"bool({probe.format(**world)})", expected="False")
            run = sandbox.run(HELPERS, tests=[test], limits=Limits(seconds=5.0))
            if any(value not in (None, "False") for value in run.values):
                names.append(name)
    for name, code in ENDLESS.items():
        started = time.monotonic()
        run = sandbox.run(code, tests=[Test(call="f()", expected="7")], limits=Limits(seconds=1.0))
        if any(run.passed) or time.monotonic() - started > 60:
            names.append(name)
    for name, code in GRADER.items():
        if any(sandbox.run(code, tests=[Test(call="f()", expected="7")]).passed):
            names.append(name)
    return names


def benign(sandbox: Sandbox) -> int:
    """Number of benign programs that ran and gave what they should, each in a box of its own."""
    imports = "import " + ", ".join(MODULES.split())
    runs = [sandbox.run(imports, tests=[Test(call=line, expected="True")]) for line in BENIGN]
    return sum(all(run.passed) for run in runs)


def times(sandbox: Sandbox) -> tuple[float, float, float]:
    """(median and 95th percentile of a program's time in ms one at a time, programs a second two at a time)."""
    seconds = []
    for _ in range(RUNS):
        started = time.perf_counter()
        sandbox.run("print(1)")
        seconds.append(time.perf_counter() - started)
    started = time.perf_counter()
    threads = [threading.Thread(target=lambda: [sandbox.run("print(1)") for _ in range(RUNS // 2)]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = RUNS / (time.perf_counter() - started)
    return 1000 * statistics.median(seconds), 1000 * statistics.quantiles(seconds, n=20)[-1], rate


def main() -> None:
    """Print the table of the tiers that this machine has."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tiers", nargs="*", default=TIERS[1:], help="wasi, bubblewrap, unsafe_rlimits")
    total = len(REACH) + len(ENDLESS) + len(GRADER)
    print(f"{HEAD}\n|{' --- |' * HEAD.count(' |')}")
    for tier in parser.parse_args().tiers:
        try:
            sandbox = make_sandbox(tier)
        except (SandboxError, AssetError) as error:
            print(f"| `{tier}` | not here: {error} |")
            continue
        # The unsafe tier is not shown programs that would leave processes behind or fill this machine's folders.
        names = [] if tier == "unsafe_rlimits" else holes(sandbox)
        contained = "not tried" if tier == "unsafe_rlimits" else f"{total - len(names)} of {total}"
        median, late, rate = times(sandbox)
        row = f"| `{tier}` | {contained} | {', '.join(names) or '–'} | {benign(sandbox)} of {len(BENIGN)} | "
        print(f"{row}{median:.0f}, {late:.0f} ms | {rate:.1f} |", flush=True)
        sandbox.close()


if __name__ == "__main__":
    main()
