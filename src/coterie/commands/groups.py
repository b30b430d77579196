"""groups: the regions that a run compares its rollouts in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coterie.commands.common import JSON, print_json
from coterie.commands.runs import Root, Run
from coterie.text import safe_text


def groups(
    run: Run,
    root: Root = Path("runs"),
    step: Annotated[int | None, typer.Option(help="Checkpoint to look at; the newest when left out.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the tree, and prompts by similarity and success, into this PNG or SVG.")
    ] = None,
    json_: bool = JSON,
) -> None:
    """Print the regions of a group-aware run.

    The tree with its rules in words, sizes, success, drift, examples, and how it moved.
    """
    from coterie.errors import RunError, install_command
    from coterie.train.region_picture import draw
    from coterie.train.regions import read

    found = read(Path(run), root, step)
    if plot is not None and not draw(plot, found):
        raise RunError(
            f"{plot} was not drawn: it needs a step with prompts, and matplotlib ({install_command('train')})"
        )
    if json_:
        print_json(found.plain())
        return
    typer.echo(f"{found.run}, step {found.step}: {found.summary()}\n")
    for region in found.regions:
        start = "  " * region.depth
        rule = f"{region.label}: {region.step}" if region.leaf else region.step
        typer.echo(
            f"{start}{safe_text(rule)}: success {region.success:.2f} ({region.drift:+.2f} over the window), "
            f"spread {region.spread:.2f}, {region.prompts} prompts"
        )
        if region.leaf and region.examples:
            typer.echo(f"{start}   e.g. {safe_text(', '.join(region.examples))}")
    if found.moved:
        typer.echo("\nhow it moved")
    for at, what in found.moved:
        typer.echo(f"  step {at}: {safe_text(what)}")


def register(app: typer.Typer) -> None:
    """Add this verb to the program."""
    app.command()(groups)
