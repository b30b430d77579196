"""assets ls, assets fetch: models and questions that come from pinned packages."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from coterie.commands.common import JSON, print_json, print_table
from coterie.commands.hints import HintedGroup
from coterie.text import safe_text

assets = typer.Typer(cls=HintedGroup, no_args_is_help=True, rich_markup_mode=None, help="Built-in models and datasets.")


@assets.command()
def ls(json_: bool = JSON) -> None:
    """List the built-in models and datasets, whether they are downloaded, and their licences."""
    from coterie.data import assets as store

    listed = store.ls()
    if json_:
        print_json(listed)
        return
    print_table(
        [
            {
                "name": one.name,
                "kind": one.kind,
                "state": one.state,
                "MB": one.size_mb,
                "licence": one.licence + (" (not for commercial use)" if one.noncommercial else ""),
                "what": one.description,
            }
            for one in listed
        ]
    )


@assets.command()
def fetch(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Download, verify and unpack one asset; nothing happens when it is here and whole."""
    from coterie import console
    from coterie.data import assets as store

    with console.watcher(sys.stderr) as watch:
        path = store.fetch(
            name,
            progress=lambda message: watch.noted("progress", message),
            arrived=lambda done, total: watch.progressed(f"downloading {name}", done, total, "bytes"),
        )
    typer.echo(safe_text(str(path)))


def register(app: typer.Typer) -> None:
    """Add these verbs to the program."""
    app.add_typer(assets, name="assets")
