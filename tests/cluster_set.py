"""The set of tests that need vLLM or Ray: `python -m cluster_set [ARGS of pytest]`; makes vLLM's environment once.

vLLM's own environment is that of the benchmark. Without a network, and without that environment, the set ends with an
error; COTERIE_VLLM names another interpreter that has vLLM.
"""

from __future__ import annotations

import os
import sys

import pytest

from benchmarks.peers.environments import ensure
from benchmarks.peers.worker import PeerError

TESTS = ("tests/cluster", "tests/engines/test_every_engine.py")
CHOSEN = "cluster or vllm or services or process"


def main(words: list[str]) -> int:
    """Run the set; returns the exit code."""
    os.environ["COTERIE_RAY"] = "1"
    if not os.environ.get("COTERIE_VLLM"):
        try:
            python = ensure("vllm", say=lambda message: print(message, file=sys.stderr, flush=True))
        except PeerError as error:
            print(error, file=sys.stderr)
            return 1
        os.environ["COTERIE_VLLM"] = str(python)
    return int(pytest.main([*TESTS, "-k", CHOSEN, *words]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
