"""The program `coterie`. Exit codes: 0 success, 1 error, 2 invalid usage or settings, 3 ended by a stop rule."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import TextIOWrapper
from typing import Any

import typer

from coterie import __version__, machine
from coterie.cli import (
    algorithms,
    assets,
    board,
    doctor,
    experience,
    runs,
    sample,
    search,
    serve,
    settings,
    stages,
    traces,
    train,
)
from coterie.cli.options import HintedGroup, paint
from coterie.errors import CoterieError
from coterie.text import safe_text

# Plain help: rich's would triple the time that `coterie --help` takes.
app = typer.Typer(
    name="coterie",
    cls=HintedGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 110},
    help="Post-train language models with Group Relative Policy Optimization (GRPO).",
    epilog="First steps: coterie demo; coterie config init mine.toml; coterie train @ mine.toml",
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"coterie {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", is_eager=True, callback=_version, help="Print the version."),
) -> None:
    """Options that stand before the command."""


for noun in (
    train,
    stages,
    traces,
    sample,
    serve,
    runs,
    board,
    experience,
    search,
    assets,
    algorithms,
    settings,
    doctor,
):
    noun.register(app)


def main(args: Sequence[str] | None = None) -> int:
    """Run one command line of `coterie`, by default the process's own, and return the exit code."""
    return run(app, "coterie", args)


def run(program: Callable[..., Any], name: str, args: Sequence[str] | None = None) -> int:
    """Run one command line of a typer program and return the exit code.

    A `CoterieError` is printed as its message alone; any other exception is a bug and keeps its traceback.
    """
    machine.prepare()
    _prepare_streams()
    try:
        program(args=None if args is None else list(args), prog_name=name)
    except CoterieError as error:
        typer.echo(f"{paint('error:', fg='red', bold=True)} {safe_text(str(error))}", err=True)
        return error.exit_code
    except KeyboardInterrupt as stop:
        return _interrupted(stop)
    except SystemExit as stop:
        cause = _interrupt_of(stop)
        if cause is not None:
            return _interrupted(cause)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        _flush_stdout()
    return 0


INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def _interrupt_of(stop: SystemExit) -> KeyboardInterrupt | None:
    """The KeyboardInterrupt that typer turned into an exit code, if any."""
    cause: BaseException | None = stop
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__cause__ or cause.__context__
    return cause if stop.code == INTERRUPTED else None


def _interrupted(stop: KeyboardInterrupt) -> int:
    """Print that Ctrl-C ended the program, with the message of the interrupt."""
    detail = f": {safe_text(str(stop))}" if str(stop) else ""
    typer.echo(f"{paint('interrupted', fg='yellow', bold=True)}{detail}", err=True)
    return INTERRUPTED


def _prepare_streams() -> None:
    """Make sure that a failing standard stream loses its output and nothing else."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before Python started, as by `>&-`
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for the process's life
        elif isinstance(stream, TextIOWrapper):
            with suppress(OSError):
                stream.reconfigure(errors="backslashreplace")  # a terminal without ± must not end a training


def _flush_stdout() -> None:
    """Flush standard output. Where its reader has left (`| head`), Python must not complain at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        from coterie.console import discard  # brings rich along

        discard(sys.stdout)
