"""Cost of the entropy that the sampler records with every token: sampling with it and without, in turns.

    python -m benchmarks.entropy
    python -m benchmarks.entropy --rounds 12 --completion 64

SmolLM2-135M samples random prompts to the limit, with the sampler as it is and with the same sampler that computes no
entropies. Both draw the same tokens, which is checked. The figures are seconds of the processor, of one thread unless
`--threads` says otherwise: the median of the rounds' ratios and their range, of whole generations and of the sampler.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from statistics import median
from unittest import mock

import torch
from torch import Tensor

from benchmarks.peers import growth_step
from benchmarks.peers.growth_step import Sizes, engine_for, load_policy, requests
from coterie import machine
from coterie.algo import sampling
from coterie.engines.base import Engine

VOCABULARY = 49152
Sampled = tuple[Tensor, Tensor, Tensor]
"""Tokens, log-probabilities, entropies."""


def without_entropy(logits: Tensor, uniform: Tensor, temperature: float, top_k: int, top_p: float) -> Sampled:
    """Tokens and log-probabilities as `sampling._sample` draws them, and zeros in place of the entropies.

    Without them nothing is multiplied with the logits, so these need no lower bound and become their exponentials in
    place: the sampler before there were entropies.
    """
    precision, block_size = sampling.at_least_float32(logits.dtype), sampling._BLOCK
    scaled = logits.to(precision, copy=True)
    scaled = sampling.filter_logits(scaled if temperature == 1 else scaled.div_(temperature), top_k, top_p)
    rows, size = scaled.shape
    blocks = -(-size // block_size)
    weights = scaled.sub_(scaled.amax(-1, keepdim=True)).exp_()
    if blocks * block_size != size:
        weights = torch.nn.functional.pad(weights, (0, blocks * block_size - size))
    weights = weights.view(rows, blocks, block_size)
    cumulative = weights.sum(-1).double().cumsum(-1)
    total = cumulative[:, -1]
    target = uniform * total
    block = torch.searchsorted(cumulative, target[:, None], right=True).clamp_(max=blocks - 1)
    before = torch.where(block > 0, cumulative.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = weights[torch.arange(rows, device=logits.device), block[:, 0]]
    steps = inside.cumsum(-1, dtype=torch.float64)
    offset = torch.searchsorted(steps, target[:, None] - before, right=True)
    last = block_size - 1 - (inside.flip(-1) > 0).int().argmax(-1, keepdim=True)
    offset = torch.minimum(offset, last)
    logprobs = torch.log(inside.gather(1, offset)[:, 0].double() / total).to(precision)
    return block[:, 0] * block_size + offset[:, 0], logprobs, torch.zeros_like(logprobs)


def generated(engine: Engine, sizes: Sizes, entropies: bool) -> tuple[float, list[tuple[int, ...]]]:
    """Seconds of the processor for one generation, and its tokens."""
    draw = sampling._sample if entropies else without_entropy
    with mock.patch.object(sampling, "_sample", draw):
        began = time.process_time()
        turns = engine.generate(requests(sizes, VOCABULARY), growth_step.sampling(sizes.completion))
        return time.process_time() - began, [turn.tokens for turn in turns]


def drawn(logits: Tensor, uniform: Tensor, entropies: bool) -> tuple[float, Tensor]:
    """Seconds of the processor for one draw of every row, and the tokens."""
    draw = sampling._sample if entropies else without_entropy
    with mock.patch.object(sampling, "_sample", draw):
        began = time.process_time()
        tokens, _, _ = sampling.sample(logits, uniform, 1.0, 0, 1.0)
        return time.process_time() - began, tokens


def paired(measure: Callable[[bool], tuple[float, object]], rounds: int) -> tuple[float, list[float]]:
    """Median seconds without entropies, and each round's seconds with them by those without; the first round warms up.

    Raises:
        AssertionError: the two did not draw the same tokens.
    """
    seconds, ratios = [], []
    for turn in range(rounds + 1):
        order = (False, True) if turn % 2 else (True, False)
        by_kind = {kind: measure(kind) for kind in order}
        (plain, tokens), (full, same) = by_kind[False], by_kind[True]
        equal = torch.equal(tokens, same) if isinstance(tokens, Tensor) and isinstance(same, Tensor) else tokens == same
        assert equal, "the tokens differ"
        if turn:
            seconds.append(plain)
            ratios.append(full / plain)
    return median(seconds), ratios


def line(label: str, seconds: float, ratios: list[float]) -> str:
    change = [100 * (ratio - 1) for ratio in (median(ratios), min(ratios), max(ratios))]
    return f"| {label} | {seconds:.3f} | {change[0]:+.2f} % [{change[1]:+.2f}, {change[2]:+.2f}] |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--completion", type=int, default=48, help="tokens")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sizes = Sizes(
        prompts=options.prompts, group_size=options.group_size, prompt=options.prompt, completion=options.completion
    )
    engine = engine_for(load_policy(), sizes)
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(sizes.rollouts, VOCABULARY, generator=generator)
    uniform = torch.rand(sizes.rollouts, dtype=torch.float64, generator=generator)
    print(f"{machine.facts().line()}; threads: {options.threads}; load {os.getloadavg()[0]:.1f}\n")
    print("| CPU seconds of | without entropies | with them |\n| --- | --- | --- |")
    whole = paired(lambda kind: generated(engine, sizes, kind), options.rounds)
    print(line(f"{sizes.generated} tokens sampled in {sizes.rollouts} rows", *whole), flush=True)
    alone = paired(lambda kind: drawn(logits, uniform, kind), 4 * options.rounds)
    print(line(f"the sampler alone, {sizes.rollouts} rows of {VOCABULARY} logits", *alone))


if __name__ == "__main__":
    main()
