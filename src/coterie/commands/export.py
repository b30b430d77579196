"""export: a run's result as a model folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from coterie.commands.runs import Root
from coterie.text import safe_text


def export(
    target: Annotated[
        str, typer.Argument(metavar="RUN_OR_FOLDER", help="Run, RUN@STEP, checkpoint, model or adapter folder.")
    ],
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="New folder; never overwritten.")],
    form: Annotated[
        Literal["merged", "adapter"],
        typer.Option("--to", help="merged: all weights, a LoRA update added to its base; adapter: the adapter alone."),
    ] = "merged",
    dtype: Annotated[
        Literal["auto", "bfloat16", "float16", "float32", "float64"],
        typer.Option(help="Number format of merged weights; auto = that of the base model."),
    ] = "auto",
    root: Root = Path("runs"),
) -> None:
    """Write a run's model into a folder of its own, with a model card.

    The folder opens with transformers 4 and 5, vLLM and llama.cpp's converter; an adapter with PEFT.
    For example: coterie export runs/mine --to merged my-model
    """
    from coterie.runs import models

    models.resolve(target, root, check_files=False)  # a wrong name is told before torch is loaded
    from coterie.runs.export import export as write

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
    """Add this command to the program."""
    app.command()(export)
