"""Shared parts of the commands: settings on the command line, their help, reports and JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import typer
from typer.core import TyperCommand, TyperGroup

from coterie.text import one_line, safe_text

if TYPE_CHECKING:
    from coterie.config.schema import RunConfig  # brings pydantic along


class SettingsCommand(TyperCommand):
    """Command that takes settings: `--help` fits a screen, `--help-all` shows every setting."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--help-all" in args:
            from coterie.config.show import help_for_settings

            typer.echo(f"{ctx.get_help()}\n\n{help_for_settings()}")
            raise typer.Exit
        return super().parse_args(ctx, args)


# The words after these commands are settings, not options: they pass through to coterie.config.load.
SETTINGS: dict[str, Any] = {
    "cls": SettingsCommand,
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
    "add_help_option": False,
}
LOADING = "loading PyTorch and transformers"
"""First progress message, printed before the slow imports."""
USAGE = "[@ FILE.toml]... [--KEY VALUE]... [OPTIONS]"


class Report(Protocol):
    """Result of `validate` and `dry_run` of `coterie.launch`."""

    @property
    def lines(self) -> Sequence[tuple[str, str, str]]:
        """(level: ok, warn or fail; subject; text)"""
        ...

    @property
    def ok(self) -> bool: ...


def _settings_help(ctx: typer.Context, asked: bool) -> None:
    if not asked:
        return
    from coterie.config.show import short_help

    typer.echo(f"{ctx.get_help()}\n\n{short_help(ctx.info_name or '')}")
    raise typer.Exit


HELP: bool = typer.Option(
    False,
    "--help",
    is_eager=True,
    expose_value=True,
    callback=_settings_help,
    help="Show this; --help-all adds every setting.",
)
JSON: bool = typer.Option(False, "--json", help="Print JSON for other programs.")


