"""Which number of threads and which wait policy, measured: alone, and beside programs that want the same cores."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coterie import machine
from coterie import machine as threads
from coterie.errors import CoterieError

QUIET = "quiet"
WORKERS = "reward workers"
AIM = 0.10
"""Most that reward workers may slow decoding."""
FAIR = 0.6
"""Aim: the least share of its fair share of the processors that decoding keeps beside busy programs of its priority."""
ADAPTIVE = "adaptive"
"""The wait policy of a run: `default`, and sleeping while others want the processors (`coterie/policy/waiting.py`)."""
MARGIN = 0.03
"""A policy this close to the fastest when quiet is as good; what it does beside others then decides."""
_OPENMP = (*threads.VARIABLES, threads.COUNT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What else runs."""

    kind: str
    """Of `load_noise.KINDS`."""
    count: int
    """Workers, or threads of the other maths."""
    nice: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One measurement: medians over the rounds."""

    threads: int
    waiting: str
    load: str
    decode: float
    """Tokens a second."""
    update: float
    """Seconds."""
    others: float | None
    """Units of work a second that the other program got done; None when there is none."""


def loads(cores: int) -> dict[str, Load | None]:
    """The situations, by name."""
    situations: dict[str, Load | None] = {QUIET: None}
    for nice in (0, 10):
        for count in (1, 2, 4):
            situations[_busy_name(count, nice)] = Load(kind="busy", count=count, nice=nice)
    return situations | {
        "4 programs, 2 of short processes": Load(kind="mixed", count=4),
        f"{cores} {WORKERS}": Load(kind="workers", count=cores),
        f"maths on {cores} threads": Load(kind="math", count=cores),
    }


def _busy_name(count: int, nice: int) -> str:
    return f"{count} busy" + (f", nice {nice}" if nice else "")


def fair_share(threads: int, cores: int, busy: int) -> float:
    """Share of the processor time of `threads` threads alone that they would get beside `busy` programs of the same
    priority, if all were treated alike.

    >>> fair_share(2, 2, 1), fair_share(2, 2, 2), fair_share(1, 2, 1)
    (0.6666666666666666, 0.5, 1.0)
    """
    return min(1.0, cores / (threads + busy))


def counts(cores: int) -> list[int]:
    """Numbers of threads to try: all up to 4, then the powers of two, one less than all, all."""
    powers = {1 << bit for bit in range(cores.bit_length()) if 1 << bit <= cores}
    return sorted(powers | {cores, max(1, cores - 1)} | set(range(1, min(cores, 4) + 1)))


def policies(quick: bool) -> list[str]:
    """Wait policies to try."""
    return [ADAPTIVE, "default", "passive"] if quick else [ADAPTIVE, *threads.WAITING]


def measure(
    number: int,
    waiting: str,
    situations: Mapping[str, Load | None],
    rounds: int,
    probe: Mapping[str, Any] | None = None,
) -> list[Cell]:
    """All situations with one process of `number` threads that wait in one way; the rounds go through all in turn.

    Args:
        probe: other sizes for `load_probe`.

    Raises:
        CoterieError: a program of the benchmark ended early.
    """
    env = {name: value for name, value in threads.clean_environment().items() if name not in _OPENMP}
    results: dict[str, list[dict[str, float]]] = {name: [] for name in situations}
    words = json.dumps({"threads": number, "adapt": waiting == ADAPTIVE, **(probe or {})})
    with _program(["benchmarks.peers.load_probe", words], env | threads.WAITING.get(waiting, {})) as probed:
        for _ in range(rounds):
            for name, load in situations.items():
                results[name].append(_beside(probed, load, env))
    return [
        Cell(
            threads=number,
            waiting=waiting,
            load=name,
            decode=statistics.median(speed["decode"] for speed in speeds),
            update=statistics.median(speed["update"] for speed in speeds),
            others=statistics.median(speed["others"] for speed in speeds) if situations[name] else None,
        )
        for name, speeds in results.items()
    ]


def _beside(probed: subprocess.Popen[str], load: Load | None, env: Mapping[str, str]) -> dict[str, float]:
    if load is None:
        return _ask(probed)
    words = ["benchmarks.peers.load_noise", load.kind, str(load.count), str(load.nice)]
    with _program(words, env) as noise:
        speeds = _ask(probed)
        assert noise.stdin is not None
        noise.stdin.close()
        done = json.loads(_line(noise))
    return speeds | {"others": done["units"] / done["seconds"]}


def _ask(probed: subprocess.Popen[str]) -> dict[str, float]:
    assert probed.stdin is not None
    probed.stdin.write("measure\n")
    probed.stdin.flush()
    return json.loads(_line(probed))


def _line(program: subprocess.Popen[str]) -> str:
    assert program.stdout is not None
    line = program.stdout.readline()
    if not line:
        raise CoterieError(f"a program of the benchmark ended with code {program.wait()}; it said why above")
    return line


@contextmanager
def _program(words: Sequence[str], env: Mapping[str, str]) -> Generator[subprocess.Popen[str]]:
    """A module as a process that is ready to work; ended when the block is left."""
    command = [sys.executable, "-m", *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(env)) as program:
        try:
            if _line(program) != "ready\n":
                raise CoterieError(f"`{' '.join(command)}` did not say that it is ready")
            yield program
        finally:
            program.kill()


def slowed(cell: Cell, cells: Sequence[Cell]) -> float:
    """By which share decoding is slower than with the same threads and policy when quiet."""
    quiet = next(
        candidate
        for candidate in cells
        if candidate.load == QUIET and (candidate.threads, candidate.waiting) == (cell.threads, cell.waiting)
    )
    return 1 - cell.decode / quiet.decode


def recommend(cells: Sequence[Cell]) -> tuple[int, str]:
    """Threads and wait policy.

    Speed is the geometric mean of decoding's and updating's, relative to the best in the same situation. Of those
    within `MARGIN` of the fastest when quiet, the one with the best mean over all situations.
    """
    situations = list(dict.fromkeys(cell.load for cell in cells))
    best = {
        name: (
            max(cell.decode for cell in cells if cell.load == name),
            min(cell.update for cell in cells if cell.load == name),
        )
        for name in situations
    }
    speed: dict[tuple[int, str], dict[str, float]] = {}
    for cell in cells:
        decode, update = best[cell.load]
        relative = (cell.decode / decode * update / cell.update) ** 0.5
        speed.setdefault((cell.threads, cell.waiting), {})[cell.load] = relative
    fastest = max(speeds[QUIET] for speeds in speed.values())
    good = {key: speeds for key, speeds in speed.items() if speeds[QUIET] >= fastest * (1 - MARGIN)}
    return max(good, key=lambda key: statistics.fmean(good[key].values()))


def table(cells: Sequence[Cell]) -> list[str]:
    """Markdown: a row by threads and policy, a column by situation."""
    situations = list(dict.fromkeys(cell.load for cell in cells))
    lines = [f"| threads | waiting | {' | '.join(situations)} |", "| --: | --- |" + " --: |" * len(situations)]
    for key in dict.fromkeys((cell.threads, cell.waiting) for cell in cells):
        row = [cell for cell in cells if (cell.threads, cell.waiting) == key]
        texts = [f"{cell.decode:.0f} tok/s, {cell.update:.2f} s" + _extra(cell, row) for cell in row]
        lines.append(f"| {key[0]} | {key[1]} | {' | '.join(texts)} |")
    return lines


def _extra(cell: Cell, row: Sequence[Cell]) -> str:
    return "" if cell.others is None else f" (−{slowed(cell, row):.0%}; others {cell.others:.0f}/s)"


def verdicts(cells: Sequence[Cell], cores: int) -> list[str]:
    """The recommendation, what reward workers cost with it, and how to write it down."""
    number, waiting = recommend(cells)
    chosen = [cell for cell in cells if (cell.threads, cell.waiting) == (number, waiting)]
    lines = [
        f"- Best here: {number} of {cores} threads, wait policy {waiting} {threads.WAITING.get(waiting) or ''}".rstrip()
    ]
    quiet = next(cell for cell in chosen if cell.load == QUIET)
    for count in (1, 2, 4):
        for cell in chosen:
            if cell.load == _busy_name(count, 0):
                fair = fair_share(number, cores, count)
                decode, update = cell.decode / quiet.decode / fair, quiet.update / cell.update / fair
                word = "kept" if min(decode, update) >= FAIR else "missed"
                lines.append(
                    f"- {cell.load}: decoding keeps {decode:.2f} and the update {update:.2f} of the fair share "
                    f"({fair:.0%} of quiet); aim at least {FAIR}: {word}."
                )
    for cell in chosen:
        if cell.load.endswith(WORKERS):
            share = slowed(cell, cells)
            word = "kept" if share <= AIM else "missed"
            lines.append(f"- {cell.load}, all busy, slow decoding by {share:.0%}; aim at most {AIM:.0%}: {word}.")
    policy = "default" if waiting == ADAPTIVE else waiting
    lines.append(f"- For `DEFAULTS` in coterie/machine.py: cores={cores}, spare={cores - number}, waiting={policy!r}.")
    return lines


def run(out: Path, quick: bool) -> None:
    """Measure; print Markdown, and write it with `threads.json` into `out`. On two cores about 25 minutes, 5 if quick.

    Raises:
        CoterieError: a program of the benchmark ended early.
    """
    out.mkdir(parents=True, exist_ok=True)
    cores = machine.cores()
    situations, rounds = loads(cores), 1 if quick else 3
    cells: list[Cell] = []
    for number in counts(cores):
        for waiting in policies(quick):
            cells += measure(number, waiting, situations, rounds)
            print(f"{number} threads, {waiting}: done", file=sys.stderr, flush=True)
    lines = [
        "# Threads",
        "",
        f"{machine.facts().line()}. SmolLM2's shapes with fewer layers, 64 sequences; decoding in tokens a second, an "
        "update in seconds, medians. In brackets: how much slower decoding is than quiet, and the units of work that "
        "the other programs got done a second.",
        "",
        *table(cells),
        "",
        *verdicts(cells, cores),
        "",
    ]
    print("\n".join(lines), flush=True)
    record = {"machine": machine.facts().line(), "cores": cores, "cells": [asdict(cell) for cell in cells]}
    (out / "threads.json").write_text(json.dumps(record, indent=2) + "\n")
    (out / "threads.md").write_text("\n".join(lines))
