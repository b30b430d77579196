"""algo ls, algo show: the published methods, each a row of settings."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import Annotated

import typer

from coterie.commands.common import JSON, paint, print_json, print_table

algo = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List and explain the published methods.")


@algo.command()
def ls(json_: bool = JSON) -> None:
    """Every method that `algorithm` may name, with what it sets beyond GRPO's defaults."""
    from coterie.config.algorithms import ALGORITHMS
    from coterie.config.show import inline

    rows = [
        {
            "name": name,
            "method": one.title,
            "sets": ", ".join(f"{key} = {inline(value)}" for key, value in one.settings.items()),
            "source": one.source,
        }
        for name, one in ALGORITHMS.items()
    ]
    if json_:
        print_json(rows)
        return
    print_table([{"name": row["name"], "method": row["method"], "sets": row["sets"] or "the defaults"} for row in rows])
    typer.echo("\ncoterie algo show NAME explains one; coterie train @ FILE.toml --algorithm NAME trains with it")


@algo.command()
def show(name: Annotated[str, typer.Argument(metavar="NAME")], json_: bool = JSON) -> None:
    """One method: its formula, its settings with their meaning, and the paper."""
    from coterie.config.algorithms import find
    from coterie.config.fields import settings
    from coterie.config.show import inline

    one = find(name)
    if json_:
        print_json({"name": name} | asdict(one))
        return
    typer.echo(paint(f"{name}: {one.title}", bold=True))
    typer.echo(f"maximises  {one.formula}")
    typer.echo(f"source     {one.source}")
    if one.note:
        typer.echo(textwrap.fill(one.note, 108, initial_indent="note       ", subsequent_indent=" " * 11))
    if one.off_policy:
        typer.echo(
            "matters    ratio, surrogate and bounds act once the policy has moved within a batch: with\n"
            "           optim.minibatches = 1 and optim.epochs = 1 every ratio is exactly 1"
        )
    typer.echo("\nsettings" + ("" if one.settings else ": all defaults"))
    known = settings()
    for key, value in one.settings.items():
        typer.echo(f"  {key} = {inline(value)}")
        typer.echo(textwrap.fill(known[key].description, 108, initial_indent=" " * 6, subsequent_indent=" " * 6))
    typer.echo(f"\ncoterie train @ FILE.toml --algorithm {name}; any setting of yours lies over these")


def register(app: typer.Typer) -> None:
    """Add these verbs to the program."""
    app.add_typer(algo, name="algo")
