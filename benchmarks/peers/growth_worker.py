"""One point of a growth curve in a process of its own, so that its peak memory is its own: reads and prints JSON.

python -m benchmarks.peers.growth_worker '{"prompts": 2, "group_size": 8, "prompt": 64, "completion": 32}'
"""

from __future__ import annotations

import gc
import json
import sys
import time
from typing import Any

from coterie import machine
from coterie import machine as threads


def main(words: dict[str, Any]) -> dict[str, float]:
    """Generate and update once, after a step of a few tokens that brings every lazy part to life.

    Args:
        words: the fields of `growth_step.Sizes`, and `model`: an asset or a folder.

    Returns:
        Seconds of `generate` and of `update`; peak resident bytes once the model is loaded (`loaded`), after generating
        (`generate_peak`) and at the end (`peak`).
    """
    threads.prepare()
    from benchmarks.peers import growth_step as step  # loads torch

    sizes = step.Sizes(**{name: words[name] for name in step.Sizes.__slots__})
    step.use_threads()
    policy = step.load_policy(words.get("model", step.MODEL))
    learner = step.learner_for(policy)
    vocabulary = policy.head.weight.shape[0]

    def once(sizes: step.Sizes) -> dict[str, float]:
        engine = step.engine_for(policy, sizes)
        asked = step.requests(sizes, vocabulary)
        started = time.perf_counter()
        turns = engine.generate(asked, step.sampling(sizes.completion))
        generated = time.perf_counter()
        peak = machine.peak_resident()
        engine.close()
        between = time.perf_counter()
        learner.update([step.packed(asked, turns)])
        return {
            "generate": generated - started,
            "update": time.perf_counter() - between,
            "generate_peak": peak,
        }

    once(step.Sizes(prompts=1, group_size=2, prompt=4, completion=2))
    gc.collect()
    loaded = machine.peak_resident()
    return once(sizes) | {"loaded": loaded, "peak": machine.peak_resident()}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