def split_target(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The run or model that a command's first word may name, and the settings after it."""
    if words and not words[0].startswith(("-", "@")) and ("=" not in words[0] or Path(words[0]).exists()):
        return words[0], list(words[1:])
    return None, list(words)


def check_files(config: RunConfig) -> None:
    """Refuse data files that are not there, before anything is loaded."""
    from coterie.data.files import read_file

    for source in (*config.data.train, *config.data.heldout):
        if source.type == "file" and not Path(source.path).expanduser().exists():
            next(iter(read_file(Path(source.path).expanduser())), None)


def plain(value: Any) -> Any:
    """A record, or a list or table of records, as JSON-able data."""
    if is_dataclass(value) and not isinstance(value, type):
        return {key: plain(item) for key, item in asdict(value).items()}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON knows neither nan nor inf
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def paint(text: str, **style: Any) -> str:
    """`typer.style`, unless NO_COLOR asks for plain text (https://no-color.org: set, and not empty)."""
    return text if os.environ.get("NO_COLOR") else typer.style(text, **style)


def print_json(value: Any) -> None:
    """Print as JSON; ASCII only, so that no text of a model's can reach the terminal raw."""
    typer.echo(json.dumps(plain(value), indent=2))


def print_report(report: Report, *, json_: bool = False) -> int:
    """Print one line per check, or `{"ok": …, "checks": [{"level", "subject", "text"}, …]}`; return the exit code."""
    if json_:
        checks = [{"level": level, "subject": subject, "text": text} for level, subject, text in report.lines]
        print_json({"ok": report.ok, "checks": checks})
        return 0 if report.ok else 1
    width = max((len(subject) for _, subject, _ in report.lines), default=0)
    colors = {"ok": "green", "warn": "yellow", "fail": "red"}
    for level, subject, text in report.lines:
        mark = paint(f"{level:<4}", fg=colors.get(level))
        typer.echo(f"{mark}  {safe_text(subject):<{width}}  {safe_text(text)}")
    return 0 if report.ok else 1


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows with the same keys as aligned columns; a column without any value is left out."""
    keys = [key for key in rows[0] if any(row[key] not in (None, "", [], {}) for row in rows)]
    table = [keys, *([cell(row[key]) for key in keys] for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(keys))]
    for index, row in enumerate(table):
        line = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        typer.echo(paint(line, bold=True) if index == 0 else line)


def print_mapping(table: Mapping[str, Any], indent: int = 0) -> None:
    """Print keys with their values, nested tables indented."""
    width = max((len(key) for key in table), default=0)
    for key, value in table.items():
        label = " " * indent + safe_text(key)
        nested = isinstance(value, list) and value and isinstance(value[0], Mapping)
        if isinstance(value, Mapping) and value:
            typer.echo(label)
            print_mapping(value, indent + 2)
        elif nested:
            typer.echo(label)
            for item in value:
                typer.echo(" " * (indent + 2) + "  ".join(f"{name} {cell(field)}" for name, field in item.items()))
        else:
            typer.echo(f"{label:<{width + indent}}  {cell(value)}")


def cell(value: Any) -> str:
    """One value on one line."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "  ".join(f"{key} {cell(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(cell(item) for item in value) or "–"
    return one_line(str(value), 400)


# Hints for commands of other programs that do not exist here.

HINTS: Mapping[str, str] = {
    "init": "`coterie config init FILE.toml` writes a config file to start from",
    "new": "`coterie config init FILE.toml` writes a config file to start from",
    "runs": "`coterie ls` lists runs, `coterie show RUN` shows one",
    "list": "`coterie ls` lists runs",
    "status": "`coterie ls` lists runs, `coterie show RUN` shows one",
    "continue": "`coterie resume RUN` resumes from the latest checkpoint",
    "compare": "`coterie diff RUN RUN` compares two runs",
    "grpo": "`coterie train @ FILE.toml` trains with GRPO",
    "finetune": "`coterie sft @ FILE.toml` trains on conversations, `coterie train @ FILE.toml` with GRPO",
    "generate": "`coterie rollout MODEL_OR_RUN` samples and scores completions, `coterie chat` talks with a model",
    "sample": "`coterie rollout MODEL_OR_RUN` samples and scores completions",
    "test": "`coterie eval MODEL_OR_RUN` evaluates",
    "evaluate": "`coterie eval MODEL_OR_RUN` evaluates",
    "check": "`coterie validate @ FILE.toml` checks data and rewards, `coterie train @ FILE.toml --dry-run` all of it",
    "models": "`coterie assets ls` lists built-in models and data sets; a folder or a Hugging Face id works, too",
    "datasets": "`coterie assets ls` lists built-in models and data sets; a folder or a Hugging Face id works, too",
    "download": "`coterie assets fetch NAME` downloads a built-in model or data set",
    "algorithms": "`coterie algo ls` lists algorithm presets",
    "merge": "a LoRA checkpoint's `model` folder is a PEFT adapter: peft's merge_and_unload() merges it into its base",
    "export": "a checkpoint's `model` folder (runs/NAME/checkpoints/step_N/model) opens in transformers",
    "push": "a checkpoint's `model` folder opens in transformers; coterie uploads nothing",
    "serve": "a checkpoint's `model` folder (runs/NAME/checkpoints/step_N/model) can be served by vLLM",
    "bench": "`python3 bootstrap.py bench` in a checkout compares speed and memory with TRL and vLLM",
    "settings": "`coterie train --help-all` explains every setting, `coterie config print` shows their values",
    "config show": "`coterie config print @ FILE.toml` prints every setting and where its value comes from",
    "config ls": "`coterie config print @ FILE.toml` prints every setting and where its value comes from",
    "config list": "`coterie config print @ FILE.toml` prints every setting and where its value comes from",
    "config new": "`coterie config init FILE.toml` writes a config file to start from",
    "config validate": "`coterie validate @ FILE.toml` checks settings, data and rewards",
    "algo list": "`coterie algo ls` lists algorithm presets",
    "algo print": "`coterie algo show NAME` explains one",
    "assets list": "`coterie assets ls` lists built-in models and data sets",
    "assets download": "`coterie assets fetch NAME` downloads one",
}
"""Words after `coterie` → the command to use."""


class HintedGroup(TyperGroup):
    """Group of commands with hints for commands that do not exist."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        words = [*ctx.command_path.split()[1:], args[0]]
        hint = HINTS.get(" ".join(words)) if args[0] not in self.commands else None
        if hint is not None:
            ctx.fail(f"No such command {args[0]!r}: {hint}.")
        return super().resolve_command(ctx, args)
