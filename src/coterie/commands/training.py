"""demo, train, resume."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from coterie.commands.common import HELP, LOADING, SETTINGS, USAGE, check_files, print_report
from coterie.commands.runs import Root, Run
from coterie.errors import ConfigError


def demo(
    ctx: typer.Context,
    seed: Annotated[int, typer.Option(min=0, help="Every random draw derives from it.")] = 0,
    help_: bool = HELP,
) -> None:
    """Train a small model and see it learn.

    A real language model, two cores, a few minutes; accuracy on unseen items before and after.
    """
    from coterie import console

    with console.watcher() as watch:
        watch.progressed(LOADING)
        from coterie import assemble

        assemble.demo(watch, seed=seed, overrides=ctx.args)
    _leave(watch.stopped)


def train(
    ctx: typer.Context,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check model, data, reward, memory and time; train nothing.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="With --dry-run: print the checks as JSON.")] = False,
    help_: bool = HELP,
) -> None:
    """Train a model with GRPO.

    For example: coterie train @ recipes/NAME/config.toml --steps 50 --optim.lr 1e-5
    """
    from coterie.config.load import load

    loaded = load(ctx.args)
    from coterie import console
    from coterie.runs.directory import check_name
    from coterie.runs.models import resolve

    # A wrong name is told before torch is loaded.
    resolve(loaded.config.model.name, Path(loaded.config.runs), check_files=False)

    if json_ and not dry_run:
        raise ConfigError("--json prints the checks of --dry-run; of a run, `coterie show RUN --json` does")
    check_files(loaded.config)
    if not dry_run:
        check_name(Path(loaded.config.runs), loaded.config.name)
    with console.watcher(sys.stderr if dry_run else None) as watch:
        watch.progressed(LOADING)
        from coterie import assemble

        if not dry_run:
            assemble.train(loaded.config, watch, provenance=loaded.provenance)
            _leave(watch.stopped)
            return
        report = assemble.dry_run(loaded.config)
    raise typer.Exit(print_report(report, json_=json_))


def resume(
    run: Run,
    root: Root = Path("runs"),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Set the checkpoints aside and start over from step 0.")
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="New number of steps, to lengthen a run; also of a finished one.", show_default=False),
    ] = None,
    accept_reward_change: Annotated[
        bool,
        typer.Option(
            "--accept-reward-change",
            help="Go on though a reward function was edited; evaluations before and after are not compared.",
        ),
    ] = False,
) -> None:
    """Resume from the latest checkpoint."""
    from coterie import console
    from coterie.runs.directory import find

    find(run, root)
    with console.watcher() as watch:
        watch.progressed(LOADING)
        from coterie import assemble

        assemble.resume(
            Path(run), watch, runs=root, fresh=fresh, steps=steps, accept_reward_change=accept_reward_change
        )
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
