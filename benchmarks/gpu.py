"""What one GPU does: generation, update and whole step of coterie, beside the machine's limits and beside TRL.

    python benchmarks/gpu.py --out results                           # on a GPU
    python benchmarks/gpu.py --out results --trl FOLDER              # compared with TRL, unpacked in FOLDER
    python benchmarks/gpu.py --out results --device cpu --tiny       # the same code, as a check

Needs torch, transformers and this repository's `src`; weights are random at the shapes of Qwen2.5, nothing is
downloaded. Random weights hardly ever say the end token, so the head gets a fixed bias under which completions end at
random, on average at half the token limit. Rewards are a function of the tokens; half of the prompts earn the same for
every rollout (`--zero-share`), as in real runs. Both sides get the same model, prompts, limits and rewards.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
END = 1
"""Token that ends a completion."""

SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "qwen2.5-1.5b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "tie_word_embeddings": True,
    },
}
ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e6}
DENSE_BF16 = {"H100": 989e12, "H200": 989e12, "GH200": 989e12, "A100": 312e12}
"""FLOP/s of the SXM parts by NVIDIA's data sheets, without sparsity; others are measured by a matmul."""


@dataclass(kw_only=True)
class Work:
    """What is run."""

    shape: str
    prompts: int
    group: int
    prompt_tokens: int
    max_tokens: int
    rounds: int
    zero_share: float
    budget: int
    dtype: str
    device: str


@dataclass(kw_only=True)
class Timing:
    """Seconds of repeated runs after a warm-up."""

    median: float
    low: float
    high: float
    runs: int


@dataclass(kw_only=True)
class Report:
    machine: dict[str, Any]
    work: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    """One measured value each: shape, what, value, unit, low, high, note."""

    def add(self, shape: str, what: str, value: float | None, unit: str, note: str = "", **spread: float) -> None:
        self.rows.append({"shape": shape, "what": what, "value": value, "unit": unit, "note": note, **spread})
        shown = "-" if value is None else f"{value:.6g} {unit}"
        print(f"{shape}: {what}: {shown} {note}".rstrip(), flush=True)

    def timed(self, shape: str, what: str, timing: Timing, amount: float, unit: str, note: str = "") -> None:
        """A rate: amount per second, with its spread."""
        spread = {"low": amount / timing.high, "high": amount / timing.low}
        self.add(shape, what, amount / timing.median, unit, note, **spread)

    def markdown(self) -> str:
        facts = ", ".join(f"{key} {value}" for key, value in self.machine.items())
        lines = ["# coterie on one accelerator", "", facts, ""]
        lines += ["| model | what | value | spread | note |", "| --- | --- | --: | --- | --- |"]
        for row in self.rows:
            value = "-" if row["value"] is None else f"{row['value']:.4g} {row['unit']}"
            spread = f"{row['low']:.4g} to {row['high']:.4g}" if "low" in row else ""
            lines.append(f"| {row['shape']} | {row['what']} | {value} | {spread} | {row['note']} |")
        lines += ["", "Work: " + "; ".join(json.dumps(item) for item in self.work), ""]
        return "\n".join(lines)


# --- the machine --------------------------------------------------------------------------------------------------


