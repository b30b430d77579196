"""The process that holds WASI CPython: `python -m coterie.sandbox.wasi_host MODULE`, one JSON line a program.

The guest has no files, sockets, processes or threads, an empty environment, a cap on its memory, and fuel: a count of
instructions that is the same on every machine. Whoever started this process kills it when it does not reply.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from coterie.sandbox.base import HARNESS

FUEL_PER_SECOND = 2_000_000_000
"""About what a core of 2026 executes."""
START = 1_000_000_000
"""Fuel of the interpreter's own start, and of what the standard library's modules need to be imported."""


def _wasmtime() -> Any:
    """The package, which belongs to an extra."""
    return importlib.import_module("wasmtime")


def engine() -> Any:
    """The engine for which the module is compiled."""
    wasmtime = _wasmtime()
    config = wasmtime.Config()
    config.consume_fuel = True
    return wasmtime.Engine(config)


def compile_module(source: Path, target: Path) -> None:
    """Compile WASI CPython to native code, which takes half a minute."""
    target.write_bytes(_wasmtime().Module.from_file(engine(), str(source)).serialize())


class Host:
    """The module, loaded once, of which each program gets a new instance."""

    def __init__(self, module: str, folder: str) -> None:
        self.wasmtime, self.folder = _wasmtime(), folder
        self.engine = engine()
        self.module = self.wasmtime.Module.deserialize_file(self.engine, module)
        self.linker = self.wasmtime.Linker(self.engine)
        self.linker.define_wasi()

    def run(self, request: dict[str, Any]) -> dict[str, str]:
        """Output of a program, as latin-1 text of its bytes, and how it ended: `done` or `fuel`."""
        store = self.wasmtime.Store(self.engine)
        store.set_limits(memory_size=request["memory_mb"] << 20, instances=1, tables=8, memories=1)
        store.set_fuel(int(START + request["seconds"] * FUEL_PER_SECOND))
        given, output = Path(self.folder, "in"), Path(self.folder, "out")
        given.write_text(request["stdin"], encoding="utf-8", errors="replace")
        output.write_bytes(b"")
        wasi = self.wasmtime.WasiConfig()
        wasi.argv = ("python", "-I", "-S", "-c", HARNESS, request["argument"])
        wasi.stdin_file, wasi.stdout_file = str(given), str(output)
        store.set_wasi(wasi)
        end = "done"
        try:
            self.linker.instantiate(store, self.module).exports(store)["_start"](store)
        except self.wasmtime.ExitTrap:
            pass
        except (self.wasmtime.Trap, self.wasmtime.WasmtimeError):
            end = "fuel" if store.get_fuel() == 0 else "trap"
        with output.open("rb") as file:
            file.seek(max(0, output.stat().st_size - request["bytes"]))
            return {"end": end, "output": file.read().decode("latin-1")}


def main(module: str) -> None:
    """Run programs until standard input ends."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("800")
    with suppress(OSError, ValueError):
        os.nice(10)
    with tempfile.TemporaryDirectory(prefix="coterie-wasi-") as folder:
        host = Host(module, folder)
        # Python ignores the signal of this limit: a guest that floods its output gets an error from `write`.
        resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 20, 16 << 20))
        replies = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        for line in sys.stdin:
            replies.write(json.dumps(host.run(json.loads(line))) + "\n")
            replies.flush()


if __name__ == "__main__":
    main(sys.argv[1])
