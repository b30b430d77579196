"""Command `board`: a local page that shows runs, and the export of one run as a page of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from coterie.cli.options import JSON, print_json
from coterie.cli.runs import Root, Run


class FolderGroup(TyperGroup):
    """Group of commands whose first word may also be a folder: `board runs` is `board --runs runs`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            args = ["--runs", *args]
        return super().parse_args(ctx, args)


board = typer.Typer(cls=FolderGroup, invoke_without_command=True, subcommand_metavar="[RUNS] | export RUN FILE.html")


@board.callback()
def show(
    ctx: typer.Context,
    root: Root = Path("runs"),
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port on loopback; the first free one from 8642 on when left out, 0 any."),
    ] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
    trying: Annotated[
        bool,
        typer.Option(
            "--try", help="Add a page that chats with checkpoints: it loads models and runs the runs' reward functions."
        ),
    ] = False,
    beside: Annotated[bool, typer.Option("--beside", hidden=True, help="End when standard input does.")] = False,
    json_: bool = JSON,
) -> None:
    """Show runs in a browser, also while they train.

    RUNS is a folder of runs, or one run; `runs` when left out. The page is served on loopback alone, opens with the
    token in the printed address, needs no network, and only reads, unless --try is given. Ctrl-C ends it. The
    subcommand `export` writes a run as one HTML file.
    """
    if ctx.invoked_subcommand is not None:
        return
    from coterie.board.server import Board, stop_at_end_of_input

    served = Board(root, port, trying=trying)
    if beside:
        stop_at_end_of_input(served)
    if json_:
        print_json({"address": served.address, "port": served.port, "runs": str(served.catalogue.root)})
    else:
        typer.echo(f"{served.address}\nshows the runs in {served.catalogue.root}; Ctrl-C ends it")
    sys.stdout.flush()
    if browser and not json_:
        served.open()
    served.serve()


@board.command()
def export(
    run: Run,
    file: Annotated[Path, typer.Argument(metavar="FILE.html", help="File to write; it must not exist.")],
    root: Root = Path("runs"),
    steps: Annotated[int, typer.Option(min=0, help="Steps whose rollouts are included, evenly spread.")] = 3,
) -> None:
    """Write a run as one HTML file that opens without a server or a network, e.g. to mail it."""
    from coterie.board.static_export import export as write

    size = write(run, root, file, steps=steps)
    typer.echo(f"{file}: {size / 1e6:.1f} MB")


def register(app: typer.Typer) -> None:
    """Add this command to the program."""
    app.add_typer(board, name="board")
