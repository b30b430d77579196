"""Commands `config init`, `config print` and `config schema`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coterie.cli.options import HELP, JSON, SETTINGS, USAGE, HintedGroup, print_json
from coterie.errors import ConfigError

config = typer.Typer(
    cls=HintedGroup, no_args_is_help=True, rich_markup_mode=None, help="Write, resolve and describe settings."
)


@config.command()
def init(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Standard output when left out.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Write every setting with its default and meaning.")] = False,
) -> None:
    """Write a config file to start from."""
    from coterie.config.template import init_text

    text = init_text(every=every)
    if file is None:
        typer.echo(text, nl=False)
        return
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError:
        raise ConfigError(f"{file} exists and is not overwritten: choose another name or remove it") from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from None
    typer.echo(f"wrote {file}; edit it, then: coterie train @ {file}")


@config.command("print", **SETTINGS, options_metavar=USAGE)
def print_(ctx: typer.Context, json_: bool = JSON, help_: bool = HELP) -> None:
    """Print every setting with the source of its value."""
    from coterie.config.load import load
    from coterie.config.show import config_json, print_config

    loaded = load(ctx.args)
    if json_:
        print_json(config_json(loaded))
    else:
        print_config(loaded)


@config.command()
def schema() -> None:
    """Print the JSON schema, for editors that complete TOML."""
    from coterie.config.show import json_schema

    print_json(json_schema())


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.add_typer(config, name="config")
