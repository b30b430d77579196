"""Seconds of a decode pass with the fused decoder and through the model's modules, and whether the tokens are the same.

    python -m benchmarks.decoding
    python -m benchmarks.decoding smollm2-135m --rows 1 8 --rounds 4 --threads 1

Rounds alternate, so that other load concerns both alike. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any
from unittest import mock

import torch

from benchmarks.peers.growth_step import Endless, load_policy
from coterie.engines import runner
from coterie.engines.base import Request, Sampling
from coterie.engines.embedded import EmbeddedEngine
from coterie.machine import facts
from coterie.types import SampleKey

PROMPT = 50
"""Tokens of a prompt."""


def passes(policy: Any, rows: int, tokens: int, build: Callable[..., Any]) -> tuple[float, list[tuple[int, ...]]]:
    """Median seconds of the passes that sample one token of each row, and the tokens of the rows."""
    engine = EmbeddedEngine(policy, Endless(), max_num_seqs=rows, capacity=PROMPT + tokens)
    seconds, turns = [], {}
    with mock.patch.object(runner, "fused_decoder", build):
        for row in range(rows):
            prompt = tuple(100 + (7 * row + place) % 900 for place in range(PROMPT))
            key = SampleKey(seed=0, version=0, prompt=f"p{row}", sample=0, turn=0)
            engine.submit(Request(key=key, prompt_tokens=prompt), Sampling(temperature=1.0, max_tokens=tokens))
        engine.step()  # prompts
        while engine.unfinished:
            began = time.perf_counter()
            turns |= dict(engine.step())
            seconds.append(time.perf_counter() - began)
    engine.close()
    return median(seconds), [tuple(turns[number].tokens) for number in sorted(turns)]


def report(policy: Any, rows: int, options: argparse.Namespace) -> str:
    """One row of the table."""
    fused, modules, same = [], [], True
    for _ in range(options.rounds):
        first, expected = passes(policy, rows, options.tokens, lambda *_: None)
        second, sampled = passes(policy, rows, options.tokens, runner.fused_decoder)
        modules.append(first)
        fused.append(second)
        same = same and sampled == expected
    ratios = [modules[k] / fused[k] for k in range(options.rounds)]
    cells = [f"{1000 * median(modules):.1f}", f"{1000 * median(fused):.1f}"]
    cells.append(f"{median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")
    return f"| {rows} | {' | '.join(cells)} | {'yes' if same else 'no'} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    policy = load_policy(options.model)
    passes(policy, 2, 8, runner.fused_decoder)  # warm
    threads = torch.get_num_threads()
    print(f"{options.model}, {threads} threads, {facts().cpu}; median of {options.rounds} rounds [least, most]\n")
    print("| rows | modules, ms a pass | fused, ms | ratio | same tokens |\n| --- | --- | --- | --- | --- |")
    for rows in options.rows:
        print(report(policy, rows, options), flush=True)


if __name__ == "__main__":
    main()
