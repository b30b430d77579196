"""Peak memory of each learner rank of a short run, by strategy, beside what a dry run says of it.

    python benchmarks/rank_memory.py
    python benchmarks/rank_memory.py --strategies fsdp --learners 4

Each row trains the demo's settings for a few steps, without an evaluation, in a fresh process whose ranks are its child
processes, and reads the high-water mark of the resident memory of each (VmHWM). Memory, not time: it may run beside
other work. Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from coterie import launch, machine
from coterie.callbacks import Callback
from coterie.cluster.hosts import ChildService
from coterie.cluster.rank_services import RankServices
from coterie.config.load import load

MIB = 2**20
DEMO = Path(__file__).parents[1] / "recipes/demo/config.toml"
SIZES = ["--steps", "2", "--collect.prompts_per_step", "4", "--data.heldout", "[]"]
SIZES += [
    "--optim.max_tokens_per_microbatch",
    "256",
]  # so that the ranks have rows as long as the largest that is tried


def main() -> None:
    options = _options()
    if options.one:
        print(json.dumps(measure(options.strategies[0], options.learners, options.words)))
        return
    ranks = [f"rank {rank}, MiB" for rank in range(options.learners)]
    print("| strategy | " + " | ".join(ranks) + " | gradient norms |")
    print("| --- |" + " --: |" * options.learners + " --- |", flush=True)
    for strategy in options.strategies:
        words = ["--strategies", strategy, "--learners", str(options.learners), *options.words]
        child = subprocess.run([sys.executable, __file__, "--one", *words], stdout=subprocess.PIPE, text=True)
        if child.returncode:
            raise SystemExit(child.returncode)
        row = json.loads(child.stdout.splitlines()[-1])
        cells = [f"{peak / MIB:.0f}" for peak in row["peaks"]]
        print(f"| {strategy} | " + " | ".join([*cells, ", ".join(map(repr, row["norms"]))]) + " |", flush=True)


def measure(strategy: str, learners: int, words: list[str]) -> dict[str, Any]:
    """Peaks of the ranks in bytes, rank 0 first, and the gradient norms of the steps."""
    with tempfile.TemporaryDirectory() as folder:
        cluster = ["--cluster.host", "processes", "--cluster.threads", "1", "--threads", "1"]
        cluster += ["--cluster.learners", str(learners), "--cluster.strategy", strategy]
        config = load(["@", str(DEMO), *SIZES, *cluster, "--runs", folder, *words]).config
        peaks = Peaks()
        launch.train(config, peaks)
        return {"peaks": peaks.peaks, "norms": peaks.norms}


class Peaks(Callback):
    """Reads the peaks after each step, while the ranks live."""

    def __init__(self) -> None:
        self.peaks: list[int] = []
        self.norms: list[float] = []
        self.members: list[ChildService] = []
        meet = RankServices.meet

        def met(services: RankServices) -> Any:
            self.members += [member for member in services.members if isinstance(member, ChildService)]
            return meet(services)

        RankServices.meet = met  # ty: ignore[invalid-assignment]

    def on_step(self, step: int, metrics: Any, sample: Any) -> None:
        self.norms.append(metrics["grad_norm"])
        members = [machine.peak_resident(member.process.pid) for member in self.members]
        self.peaks = [machine.peak_resident(), *members]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", nargs="+", choices=["replicate", "fsdp"], default=["replicate", "fsdp"])
    parser.add_argument("--learners", type=int, default=2)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options, options.words = parser.parse_known_args()
    return options


if __name__ == "__main__":
    main()
