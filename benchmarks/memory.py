"""Peak memory of one process per configuration: token budget × checkpointing × optimizer state.

    python benchmarks/memory.py
    python benchmarks/memory.py --budgets 1024 --states float32 8bit
    python benchmarks/memory.py --lengths 40

Each row loads the model, samples a few tokens of every slot and makes two updates of rows at the full token budget, in
a fresh process. Memory, not time: it may run beside other work. `--lengths` measures how memory grows over passes
forward and backward whose rows all have other lengths, with as many kernels kept as torch keeps, and as coterie does.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from typing import Any

MIB = 2**20
PHASES = ("loaded", "learner", "sampling", "backward", "step", "peak")


def main() -> None:
    options = _options()
    if options.lengths:
        growth(options)
        return
    if options.one:
        print(json.dumps(measure(options)))
        return
    print("| token budget | checkpointing | state | " + " | ".join(f"{phase}, MiB" for phase in PHASES) + " |")
    print("| --: | --- | --- |" + " --: |" * len(PHASES), flush=True)
    for budget, checkpointing, state in itertools.product(options.budgets, options.checkpointing, options.states):
        words = ["--budgets", str(budget), "--checkpointing", checkpointing, "--states", state]
        for name in ("model", "prompts", "group_size", "prompt_tokens", "max_tokens", "threads", "lora"):
            words += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
        child = subprocess.run([sys.executable, __file__, "--one", *words], capture_output=True, text=True)
        if child.returncode:
            cells = ["failed: " + (child.stderr.strip().splitlines() or ["killed"])[-1]]
        else:
            peaks = json.loads(child.stdout.splitlines()[-1])
            cells = [f"{peaks[phase]:.0f}" for phase in PHASES]
        print(f"| {budget} | {checkpointing} | {state} | " + " | ".join(cells) + " |", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--checkpointing", nargs="+", choices=["no", "yes"], default=["no", "yes"])
    parser.add_argument("--states", nargs="+", choices=["float32", "8bit"], default=["float32"])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lora", type=int, default=0, help="rank; 0 trains all weights")
    parser.add_argument("--lengths", type=int, default=0, help="number of lengths of a row")
    parser.add_argument("--kernels", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def growth(options: argparse.Namespace) -> None:
    """Resident memory after each quarter of the passes, and seconds of the processor, by the number of kernels kept."""
    from coterie import machine

    if options.kernels:
        print(json.dumps(_grown(options)))
        return
    print("| kernels kept | first pass, MiB | 1/4 | 1/2 | 3/4 | all | processor, s |")
    print("|" + " --: |" * 7)
    for kept in (1024, machine.KERNELS):
        words = ["--lengths", str(options.lengths), "--kernels", str(kept), "--model", options.model]
        env = machine.clean_environment() | dict.fromkeys(machine.KERNEL_CACHES, str(kept))
        child = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, env=env, check=True)
        *sizes, seconds = json.loads(child.stdout.splitlines()[-1])
        print(f"| {kept} | {' | '.join(f'{size:.0f}' for size in sizes)} | {seconds:.0f} |", flush=True)


def _grown(options: argparse.Namespace) -> list[float]:
    import torch

    from coterie import machine
    from coterie.batches.pack import largest
    from coterie.build import reading, run
    from coterie.build.learner import objective_for
    from coterie.callbacks import Callback
    from coterie.config.schema import RunConfig
    from coterie.policy.learner import Learner

    config = RunConfig.model_validate({"threads": options.threads, "model": {"name": options.model}})
    run.use_threads(config)
    policy = run.load_policy(config, reading.locate_model(config.model.name, Callback()))
    learner = Learner(policy, optim=config.optim, objective=objective_for(config), temperature=1.0, total_steps=2)
    sizes, began = [], time.process_time()
    lengths = torch.randperm(options.lengths, generator=torch.Generator().manual_seed(0)).tolist()
    for number, extra in enumerate(lengths, start=1):
        batch = largest(
            prompt=options.prompt_tokens + extra, completion=40, prompts=1, group_size=4, max_tokens_per_microbatch=1024
        )
        learner.gradient([batch])
        if number in (1, *(options.lengths * quarter // 4 for quarter in (1, 2, 3, 4))):
            sizes.append(machine.resident() / MIB)
    return [*sizes, time.process_time() - began]


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Highest resident memory of each phase in MiB, `peak` the highest of all; the process is used up."""
    from coterie.batches.pack import largest
    from coterie.build import reading, run
    from coterie.build.learner import objective_for
    from coterie.callbacks import Callback
    from coterie.config.schema import RunConfig
    from coterie.policy import memory
    from coterie.policy.learner import Learner

    config = RunConfig.model_validate(
        {
            "threads": options.threads,
            "model": {"name": options.model, "lora": {"rank": options.lora} if options.lora else None},
            "sampling": {"max_tokens": options.max_tokens},
            "collect": {"prompts_per_step": options.prompts, "group_size": options.group_size},
            "optim": {
                "max_tokens_per_microbatch": options.budgets[0],
                "gradient_checkpointing": options.checkpointing[0] == "yes",
                "moments": options.states[0],
            },
        }
    )
    run.use_threads(config)
    source = reading.locate_model(config.model.name, Callback())
    policy = run.load_policy(config, source)
    peaks: dict[str, float] = {}

    def mark(phase: str) -> None:
        peaks[phase] = memory.peak(policy.device) / MIB
        memory.reset_peak(policy.device)

    mark("loaded")
    learner = Learner(policy, optim=config.optim, objective=objective_for(config), temperature=1.0, total_steps=2)
    mark("learner")
    _sample(config, source, policy, options)
    mark("sampling")
    batch = largest(
        prompt=options.prompt_tokens,
        completion=options.max_tokens,
        prompts=options.prompts,
        group_size=options.group_size,
        max_tokens_per_microbatch=config.optim.max_tokens_per_microbatch,
    )
    learner.gradient([batch, batch])  # two: the second adds to the sum of the first
    mark("backward")
    learner.update([[batch]])
    mark("step")
    return peaks | {"peak": max(peaks.values())}


def _sample(config: Any, source: str, policy: Any, options: argparse.Namespace) -> None:
    """Reserve what the engine reserves for full-length completions, and sample a few tokens of each."""
    from coterie.build import run
    from coterie.data.chat import load_chat
    from coterie.engines.base import Request, Sampling
    from coterie.types import SampleKey

    capacity = options.prompt_tokens + options.max_tokens
    engine = run.embedded_engine(policy, load_chat(source, None), config, capacity)
    requests = [
        Request(
            key=SampleKey(seed=0, version=0, prompt=str(prompt), sample=sample),
            prompt_tokens=tuple(range(10 + prompt, 10 + prompt + options.prompt_tokens)),
        )
        for prompt in range(options.prompts)
        for sample in range(options.group_size)
    ]
    _KEPT.append(engine)  # its memory stays reserved, as in a run
    engine.generate(requests, Sampling(temperature=1.0, max_tokens=min(4, options.max_tokens)))


_KEPT: list[Any] = []


if __name__ == "__main__":
    main()
