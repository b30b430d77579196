"""Commands `rejection` and `pipeline`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from coterie.cli.options import HELP, LOADING, SETTINGS, USAGE, check_files, print_report


def rejection(ctx: typer.Context, help_: bool = HELP) -> None:
    """Keep the best rollouts of a model, or of runs, as a data set for `coterie sft`.

    For example: coterie rejection @ FILE.toml --model.name runs/mine, or --rejection.rollouts '["runs/mine"]'
    """
    from coterie import console
    from coterie.config.load import load
    from coterie.runs.directory import check_name
    from coterie.runs.models import resolve

    config = load(ctx.args).config.with_table("rejection")
    resolve(config.model.name, Path(config.runs), check_files=False)
    check_files(config)
    check_name(Path(config.runs), config.name)
    with console.console_callback() as callback:
        callback.on_progress(LOADING)
        from coterie.stages import rejection as stage

        stage.rejection(config, callback)
    exit_by_signal(callback.stopped)


def exit_by_signal(stopped: str) -> None:
    """Exit with the shell's code for the signal that stopped the work (130, 143); do nothing where none did."""
    if stopped:
        raise typer.Exit(128 + signal.Signals[stopped])


def pipeline(
    ctx: typer.Context,
    until: Annotated[str | None, typer.Option(help="Stop after this stage.", show_default=False)] = None,
    from_: Annotated[
        str | None, typer.Option("--from", help="Run this stage and all after it again.", show_default=False)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what each stage would do, with its memory and time.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the report, or the plan, as JSON.")] = False,
) -> None:
    """Run an ordered list of stages, and evaluate after each.

    For example: coterie pipeline @ pipeline.toml --until cold. The same command again goes on where it was; a stage
    whose inputs did not change is not run again.
    """
    from coterie import console
    from coterie.config.pipeline import load_pipeline
    from coterie.errors import ConfigError

    words = [word.removeprefix("@") for word in ctx.args if word != "@"]
    if len(words) != 1 or words[0].startswith("-"):
        raise ConfigError(f"expected one file of stages, as in `coterie pipeline @ pipeline.toml`; got {ctx.args}")
    source = Path(words[0]).expanduser()
    config, _ = load_pipeline(source)
    for name in (until, from_):
        if name is not None:
            config.named(name)
    with console.console_callback(sys.stderr if dry_run or json_ else None) as callback:
        callback.on_progress(LOADING)
        from coterie.stages import pipeline as stages

        if not dry_run:
            folder = stages.run_pipeline(source, callback, until=until, since=from_)
            callback.on_event("pipeline", f"report: {folder / 'README.md'}")
            if json_:
                typer.echo((folder / "report.json").read_text(encoding="ascii"))
            exit_by_signal(callback.stopped)
            return
        report = stages.plan_report(source, until=until, since=from_)
    raise typer.Exit(print_report(report, json_=json_))


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.command(**SETTINGS, options_metavar=USAGE)(rejection)
    app.command(context_settings=SETTINGS["context_settings"], options_metavar="@ FILE.toml [OPTIONS]")(pipeline)
