"""The program that is disturbed: a small model that decodes and trains each time it is asked.

python -m benchmarks.peers.load_probe '{"threads": 2}' reads a line, measures, prints a line of JSON; and so on.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

LAYERS = 6
"""Of SmolLM2-135M's 30: the same operations, sooner done."""


def main(words: dict[str, Any]) -> None:
    """Serve until standard input ends.

    Args:
        words: `threads`; optional: `adapt` (the wait policy follows the load, as in a run), `layers`, `vocabulary`,
            `hidden`, and the fields of `growth_step.Sizes`.
    """
    measure = prepare(words)
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(measure()), flush=True)


def prepare(words: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """A function that measures tokens a second of generating and seconds of an update, once each.

    The environment stays as it was given: it is what is being measured.
    """
    import torch

    from benchmarks.peers import growth_step as step

    torch.set_num_threads(words["threads"])
    if words.get("adapt"):
        from coterie.policy.waiting import WAIT_POLICY

        WAIT_POLICY.start()
    defaults = {"prompts": 8, "group_size": 8, "prompt": 32, "completion": 24}
    sizes = step.Sizes(**{name: words.get(name, value) for name, value in defaults.items()})
    policy = _policy(words.get("layers", LAYERS), words.get("vocabulary", 49152), words.get("hidden", 576))
    engine, learner = step.engine_for(policy, sizes), step.learner_for(policy)
    asked = step.requests(sizes, policy.head.weight.shape[0])

    def measure() -> dict[str, float]:
        started = time.perf_counter()
        turns = engine.generate(asked, step.sampling(sizes.completion))
        generated = time.perf_counter()
        packed = step.packed(asked[: sizes.group_size], turns[: sizes.group_size])
        between = time.perf_counter()
        learner.update([packed])
        return {
            "decode": sizes.generated / (generated - started),
            "update": time.perf_counter() - between,
        }

    measure()
    return measure


def _policy(layers: int, vocabulary: int, hidden: int) -> Any:
    """SmolLM2's shapes with random weights, in the format that a run would use."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from coterie.build import run
    from coterie.config.schema import RunConfig
    from coterie.policy.model import Policy

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 192),
        head_dim=64,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    dtype = run.dtype_of(RunConfig(), torch.device("cpu"))
    return Policy(LlamaForCausalLM(config).to(dtype), name="probe")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
