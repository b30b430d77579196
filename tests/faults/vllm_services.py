"""Runs whose engine is vLLM on a CPU, in a service that is killed and frozen, and which are killed themselves.

Each must be the golden run, in which nothing was lost: on one thread of a CPU vLLM samples the same tokens and
log-probs whatever else is decoded beside.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cluster_hosts import VLLM
from coterie.cluster.hosts import ChildService
from faults.cases import Case, of_trial
from faults.child import Prepare
from faults.harness import Harness
from faults.kills import at_random
from faults.services import CLUSTER, after_messages, at_pass, freeze, kill, random_kills, unharmed

SIZES = {"head_dim": 32, "hidden_size": 64}
"""Of a model that vLLM's kernels take."""
ODDS, DELAY_S = 1 / 12, 0.02
"""Probability that the service is killed after one of its messages, and the longest time until then."""


def losses(root: Path, kills: int, seed: int) -> Iterator[Case]:
    """Services lost at passes and at random moments, and runs killed, until there are as many kills.

    Args:
        kills: two thirds of services, one of runs.
    """
    if not VLLM:
        problem = "COTERIE_VLLM names no interpreter with vLLM; `python3 bootstrap.py cluster` makes one"
        yield Case(section="vllm", name="all", problem=problem)
        return
    engine = {"name": "vllm", "python": VLLM, "max_num_seqs": 4}
    harness = Harness(root, {"engine": engine, "cluster": CLUSTER, "optim": {"lr": 1e-3}}, sizes=SIZES)
    for number in (1, 10, 40):
        yield unharmed(harness, f"vLLM killed at pass {number}", at_pass(number, kill), section="vllm")
    yield from random_kills(harness, kills - kills // 3, seed, _now_and_then, section="vllm")
    for trial in at_random(harness, kills // 3, seed):
        yield of_trial("vllm", trial)
    harness.changed["cluster"] = CLUSTER | {"timeout_s": 20.0}
    yield unharmed(harness, "vLLM frozen at pass 20", at_pass(20, freeze), section="vllm")


def _now_and_then(file: Path, seed: str) -> Prepare:
    """A trap: after some messages the service is killed, by another thread, while it works on the answer."""
    draw = random.Random(seed)

    def murder(service: ChildService, delay: float) -> None:
        time.sleep(delay)
        with suppress(ProcessLookupError):
            kill(service)
            with file.open("ab") as kills:
                kills.write(b".")

    def act(count: int, service: ChildService) -> None:
        if draw.random() < ODDS:
            threading.Thread(target=murder, args=(service, draw.uniform(0, DELAY_S)), daemon=True).start()

    return after_messages(act)
