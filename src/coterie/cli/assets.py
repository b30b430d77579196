"""Commands `assets ls`, `assets fetch` and `export`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from coterie.cli.options import JSON, HintedGroup, print_json, print_table
from coterie.cli.runs import Root
from coterie.text import safe_text

assets = typer.Typer(cls=HintedGroup, no_args_is_help=True, rich_markup_mode=None, help="Built-in models and datasets.")


@assets.command()
def ls(json_: bool = JSON) -> None:
    """List built-in models and datasets with state and licence."""
    from coterie.data import assets as store

    entries = store.ls()
    if json_:
        print_json(entries)
        return
    print_table(
        [
            {
                "name": asset.name,
                "kind": asset.kind,
                "state": asset.state,
                "MB": asset.size_mb,
                "licence": asset.licence + (" (not for commercial use)" if asset.noncommercial else ""),
                "what": asset.description,
            }
            for asset in entries
        ]
    )


@assets.command()
def fetch(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Download, verify and unpack one asset, unless it is complete already."""
    from coterie import console
    from coterie.data import assets as store

    with console.console_callback(sys.stderr) as callback:
        path = store.fetch(
            name,
            progress=lambda message: callback.on_event("progress", message),
            arrived=lambda what, done, total: callback.on_progress(f"{what} {name}", done, total, "bytes"),
        )
    typer.echo(safe_text(str(path)))


def export(
    target: Annotated[
        str, typer.Argument(metavar="RUN_OR_FOLDER", help="Run, RUN@STEP, checkpoint, model or adapter folder.")
    ],
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="New folder; never overwritten.")],
    form: Annotated[
        Literal["merged", "adapter", "gguf"],
        typer.Option(
            "--to",
            help="merged: all weights, a LoRA update added to its base; adapter: the adapter alone; gguf: one file for "
            "llama.cpp.",
        ),
    ] = "merged",
    dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "float32", "float64", "q8_0"],
        typer.Option(help="Number format of the weights; auto = that of the base model, float16 for gguf."),
    ] = "auto",
    root: Root = Path("runs"),
) -> None:
    """Export a run's model, with a model card, to a new folder.

    The folder opens with transformers 4 and 5, vLLM and llama.cpp's converter; an adapter with PEFT; a GGUF file with
    llama.cpp and what is built on it.
    For example: coterie export runs/mine --to merged my-model
    """
    from coterie.runs import models

    models.resolve(target, root, check_files=False)  # a wrong name is reported before torch is loaded
    from coterie.policy.export import export as write

    folder = write(
        target,
        destination,
        form=form,
        dtype=dtype,
        runs=root,
        note=lambda line: typer.echo(safe_text(line), err=True),
    )
    typer.echo(safe_text(str(folder)))


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.add_typer(assets, name="assets")
    app.command()(export)
