"""Command `traces`: worked solutions with annotated steps, made by a rule or read from a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from coterie.errors import ConfigError, RunError


def traces(
    family: Annotated[list[str], typer.Argument(help="Task families; none lists them.", show_default=False)] = [],  # noqa: B006
    out: Annotated[
        Path | None, typer.Option(help="File of the rows, JSON lines; none prints them.", show_default=False)
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Rows.")] = 200,
    difficulty: Annotated[str, typer.Option(help="Difficulty of the problems, or least-most.")] = "2-4",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random streams.")] = 0,
    split: Annotated[str, typer.Option(help="train or heldout; they share no question.")] = "train",
    from_: Annotated[
        Path | None,
        typer.Option("--from", help="Read traces of a file instead: open-r1's and OLMo's columns.", show_default=False),
    ] = None,
) -> None:
    """Write worked solutions with annotated steps, which `coterie sft` reads.

    For example: coterie traces sums sorting --count 400 --difficulty 3-5 --out traces.jsonl
    """
    from coterie.runs.durable import json_dumps, write_file
    from coterie.traces import rows as made
    from coterie.traces.imported import read_traces

    if out is not None and out.exists():
        raise RunError(f"{out} exists, and no file is ever overwritten; name another one")
    if from_ is not None:
        if family:
            raise ConfigError(f"--from reads the traces of a file, so no family is made; leave out {' '.join(family)}")
        read = read_traces(from_)
        table = read.rows
        for number, reason in read.refused:
            typer.echo(f"{from_} row {number} {reason}: left out", err=True)
    elif not family:
        for name in made.NAMES:
            rule = made.FAMILIES.get(name)
            what = "word problems of reasoning-gym, with their worked answers" if rule is None else rule.title
            scale = "" if rule is None else f"; difficulty: {rule.scale}, {made.EASIEST} to {rule.hardest}"
            typer.echo(f"{name:<14}{what}{scale}")
        return
    else:
        table = made.rows(family, count, _levels(difficulty), seed, split)
    text = "".join(json_dumps(row) + "\n" for row in table)
    if out is None:
        sys.stdout.write(text)
        return
    write_file(out, text.encode())
    typer.echo(f"{len(table)} rows in {out}", err=True)


def _levels(text: str) -> Sequence[int]:
    low, _, high = text.partition("-")
    if not low.isdecimal() or (high and not high.isdecimal()):
        raise ConfigError(f"--difficulty {text}: expected a number, or least-most such as 2-4")
    return int(low), int(high or low)


def register(app: typer.Typer) -> None:
    """Add this command to the program."""
    app.command()(traces)
