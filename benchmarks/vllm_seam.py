"""vLLM through the seam beside vLLM alone, and the gap of its log-probs to the learner's.

`python -m benchmarks.vllm_seam [--dtype float32]` asks a service of the engine `vllm`, and vLLM's own `LLM` in a
process of its own, the same requests, in turn, with one thread each; nothing else should run. vLLM's environment is
made in .bench on first use. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

from coterie.cluster.frames import packed_request, packed_sampling, request_of, sampling_of
from coterie.engines.base import Request, Sampling
from coterie.rng import seed_of
from coterie.types import SampleKey, Turn

QUESTION = "Tom has {count} apples and gives {given} of them to Ann. How many apples does Tom have now? Think first."


def alone() -> None:
    """In vLLM's environment: answer the batches of the standard input with `LLM`, a line of JSON each."""
    setup = json.loads(sys.stdin.readline())
    vllm: Any = importlib.import_module("vllm")
    llm = vllm.LLM(**setup["arguments"])
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        batch = json.loads(line)
        sampling = sampling_of(batch["sampling"])
        requests = [request_of(row) for row in batch["requests"]]
        parameters = [
            vllm.SamplingParams(
                temperature=sampling.temperature,
                max_tokens=sampling.max_tokens,
                seed=seed_of(request.key),
                logprobs=0,
                stop_token_ids=setup["stop_ids"],
                ignore_eos=True,
                detokenize=False,
            )
            for request in requests
        ]
        prompts = [{"prompt_token_ids": list(request.prompt_tokens)} for request in requests]
        began, spent = time.perf_counter(), time.process_time()
        outputs = llm.generate(prompts, parameters, use_tqdm=False)
        seconds, cpu = time.perf_counter() - began, time.process_time() - spent
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        print(json.dumps({"tokens": tokens, "seconds": seconds, "cpu": cpu}), flush=True)