def synchronize(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(run: Callable[[], Any], device: Any, *, rounds: int, warm: int = 1) -> Timing:
    """Seconds a call, by CUDA events on a GPU (both ends synchronised) and by the clock elsewhere."""
    import torch

    for _ in range(warm):
        run()
    taken = []
    for _ in range(rounds):
        synchronize(device)
        if device.type == "cuda":
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            first.record()
            run()
            last.record()
            torch.cuda.synchronize(device)
            taken.append(first.elapsed_time(last) / 1e3)
        else:
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
    return Timing(median=statistics.median(taken), low=min(taken), high=max(taken), runs=rounds)


def ceilings(device: Any, dtype: Any, *, tiny: bool) -> dict[str, Any]:
    """Matrix product rate and copy bandwidth of this machine, and what its maker promises."""
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    size = 256 if tiny else 8192
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product = measure(lambda: left @ right, device, rounds=5, warm=3)
    source = torch.empty((1 << 20) if tiny else (1 << 30), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = measure(lambda: target.copy_(source), device, rounds=5, warm=3)
    measured = 2 * size**3 / product.median
    promised = next((rate for part, rate in DENSE_BF16.items() if part in name and "PCIe" not in name), None)
    if dtype != torch.bfloat16:
        promised = None
    return {
        "device": name,
        "torch": torch.__version__,
        "matmul_flops": measured,
        "peak_flops": promised or measured,
        "peak_from": "data sheet" if promised else "measured matmul",
        "copy_bytes_per_s": 2 * source.numel() / copied.median,
    }


def peak_memory(device: Any) -> float | None:
    import torch

    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


def forget(device: Any) -> None:
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


# --- the work -----------------------------------------------------------------------------------------------------


def make_model(work: Work) -> Any:
    """A random causal model at the named shape that ends completions at random."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    shape = SHAPES[work.shape]
    config = Qwen2Config(
        **shape, max_position_embeddings=32768, rope_parameters=ROPE, bos_token_id=END, eos_token_id=END, pad_token_id=0
    )
    torch.manual_seed(0)
    dtype = getattr(torch, work.dtype)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    bias = torch.zeros(config.vocab_size, dtype=dtype)
    # The head's other logits are about normal with deviation 0.02·√hidden, so they sum to V·exp(variance / 2).
    rest = math.log(config.vocab_size) + 0.02**2 * config.hidden_size / 2
    bias[END] = rest + math.log(2 / work.max_tokens)
    bias[0] = -1e4  # never says the padding
    model.lm_head.bias = torch.nn.Parameter(bias, requires_grad=False)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = END, 0
    return model.to(work.device).eval()


def prompts_of(work: Work, step: int = 0) -> list[tuple[int, ...]]:
    import numpy as np

    rng = np.random.default_rng(1000 + step)
    vocabulary = SHAPES[work.shape]["vocab_size"]
    lengths = rng.integers(max(1, work.prompt_tokens * 3 // 4), work.prompt_tokens + 1, work.prompts)
    return [tuple(int(x) for x in rng.integers(3, vocabulary, length)) for length in lengths]


def reward_of(prompt: Sequence[int], completion: Sequence[int], zero_share: float) -> float:
    """Right or wrong by a hash of the tokens; always right on the share of the prompts without variance."""
    if (sum(prompt) * 2654435761 % 1000) / 1000 < zero_share:
        return 1.0
    return float(sum(completion) % 2)


class Codec:
    """Nothing is decoded here."""

    stop_ids = frozenset({END})

    def decode(self, ids: Sequence[int]) -> str:
        return ""


def requests_of(work: Work, version: int) -> list[Any]:
    from coterie.engines.base import Request
    from coterie.types import SampleKey

    return [
        Request(key=SampleKey(seed=0, version=version, prompt=f"q{index}", sample=sample), prompt_tokens=prompt)
        for index, prompt in enumerate(prompts_of(work, version))
        for sample in range(work.group)
    ]


def rollouts_of(requests: Sequence[Any], turns: Sequence[Any], zero_share: float) -> list[Any]:
    from benchmarks.peers.rollouts import rollout

    return [
        rollout(key.prompt, key.sample, turn, reward_of(turn.prompt_tokens, turn.tokens, zero_share))
        for key, turn in zip((request.key for request in requests), turns, strict=True)
    ]


def batches_of(work: Work, rollouts: Sequence[Any], *, skip_zero: bool = True) -> list[Any]:
    from coterie.algo.advantages import by_prompt, credit
    from coterie.batches.pack import plan
    from coterie.config.objective import AdvantageConfig

    by_id = {rollout.id: rollout for rollout in rollouts}
    credits = credit(by_prompt(rollouts), by_id, AdvantageConfig(), clip_low=0.2, clip_high=0.2)
    return plan(
        rollouts, credits, loss_agg_mode="token-mean", max_tokens_per_microbatch=work.budget, skip_zero=skip_zero
    )


def update_flops(work: Work, batches: Sequence[Any]) -> float:
    """Floating-point operations that the update's maths needs: 6 a weight and token, and the attention's pairs."""
    shape = SHAPES[work.shape]
    hidden, layers, heads = shape["hidden_size"], shape["num_hidden_layers"], shape["num_attention_heads"]
    size = hidden // heads
    attention = 2 * hidden * hidden + 2 * hidden * shape["num_key_value_heads"] * size
    weights = layers * (attention + 3 * hidden * shape["intermediate_size"])
    total = 0.0
    for batch in batches:
        pairs = 0
        for segment in batch.segments:
            pairs += segment.prompt * (segment.prompt + 1) // 2
            pairs += sum(length * segment.prompt + length * (length + 1) // 2 for length in segment.lengths)
        total += 6 * (weights * len(batch.tokens) + hidden * shape["vocab_size"] * len(batch.targets))
        total += 12 * layers * hidden * pairs
    return total


# --- what is measured ---------------------------------------------------------------------------------------------


def random_pool(policy: Any, slots: int, capacity: int) -> Any:
    """Keys and values of rows that hold random sequences."""
    import torch

    from coterie.policy.kv import KVPool

    config = policy.model.config
    size = config.hidden_size // config.num_attention_heads
    pool = KVPool(slots, capacity)
    generator = torch.Generator(policy.device).manual_seed(0)
    shape = (slots, config.num_key_value_heads, capacity, size)
    for layer in range(config.num_hidden_layers):
        for tensors in (pool.keys, pool.values):
            tensors[layer] = torch.randn(shape, generator=generator, device=policy.device, dtype=policy.dtype)
    return pool


def bench_decode(report: Report, work: Work, policy: Any) -> None:
    """One decode step at full slots and half the longest span: captured against eager and the memory's limit."""
    import torch

    from coterie.engines.static import EagerRunner, StaticDecoder
    from coterie.policy.kv import reserved

    slots = work.prompts * work.group
    capacity = reserved(work.prompt_tokens + work.max_tokens)
    at = work.prompt_tokens + work.max_tokens // 2
    tokens, positions = list(range(3, 3 + slots)), [at] * slots
    graph = StaticDecoder(policy, random_pool(policy, slots, capacity))
    plain = StaticDecoder(policy, random_pool(policy, slots, capacity), EagerRunner())
    got, want = graph.step(tokens, positions), plain.step(tokens, positions)
    apart = float((got.float() - want.float()).abs().max() / want.float().abs().max().clamp(min=1e-9))
    report.add(work.shape, "captured decode, largest difference from eager", apart, "of the largest logit")
    weights = sum(p.numel() * p.element_size() for p in policy.model.parameters())
    cache_bytes = sum(t[:, :, : at + 1].numel() * t.element_size() for t in (*graph.pool.keys.values(),)) * 2
    rounds = max(10, work.rounds)
    for name, decoder in (("captured", graph), ("eager", plain)):
        timing = measure(lambda decoder=decoder: decoder.step(tokens, positions), policy.device, rounds=rounds, warm=3)
        note = f"{slots} rows at position {at}"
        report.timed(work.shape, f"{name} decode step", timing, slots, "tokens/s", note)
        share = (weights + cache_bytes) / timing.median / report.machine["copy_bytes_per_s"]
        note = "bytes of weights, keys and values read a step, over the measured copy bandwidth"
        report.add(work.shape, f"{name} decode, bandwidth efficiency", 100 * share, "%", note)
    synchronize(policy.device)
    del graph, plain, got, want
    torch.cuda.empty_cache() if policy.device.type == "cuda" else None


def bench_generate(report: Report, work: Work, policy: Any) -> list[Any]:
    """The engine's whole call; returns rollouts for the update."""
    from coterie.engines.base import Sampling
    from coterie.engines.embedded import EmbeddedEngine

    engine = EmbeddedEngine(policy, Codec(), max_num_seqs=work.prompts * work.group)
    sampling = Sampling(temperature=1.0, max_tokens=work.max_tokens, timeout_s=3600)
    requests = requests_of(work, 0)
    turns: list[Any] = []

    def run() -> None:
        turns[:] = engine.generate(requests, sampling)

    timing = measure(run, policy.device, rounds=work.rounds)
    sampled = sum(len(turn.tokens) for turn in turns)
    note = f"{len(turns)} completions, {sampled / len(turns):.0f} tokens on average"
    report.timed(work.shape, "generation", timing, sampled, "tokens/s", note)
    engine.close()
    return rollouts_of(requests, turns, work.zero_share)


def row_gradient(policy: Any, batch: Any, kernel: Any) -> dict[str, Any]:
    """Gradient of the weighted log-probabilities of one packed row under one attention kernel."""
    import torch

    from coterie.policy.kernels import packed_layout, pad_row
    from coterie.policy.logprobs import OutputFlags, chunked_scores

    device = policy.device
    layout = packed_layout(batch.segments, device, kernel)
    tokens, positions = (torch.from_numpy(values).to(device)[None] for values in (batch.tokens, batch.positions))
    tokens, positions = pad_row(tokens, positions, layout)
    hidden = policy.hidden(tokens, positions, layout)[0]
    states = hidden.index_select(0, torch.from_numpy(batch.sources).to(device))
    targets = torch.from_numpy(batch.targets).to(device)
    head = policy.head
    logprobs = chunked_scores(states, head.weight, head.bias, targets, temperature=1.0, flags=OutputFlags()).logprobs
    # Credit of both signs that never is all zero, unlike that of a few rollouts may be.
    signs = torch.arange(len(targets), device=device, dtype=logprobs.dtype).cos()
    weights = torch.from_numpy(batch.weights).to(device, logprobs.dtype) * signs
    parameters = policy.parameters()
    gradients = torch.autograd.grad((logprobs * weights).sum(), list(parameters.values()), allow_unused=True)
    return {name: grad for name, grad in zip(parameters, gradients, strict=True) if grad is not None}


def bench_kernels(report: Report, work: Work, policy: Any, batches: Sequence[Any]) -> None:
    """FlexAttention against the plain layout on one packed row: same gradient, how fast."""
    import torch

    from coterie.errors import ModelError
    from coterie.policy.kernels import choose_kernel

    batch = max(batches, key=lambda item: len(item.tokens))
    flops = update_flops(work, [batch])
    grads: dict[str, dict[str, Any]] = {}
    for name in ("sdpa", "flex"):
        try:
            kernel = choose_kernel(policy, name)
            grads[name] = row_gradient(policy, batch, kernel)
            timing = measure(lambda k=kernel: row_gradient(policy, batch, k), policy.device, rounds=work.rounds)
        except (ModelError, torch.cuda.OutOfMemoryError) as error:
            report.add(work.shape, f"row of {len(batch.tokens)} tokens, {name}", None, "", str(error).splitlines()[0])
            continue
        what = f"forward and backward of a row, {name}"
        report.timed(work.shape, what, timing, len(batch.tokens), "tokens/s", f"{len(batch.tokens)} tokens")
        share = flops / timing.median / report.machine["peak_flops"]
        report.add(work.shape, f"{what}, MFU", 100 * share, "%", report.machine["peak_from"])
    if len(grads) == 2:
        dot = norm_a = norm_b = 0.0
        for key, gradient in grads["sdpa"].items():
            a, b = gradient.double().flatten(), grads["flex"][key].double().flatten()
            dot, norm_a, norm_b = dot + float(a @ b), norm_a + float(a @ a), norm_b + float(b @ b)
        cosine = dot / math.sqrt(norm_a * norm_b) if norm_a and norm_b else float("nan")
        report.add(work.shape, "gradient, flex against sdpa, 1 - cosine", 1 - cosine, "", work.dtype)


def learner_of(policy: Any) -> Any:
    from coterie.algo.objective import Objective
    from coterie.config.optim import OptimConfig
    from coterie.policy.learner import Learner

    return Learner(policy, optim=OptimConfig(lr=1e-6), objective=Objective(), temperature=1.0, total_steps=1000)


def bench_update(report: Report, work: Work, learner: Any, batches: Sequence[Any]) -> None:
    device = learner.policy.device
    timing = measure(lambda: learner.update([batches]), device, rounds=work.rounds)
    run = sum(len(batch.tokens) for batch in batches)
    trained = sum(len(batch.targets) for batch in batches)
    note = f"{trained} trained tokens in {len(batches)} rows of {run} tokens in all"
    report.timed(work.shape, "update", timing, trained, "trained tokens/s", note)
    share = update_flops(work, batches) / timing.median / report.machine["peak_flops"]
    report.add(work.shape, "update, MFU", 100 * share, "%", report.machine["peak_from"])


def bench_step(report: Report, work: Work, learner: Any) -> float:
    """Sample, score, credit, update; returns the median seconds."""
    from coterie.engines.base import Sampling
    from coterie.engines.embedded import EmbeddedEngine

    engine = EmbeddedEngine(learner.policy, Codec(), max_num_seqs=work.prompts * work.group)
    sampling = Sampling(temperature=1.0, max_tokens=work.max_tokens, timeout_s=3600)
    version = 0

    def run() -> None:
        nonlocal version
        engine.commit(version)
        requests = requests_of(work, version)
        rollouts = rollouts_of(requests, engine.generate(requests, sampling), work.zero_share)
        learner.update([batches_of(work, rollouts)])
        version += 1

    timing = measure(run, learner.policy.device, rounds=work.rounds)
    note = f"{work.prompts} × {work.group} rollouts"
    report.add(work.shape, "step", timing.median, "s", note, low=timing.low, high=timing.high)
    engine.close()
    return timing.median


def bench_coterie(report: Report, work: Work) -> float:
    """All of coterie at one shape; returns the seconds of a step."""
    import torch

    from coterie.policy.model import Policy

    device = torch.device(work.device)
    forget(device)
    policy = Policy(make_model(work), name=work.shape)
    bench_decode(report, work, policy)
    rollouts = bench_generate(report, work, policy)
    every = batches_of(work, rollouts, skip_zero=False)
    bench_kernels(report, work, policy, every)
    forget(device)
    learner = learner_of(policy)
    bench_update(report, work, learner, every)
    seconds = bench_step(report, work, learner)
    report.add(work.shape, "peak memory", peak_memory(device), "GiB", "update and steps")
    return seconds


# --- TRL ----------------------------------------------------------------------------------------------------------


def bench_trl(report: Report, work: Work, *, paged: bool, ours: float) -> None:
    """TRL's step at the same work, or what keeps it from running."""
    import torch

    what = "TRL step, paged continuous batching" if paged else "TRL step, HF generate"
    forget(torch.device(work.device))
    try:
        steps, generating = _trl_steps(work, paged=paged)
    except ImportError as error:
        report.add(work.shape, what, None, "s", f"not run, missing: {error}")
        return
    except Exception as error:  # another project's failure must not cost the figures that we have
        report.add(work.shape, what, None, "s", f"failed: {type(error).__name__}: {str(error)[:200]}")
        return
    median = statistics.median(steps)
    report.add(work.shape, what, median, "s", f"{work.dtype} weights", low=min(steps), high=max(steps))
    seconds = statistics.median(taken for taken, _ in generating)
    report.add(work.shape, f"{what}: of it generation", seconds, "s")
    note = (
        f"{statistics.mean(sampled for _, sampled in generating) / (work.prompts * work.group):.0f} tokens on average"
    )
    rate = statistics.median(sampled / taken for taken, sampled in generating)
    report.add(work.shape, f"{what}: generation", rate, "tokens/s", note)
    report.add(work.shape, f"{what}: peak memory", peak_memory(torch.device(work.device)), "GiB")
    report.add(work.shape, f"ratio of steps, {'paged' if paged else 'HF generate'}", median / ours, "×")


def _tokenizer(vocabulary: int) -> Any:
    """Word k is token k."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"t{index}": index for index in range(vocabulary)}
    inner = Tokenizer(models.WordLevel(words, unk_token="t2"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="t0", eos_token="t1", unk_token="t2")


def _trl_steps(work: Work, *, paged: bool) -> tuple[list[float], list[tuple[float, int]]]:
    """Seconds of each step; seconds and tokens of its generation. The first step is left out."""
    import tempfile

    import torch

    trl: Any = importlib.import_module("trl")
    datasets: Any = importlib.import_module("datasets")
    importlib.import_module("trl.trainer.grpo_trainer")  # TRL imports what it needs late: find out now

    device = torch.device(work.device)
    generating: list[tuple[float, int]] = []
    ends: list[float] = []

    class Timed(trl.GRPOTrainer):
        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            synchronize(device)
            start = time.perf_counter()
            out = super()._generate_single_turn(*args, **kwargs)
            synchronize(device)
            generating.append((time.perf_counter() - start, sum(len(ids) for ids in out[0])))
            return out

        def log(self, *args: Any, **kwargs: Any) -> None:  # once a step (logging_steps = 1)
            synchronize(device)
            ends.append(time.perf_counter())

    def reward(prompts: Sequence[str], completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        numbers = [[int(word[1:]) for word in prompt.split()] for prompt in prompts]
        return [reward_of(p, c, work.zero_share) for p, c in zip(numbers, completion_ids, strict=True)]

    steps = work.rounds + 2
    texts = [" ".join(f"t{token}" for token in p) for step in range(steps) for p in prompts_of(work, step)]
    total = work.prompts * work.group
    part = next(size for size in (8, 4, 2, 1) if total % size == 0)
    with tempfile.TemporaryDirectory() as folder:
        config = trl.GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=part,
            gradient_accumulation_steps=total // part,
            num_generations=work.group,
            max_completion_length=work.max_tokens,
            temperature=1.0,
            learning_rate=1e-6,
            beta=0.0,
            max_steps=steps,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            bf16=work.dtype == "bfloat16",
            use_cpu=device.type == "cpu",
            disable_tqdm=True,
            use_transformers_continuous_batching=paged,
        )
        trainer = Timed(
            model=make_model(work),
            reward_funcs=reward,
            args=config,
            train_dataset=datasets.Dataset.from_dict({"prompt": texts}),
            processing_class=_tokenizer(SHAPES[work.shape]["vocab_size"]),
        )
        trainer.train()
    taken = [after - before for before, after in itertools.pairwise(ends)][: work.rounds]
    return taken, generating[1 : 1 + work.rounds]


# --- the program --------------------------------------------------------------------------------------------------


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for gpu.md and gpu.json")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and little work: a check, not a measurement")
    parser.add_argument(
        "--shape", action="append", choices=list(SHAPES), help="repeatable; both Qwen2.5 shapes if left out"
    )
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--zero-share", type=float, default=0.5)
    parser.add_argument("--budget", type=int, default=16384, help="tokens of a packed row")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--path", type=Path, action="append", default=[], help="folder with further Python packages")
    parser.add_argument("--trl", type=Path, help="folder with TRL and the packages it needs")
    parser.add_argument("--no-trl", action="store_true", help="measure coterie alone, even where TRL is installed")
    return parser.parse_args(argv)


def works(options: argparse.Namespace) -> list[Work]:
    small = options.tiny
    return [
        Work(
            shape=shape,
            prompts=2 if small else options.prompts,
            group=4 if small else options.group,
            prompt_tokens=24 if small else options.prompt_tokens,
            max_tokens=16 if small else options.max_tokens,
            rounds=1 if small else options.rounds,
            zero_share=options.zero_share,
            budget=options.budget,
            dtype="float32" if small else options.dtype,
            device=options.device,
        )
        for shape in (options.shape or (["tiny"] if small else ["qwen2.5-0.5b", "qwen2.5-1.5b"]))
    ]


@contextmanager
def search(folders: Sequence[Path]) -> Any:
    """Let carried packages be imported; what is installed goes first."""
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        sys.exit(f"no such folder: {', '.join(missing)}")
    sys.path.extend(str(folder) for folder in folders)
    try:
        yield
    finally:
        for folder in folders:
            sys.path.remove(str(folder))


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    folders = [ROOT, ROOT / "src", *options.path, *([options.trl] if options.trl else [])]
    with search(folders):
        import torch

        if options.device.startswith("cuda") and not torch.cuda.is_available():
            sys.exit("torch sees no CUDA device; for a check without one: --device cpu --tiny")
        planned = works(options)
        device = torch.device(options.device)
        report = Report(machine=ceilings(device, getattr(torch, planned[0].dtype), tiny=options.tiny))
        options.out.mkdir(parents=True, exist_ok=True)
        for work in planned:
            report.work.append(asdict(work))
            ours = bench_coterie(report, work)
            for paged in (False, True) if not options.no_trl else ():
                bench_trl(report, work, paged=paged, ours=ours)
            # After every model, so that a run cut short keeps what it has.
            (options.out / "gpu.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
            (options.out / "gpu.md").write_text(report.markdown())
    return 0


if __name__ == "__main__":
    sys.exit(main())
