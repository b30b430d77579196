"""Commands `rejection` and `pipeline`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

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

    For example: coterie pipeline @ pipeline.toml --until cold, or --name second --seed 1. A setting that follows the
    file holds for all stages that do not set it themselves. The same command again goes on where it was; a stage
    whose inputs did not change is not run again.
    """
    from coterie import console
    from coterie.config.pipeline import load_pipeline

    source, settings = _source_and_settings(ctx.args)
    config, _ = load_pipeline(source, settings)
    for name in (until, from_):
        if name is not None:
            config.named(name)
    with console.console_callback(sys.stderr if dry_run or json_ else None) as callback:
        callback.on_progress(LOADING)
        from coterie.stages import pipeline as stages

        if not dry_run:
            folder = stages.run_pipeline(source, callback, until=until, since=from_, settings=settings)
            callback.on_event("pipeline", f"report: {folder / 'README.md'}")
            if json_:
                typer.echo((folder / "report.json").read_text(encoding="ascii"))
            exit_by_signal(callback.stopped)
            return
        report = stages.plan_report(source, until=until, since=from_, settings=settings)
    raise typer.Exit(print_report(report, json_=json_))


def _source_and_settings(args: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    """The one file of stages, and the settings of the flags by dotted key."""
    from coterie.config.load import flag_settings, parse_args
    from coterie.errors import ConfigError

    words = [f"@{word}" if word.endswith(".toml") and word[0] not in "@-" else word for word in args if word != "@"]
    files, _ = parse_args(words)
    if len(files) != 1:
        raise ConfigError(f"expected one file of stages, as in `coterie pipeline @ pipeline.toml`; got {list(args)}")
    return files[0], flag_settings([word for word in words if not word.startswith("@")])


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.command(**SETTINGS, options_metavar=USAGE)(rejection)
    app.command(
        context_settings=SETTINGS["context_settings"], options_metavar="@ FILE.toml [--KEY VALUE]... [OPTIONS]"
    )(pipeline)