def cpu_seconds(pid: int) -> float:
    """Of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def gap(policy: Any, turns: list[Turn]) -> dict[str, float]:
    """Of log-probs of the engine to those of a forward pass of the policy, per token: π_policy / π_engine and k3."""
    import torch

    differences, network = [], deepcopy(policy.model)
    network.set_attn_implementation("eager")
    for turn in turns:
        ids = torch.tensor([[*turn.prompt_tokens, *turn.tokens]])
        with torch.inference_mode():
            logits = network(input_ids=ids).logits[0, len(turn.prompt_tokens) - 1 : -1].float()
        exact = torch.log_softmax(logits, -1).gather(1, torch.tensor(turn.tokens)[:, None])[:, 0]
        differences.append(exact - torch.tensor(turn.sampler_logprobs))
    log_ratio = torch.cat(differences).double()
    ratio = log_ratio.exp()
    return {
        "tokens": len(log_ratio),
        "mean absolute gap, nats": float(log_ratio.abs().mean()),
        "largest, nats": float(log_ratio.abs().max()),
        "k3 a token": float((ratio - 1 - log_ratio).mean()),
        "share of ratios outside 0.8 to 1.2": float(((ratio < 0.8) | (ratio > 1.2)).double().mean()),
    }


def main() -> None:
    options = _options()
    import torch

    from benchmarks.peers.environments import ensure
    from coterie.build.services import vllm_engine
    from coterie.config.schema import RunConfig
    from coterie.data import assets
    from coterie.data.chat import load_chat
    from coterie.policy.model import load
    from coterie.types import Message

    torch.set_num_threads(1)
    folder = str(assets.ensure(options.model)) if options.model in assets.ASSETS else options.model
    python = options.python or str(ensure("vllm", say=lambda text: print(text, file=sys.stderr)))
    longest = 128 + options.max_tokens
    tables = {
        "threads": 1,
        "model": {"name": folder, "dtype": options.dtype},
        "engine": {"name": "vllm", "python": python, "max_num_seqs": options.prompts * options.samples},
        "cluster": {"host": "processes", "threads": 1},
    }
    config = RunConfig.model_validate(tables)
    policy = load(config.model, folder, dtype=getattr(torch, options.dtype), device=torch.device("cpu"))
    chat = load_chat(folder)
    texts = [QUESTION.format(count=10 + number, given=1 + number % 9) for number in range(options.prompts)]
    ids = [tuple(chat.render([Message(role="user", content=text)])) for text in texts]
    sampling = Sampling(temperature=1.0, max_tokens=options.max_tokens, timeout_s=3600.0)

    def batch(repetition: int) -> list[Request]:
        return [
            Request(key=SampleKey(seed=repetition, version=0, prompt=str(p), sample=k), prompt_tokens=ids[p])
            for p in range(options.prompts)
            for k in range(options.samples)
        ]

    engine = vllm_engine(policy, chat, config, longest)
    order: Any = engine._order.arguments
    on_cpu: Any = importlib.import_module("coterie.cluster.vllm_engine").on_cpu
    arguments = {**on_cpu(order["arguments"], order["cache_bytes"]), **order["arguments"]}
    host: Any = engine._host
    other = subprocess.Popen(
        [python, "-m", "benchmarks.vllm_seam", "--alone"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | host.environment | _variables(),
    )
    assert other.stdin is not None
    assert other.stdout is not None
    ask(other, {"arguments": arguments, "stop_ids": order["stop_ids"]})
    rows: dict[str, list[dict[str, float]]] = {"alone": [], "through the seam": []}
    turns: list[Turn] = []
    engine.generate(batch(0)[:1], sampling)
    for repetition in range(options.repeat + 1):  # the first one warms both up
        requests = batch(repetition)
        message = {"requests": [packed_request(request) for request in requests], "sampling": packed_sampling(sampling)}
        measured = {"alone": ask(other, message)}
        (member,) = engine._members
        service: Any = member.service
        pid = service.process.pid
        began, spent, ours = time.perf_counter(), cpu_seconds(pid), time.process_time()
        turns = engine.generate(requests, sampling)
        measured["through the seam"] = {
            "tokens": sum(len(turn.tokens) for turn in turns),
            "seconds": time.perf_counter() - began,
            "cpu": cpu_seconds(pid) - spent + time.process_time() - ours,
        }
        for name, row in measured.items() if repetition else ():
            rows[name].append(row)
    engine.close()
    other.stdin.close()
    other.wait()
    _print(options, rows, gap(policy, turns))


def ask(process: subprocess.Popen[str], message: dict[str, Any]) -> dict[str, float]:
    """Write a line, and read the line that answers it; what vLLM prints besides is passed over."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(message) + "\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith("{"):
            return json.loads(line)
    raise SystemExit("vLLM ended; its reason is above")


def _variables() -> dict[str, str]:
    root = Path(__file__).resolve().parents[1]
    path = os.pathsep.join([str(root / "src"), str(root)])
    return {
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }


def _print(options: argparse.Namespace, rows: dict[str, list[dict[str, float]]], distances: dict[str, float]) -> None:
    size = f"{options.prompts} prompts × {options.samples}"
    print(f"{options.model}, {options.dtype}, {size}, {options.repeat} repetitions\n")
    print("| vLLM | tokens a second | tokens a CPU second |\n| --- | --- | --- |")
    middle = {}
    for name, measured in rows.items():
        cells = []
        for unit in ("seconds", "cpu"):
            speeds = sorted(row["tokens"] / row[unit] for row in measured)
            middle[name, unit] = statistics.median(speeds)
            cells.append(f"{middle[name, unit]:.1f} [{speeds[0]:.1f}, {speeds[-1]:.1f}]")
        print(f"| {name} | {' | '.join(cells)} |")
    shares = [middle["through the seam", unit] / middle["alone", unit] for unit in ("seconds", "cpu")]
    print(f"| share of alone | {shares[0]:.3f} | {shares[1]:.3f} |\n")
    print("\n".join(f"- {name}: {value:.3g}" for name, value in distances.items()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--python", default="", help="interpreter with vLLM")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    alone() if "--alone" in sys.argv else main()
