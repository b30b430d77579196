"""Commands `algo ls` and `algo show`: algorithm presets."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer

from coterie.cli.options import JSON, HintedGroup, paint, print_json, print_table

algo = typer.Typer(
    cls=HintedGroup, no_args_is_help=True, rich_markup_mode=None, help="List and explain algorithm presets."
)


@algo.command()
def ls(json_: bool = JSON) -> None:
    """List algorithm presets and the settings of each that differ from GRPO."""
    from coterie.config.algorithms import ALGORITHMS
    from coterie.config.show import inline

    if json_:
        print_json([{"name": name} | asdict(method) for name, method in ALGORITHMS.items()])
        return

    def sets(settings: Mapping[str, Any]) -> str:
        return ", ".join(f"{key} = {inline(value)}" for key, value in settings.items()) or "the defaults"

    rows = [(name, method.title, sets(method.settings)) for name, method in ALGORITHMS.items()]
    print_table([dict(zip(("name", "method", "sets"), row, strict=True)) for row in rows])
    typer.echo("\ncoterie algo show NAME explains one; coterie train @ FILE.toml --algorithm NAME trains with it")


@algo.command()
def show(name: Annotated[str, typer.Argument(metavar="NAME")], json_: bool = JSON) -> None:
    """Show a preset's objective, its settings and the paper."""
    from coterie.config.algorithms import find
    from coterie.config.keys import settings
    from coterie.config.show import inline

    method = find(name)
    if json_:
        print_json({"name": name} | asdict(method))
        return
    typer.echo(paint(f"{name}: {method.title}", bold=True))
    typer.echo(f"objective  {method.formula}")
    typer.echo(f"source     {method.source}")
    if method.note:
        typer.echo(textwrap.fill(method.note, 108, initial_indent="note       ", subsequent_indent=" " * 11))
    if method.off_policy:
        typer.echo(
            "off-policy ratio, loss and bounds act once the policy has moved within a batch: with\n"
            "           optim.minibatches = 1 and optim.epochs = 1 every ratio is exactly 1"
        )
    typer.echo("\nsettings" + ("" if method.settings else ": all defaults"))
    described = settings()
    for key, value in method.settings.items():
        typer.echo(f"  {key} = {inline(value)}")
        typer.echo(textwrap.fill(described[key].description, 108, initial_indent=" " * 6, subsequent_indent=" " * 6))
    typer.echo(f"\ncoterie train @ FILE.toml --algorithm {name}; your own settings take precedence")


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.add_typer(algo, name="algo")
