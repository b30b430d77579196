"""demo, train, resume."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from coterie.commands.common import HELP, SETTINGS, USAGE, print_report
from coterie.commands.runs import Root, Run


def demo(
    ctx: typer.Context,
    seed: Annotated[int, typer.Option(min=0, help="Every random draw derives from it.")] = 0,
    help_: bool = HELP,
) -> None:
    """Train a small model and see it learn.

    A real language model, two cores, a few minutes; accuracy on unseen items before and after.
    """
    from coterie import assemble, console

    with console.watcher() as watch:
        assemble.demo(watch, seed=seed, overrides=ctx.args)


def train(
    ctx: typer.Context,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check model, data, reward, memory and time; train nothing.")
    ] = False,
    help_: bool = HELP,
) -> None:
    """Train a model with GRPO.

    For example: coterie train @ recipes/NAME/config.toml --steps 50 --optim.lr 1e-5
    """
    from coterie.config.load import load

    loaded = load(ctx.args)
    from coterie import assemble, console

    if dry_run:
        raise typer.Exit(print_report(assemble.dry_run(loaded.config)))
    with console.watcher() as watch:
        assemble.train(loaded.config, watch, provenance=loaded.provenance)
    _leave(watch.stopped)


def resume(
    run: Run,
    root: Root = Path("runs"),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Set the checkpoints aside and start over from step 0.")
    ] = False,
) -> None:
    """Go on with a run from its last checkpoint."""
    from coterie import assemble, console

    with console.watcher() as watch:
        assemble.resume(Path(run), watch, runs=root, fresh=fresh)
    _leave(watch.stopped)


def _leave(stopped: str) -> None:
    """A run that was asked to stop is not done: the exit code is the shell's for that signal (130, 143)."""
    if stopped:
        raise typer.Exit(128 + signal.Signals[stopped])


def register(app: typer.Typer) -> None:
    """Add these verbs to the program."""
    app.command(**SETTINGS, options_metavar=USAGE)(demo)
    app.command(**SETTINGS, options_metavar=USAGE)(train)
    app.command()(resume)
