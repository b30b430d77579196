"""Peer benchmarks: a GRPO step of coterie beside TRL's, and generation beside vLLM's.

python -m benchmarks.peers --help
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from coterie.cli import main

OWN = {"roofline": "roofline", "growth": "growth", "threads": "thread_study"}
"""Benchmarks of coterie alone: option → module of benchmarks.peers with `run(out, quick)`."""


def bench(
    cases: Annotated[
        str | None, typer.Option(help="Comma-separated cases, or shapes such as 2x2:64:8; all when left out.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, in which the frameworks take turns.")] = 4,
    quick: Annotated[
        bool, typer.Option("--quick", help="The headline case in two rounds: about 5 to 8 minutes on two cores.")
    ] = False,
    peers: Annotated[str, typer.Option(help="Baselines: trl, vllm (generation only), both, or ''.")] = ("trl,vllm"),
    trl_tuned: Annotated[
        bool, typer.Option("--trl-tuned", help="TRL without gradient checkpointing, and its weights in the dtype.")
    ] = False,
    model: Annotated[str, typer.Option(help="Built-in model, or the folder of a checkpoint's model.")] = "smollm2-135m",
    draft: Annotated[bool, typer.Option("--draft", help="coterie generates with engine.draft = history.")] = False,
    math_threads: Annotated[
        int, typer.Option(min=0, help="Number of compute threads of each framework; 0 lets coterie choose.")
    ] = 0,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16 or float32.")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for results.json, results.md, plot.png and logs.")] = Path(
        "bench-results"
    ),
    save: Annotated[Path | None, typer.Option(help="Also write the Markdown here.")] = None,
    roofline: Annotated[
        bool, typer.Option("--roofline", help="Instead: how close prefill, decode and update come to the machine.")
    ] = False,
    growth: Annotated[
        bool, typer.Option("--growth", help="Instead: how cost and memory grow with the size of the work.")
    ] = False,
    threads: Annotated[
        bool, typer.Option("--threads", help="Instead: what thread counts and busy neighbours do.")
    ] = False,
) -> None:
    """Measure a GRPO step side by side with TRL, and generation with vLLM.

    The peers get virtual environments of their own in .bench, made on first use.
    """
    chosen = [name for name, on in zip(OWN, (roofline, growth, threads), strict=True) if on]
    for name in chosen:
        out.mkdir(parents=True, exist_ok=True)
        import_module(f"benchmarks.peers.{OWN[name]}").run(out, quick)
    if chosen:
        return
    from benchmarks.peers import run

    run.run(
        run.Options(
            cases=cases,
            rounds=rounds,
            quick=quick,
            peers=peers,
            tuned=trl_tuned,
            model=model,
            draft=draft,
            threads=math_threads,
            dtype=dtype,
            out=out,
            save=save,
        )
    )


program = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
program.command()(bench)

if __name__ == "__main__":
    sys.exit(main.run(program, "python -m benchmarks.peers"))
