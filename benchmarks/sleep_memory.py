"""Memory of the engine service while the learner updates, with `engine.sleep_mode` and without.

    python benchmarks/sleep_memory.py
    python benchmarks/sleep_memory.py --model.name qwen2.5-coder-0.5b

Trains the demo's settings for a few steps, without an evaluation, in a fresh process each, and reads the resident
memory of the service (VmRSS) when each update begins. Memory, not time: it may run beside other work. Linux only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from coterie import launch, machine
from coterie.callbacks import Callback
from coterie.cluster.hosts import ChildService, ProcessHost
from coterie.config.load import load
from coterie.policy.learner import Learner

MIB = 2**20
DEMO = Path(__file__).parents[1] / "recipes/demo/config.toml"
SIZES = ["--steps", "3", "--data.heldout", "[]", "--cluster.host", "processes", "--cluster.threads", "1"]


def main() -> None:
    words = sys.argv[1:]
    if words[:1] == ["--one"]:
        print(json.dumps(measure(words[1], words[2:])))
        return
    print("| engine.sleep_mode | service while the learner updates, MiB | gradient norms |\n| --- | --: | --- |")
    for mode in ("false", "true"):
        child = subprocess.run([sys.executable, __file__, "--one", mode, *words], stdout=subprocess.PIPE, text=True)
        if child.returncode:
            raise SystemExit(child.returncode)
        row = json.loads(child.stdout.splitlines()[-1])
        resident = ", ".join(f"{size / MIB:.0f}" for size in row["resident"])
        print(f"| {mode} | {resident} | {', '.join(map(repr, row['norms']))} |", flush=True)


def measure(mode: str, words: list[str]) -> dict[str, Any]:
    """Resident bytes of the service at the start of each update, and the gradient norms."""
    services: list[ChildService] = []
    resident: list[int] = []
    norms: list[float] = []
    start, update = ProcessHost.start, Learner.update

    def started(host: ProcessHost, *order: Any) -> ChildService:
        services.append(start(host, *order))
        return services[-1]

    def updated(learner: Learner, *batches: Any) -> Any:
        resident.append(machine.resident(services[0].process.pid))
        return update(learner, *batches)

    class Norms(Callback):
        def on_step(self, step: int, metrics: Any, sample: Any) -> None:
            norms.append(metrics["grad_norm"])

    ProcessHost.start, Learner.update = started, updated  # ty: ignore[invalid-assignment]
    with tempfile.TemporaryDirectory() as folder:
        config = load(["@", str(DEMO), *SIZES, "--engine.sleep_mode", mode, "--runs", folder, *words]).config
        launch.train(config, Norms())
    return {"resident": resident, "norms": norms}


if __name__ == "__main__":
    main()
