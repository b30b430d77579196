"""How close coterie comes to what the machine can do: its ceilings, then prefill, decode and update against them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import roof_profile
from benchmarks.peers.growth_step import MODEL, Sizes, heading, load_policy, use_threads
from benchmarks.peers.roof_ceilings import Shapes, Stack, bandwidth, square
from benchmarks.peers.roof_phases import Bench, Phase, measure
from coterie.policy.logprobs import CHUNK
from coterie.policy.model import Policy

ROWS = (1, 8, 32, 64, 128, 512)
REFERENCE_ROWS = 64
"""Row count of the ceiling that the aims are stated against."""
AIMS = {"decode": 0.60, "update": 0.70}
"""Share of the ceiling at `REFERENCE_ROWS`."""
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """The machine's own best."""

    stack: Mapping[str, Mapping[int, float]]
    """dtype → rows → FLOP/s of the model's linear layers, head included."""
    square: Mapping[str, float]
    """dtype → FLOP/s."""
    memory: Mapping[str, float]
    """`read` and `copy` → bytes a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A phase against its ceilings."""

    phase: Phase
    flops: float
    """2N a token forward and 6N with the backward pass: N the body's parameters for every token, the head's for every
    state that goes through it. The head's recomputation in the backward pass is not counted."""
    floor: float | None
    """Seconds of the same matrix products alone, at the same rows."""
    reference: float
    """FLOP/s of the stack at `REFERENCE_ROWS`."""
    bytes_floor: float | None = None
    """Decode only: seconds of reading the weights, and every row's keys and values, once a step at the bandwidth."""

    @property
    def rate(self) -> float:
        """FLOP/s reached."""
        return self.flops / self.phase.seconds

    def record(self) -> dict[str, Any]:
        return asdict(self) | {
            "flops_per_second": self.rate,
            "of_ceiling": None if self.floor is None else self.floor / self.phase.seconds,
            "of_ceiling_at_64_rows": self.rate / self.reference,
            "of_bytes_floor": None if self.bytes_floor is None else self.bytes_floor / self.phase.seconds,
        }


def ceilings(
    shapes: Shapes, *, seconds: float, rows: Sequence[int] = ROWS, side: int = 2048, size: int = 1 << 29
) -> Ceilings:
    """Measure them; `seconds` for each figure at least."""
    stack: dict[str, dict[int, float]] = {}
    for name, dtype in DTYPES.items():
        layers = Stack([*shapes.body, shapes.head], dtype, seconds)
        stack[name] = {count: 2 * layers.size * count / layers.forward(count) for count in rows}
    squares = {name: square(side, dtype, seconds) for name, dtype in DTYPES.items()}
    return Ceilings(stack=stack, square=squares, memory=bandwidth(size, seconds))


def against(
    policy: Policy, phases: Sequence[Phase], sizes: Sizes, ceilings: Ceilings, *, seconds: float
) -> list[Result]:
    """Each phase with the time that its matrix products alone take in the policy's dtype."""
    shapes = Shapes.of(policy)
    body, head = (Stack(part, policy.dtype, seconds) for part in (shapes.body, [shapes.head]))
    name = "bfloat16" if policy.dtype == torch.bfloat16 else "float32"
    results = []
    for phase in phases:
        flops = 2 * phase.passes * (shapes.body_size * phase.tokens + shapes.head_size * phase.head_rows)
        results.append(
            Result(
                phase=phase,
                flops=flops,
                floor=_floor(phase, body, head),
                reference=ceilings.stack[name][REFERENCE_ROWS],
                bytes_floor=_bytes_floor(policy, shapes, sizes, ceilings) if phase.name == "decode" else None,
            )
        )
    return results


def _floor(phase: Phase, body: Stack, head: Stack) -> float | None:
    if not phase.passes:
        return None
    training = phase.passes > 1
    head_rows = min(phase.head_rows, CHUNK if training else phase.rows)
    body_time, head_time = (body.train, head.train) if training else (body.forward, head.forward)
    return body_time(phase.rows) * phase.tokens / phase.rows + head_time(head_rows) * phase.head_rows / head_rows


def _bytes_floor(policy: Policy, shapes: Shapes, sizes: Sizes, ceilings: Ceilings) -> float:
    """Each decode step reads every matrix once, and of every row the keys and values of half its completion."""
    width = policy.head.weight.element_size()
    cache_bytes = sizes.rollouts * (sizes.prompt + sizes.completion / 2) * policy.cache_bytes()
    return (
        (sizes.completion - 1) * ((shapes.body_size + shapes.head_size) * width + cache_bytes) / ceilings.memory["read"]
    )


def profiles(bench: Bench) -> dict[str, dict[str, float]]:
    """Shares by part of prefill, of generating and of the update with its optimizer step."""
    vocabulary = bench.policy.head.weight.shape[0]
    packed = bench.batch()
    return {
        "prefill": roof_profile.shares(bench.prefill, vocabulary, training=False),
        "generate": roof_profile.shares(bench.generate, vocabulary, training=False),
        "update and step": roof_profile.shares(lambda: bench.learner.update([packed]), vocabulary, training=True),
    }


def ceilings_table(ceilings: Ceilings) -> list[str]:
    """Markdown."""
    names = list(ceilings.stack)
    lines = ["## Ceilings", "", f"| rows | {' | '.join(f'{name} GFLOP/s' for name in names)} |"]
    lines.append("| --: |" + " --: |" * len(names))
    for rows in ceilings.stack[names[0]]:
        lines.append(f"| {rows} | " + " | ".join(f"{ceilings.stack[name][rows] / 1e9:.0f}" for name in names) + " |")
    lines.append("| big square | " + " | ".join(f"{ceilings.square[name] / 1e9:.0f}" for name in names) + " |")
    read, copy = ceilings.memory["read"] / 1e9, ceilings.memory["copy"] / 1e9
    return [*lines, "", f"Memory: {read:.1f} GB/s reading, {copy:.1f} GB/s copying (read + written).", ""]


def phases_table(results: Sequence[Result]) -> list[str]:
    """Markdown, with a verdict on each aim."""
    lines = [
        "## Phases",
        "",
        "| phase | rows | tokens | seconds (min–max) | tok/s | GFLOP/s | of the ceiling at these rows | at 64 rows |",
        "| --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for result in results:
        phase = result.phase
        time = f"{phase.seconds:.3f} ({phase.spread[0]:.3f}–{phase.spread[1]:.3f})"
        if result.floor is None:
            lines.append(f"| {phase.name} | – | – | {time} | – | – | – | – |")
            continue
        lines.append(
            f"| {phase.name} | {phase.rows} | {phase.tokens} | {time} | {phase.tokens / phase.seconds:.0f} "
            f"| {result.rate / 1e9:.0f} | {result.floor / phase.seconds:.0%} | {result.rate / result.reference:.0%} |"
        )
    return [*lines, "", *_verdicts(results), ""]


def _verdicts(results: Sequence[Result]) -> list[str]:
    lines = []
    for result in results:
        name, reached = result.phase.name, result.rate / result.reference
        if name in AIMS:
            word = "reached" if reached >= AIMS[name] else "missed"
            lines.append(
                f"- {name}: {reached:.0%} of the ceiling at {REFERENCE_ROWS} rows, aim {AIMS[name]:.0%}: {word}."
            )
        if result.bytes_floor is not None:
            lines.append(
                f"- {name}: {result.bytes_floor / result.phase.seconds:.0%} of the bytes-bound floor (weights, keys "
                f"and values read once a step at the read bandwidth: {result.bytes_floor:.3f} s)."
            )
    return lines


def profile_table(profiles: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Markdown."""
    lines = ["## Where the time goes", "", f"| part | {' | '.join(profiles)} |", "| --- |" + " --: |" * len(profiles)]
    for part in roof_profile.PARTS:
        lines.append(f"| {part} | " + " | ".join(f"{shares[part]:.0%}" for shares in profiles.values()) + " |")
    return [*lines, "", "Shares of profiled time; the profiler makes small operations look larger than they are.", ""]


def run(out: Path, quick: bool, model: str = MODEL) -> None:
    """Measure; print Markdown, and write it with `roofline.json` into `out`. About 3 minutes on two cores, 1 if quick.

    Raises:
        AssetError: the model cannot be had.
    """
    out.mkdir(parents=True, exist_ok=True)
    use_threads()
    policy = load_policy(model)
    sizes = Sizes(prompts=8, group_size=8, prompt=64 if quick else 128, completion=16 if quick else 64)
    seconds, rounds = (0.2, 2) if quick else (1.0, 5)
    lines = [*heading("Roofline"), *explanation(policy, sizes)]
    print("\n".join(lines), flush=True)
    measured = ceilings(Shapes.of(policy), seconds=seconds)
    lines += _show(ceilings_table(measured))
    bench = Bench(policy, sizes)
    results = against(policy, measure(bench, rounds), sizes, measured, seconds=seconds)
    lines += _show(phases_table(results))
    shares = profiles(bench)
    lines += _show(profile_table(shares))
    record = {
        "machine": lines[2],
        "sizes": asdict(sizes),
        "ceilings": asdict(measured),
        "phases": [result.record() for result in results],
        "profile": shares,
    }
    (out / "roofline.json").write_text(json.dumps(record, indent=2) + "\n")
    (out / "roofline.md").write_text("\n".join(lines))


def explanation(policy: Policy, sizes: Sizes) -> list[str]:
    """What the figures mean."""
    shapes = Shapes.of(policy)
    return [
        f"{policy.name} in {str(policy.dtype).removeprefix('torch.')}: {shapes.body_size / 1e6:.1f} M parameters in "
        f"the body's matrices, {shapes.head_size / 1e6:.1f} M in the head. {sizes.prompts} prompts × "
        f"{sizes.group_size} rollouts, {sizes.prompt} + {sizes.completion} tokens. FLOPs: 2 per parameter and token "
        "forward, 6 with the backward pass; the head counts only where it runs, and its recomputation in the backward "
        "pass not at all. Ceilings are the best of several runs of the matrix products alone, phases the median. "
        "Decode is the whole call less a call for one token. The last two columns compare with the same products at "
        f"the same rows (for the update: all three of them), and with the stack at {REFERENCE_ROWS} rows.",
        "",
    ]


def _show(lines: list[str]) -> list[str]:
    print("\n".join(lines), flush=True)
    return lines
