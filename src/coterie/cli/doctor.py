"""doctor: what this machine has, and what coterie will therefore do; or what is wrong with a run."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coterie import __version__, machine
from coterie.cli.options import JSON, paint, plain, print_json
from coterie.cli.runs import Root
from coterie.errors import install_command
from coterie.text import safe_text

if TYPE_CHECKING:
    from coterie.doctor.health import Diagnosis  # brings numpy along

WIDTH = 110
COLORS = {"serious": "red", "warning": "yellow", "note": "cyan"}
Patient = Annotated[str | None, typer.Argument(metavar="[RUN]", help="Name under the runs' folder, or a path.")]


def doctor(run: Patient = None, root: Root = Path("runs"), json_: bool = JSON) -> None:
    """Show system information, or diagnose RUN.

    Exit code 1 when a finding about a run is serious, 0 otherwise. docs/diagnostics.md explains every metric and rule.
    """
    if run is not None:
        _examine_run(run, root, json_)
        return
    seen = examine()
    if json_:
        print_json(seen)
        return
    for subject, text in lines(seen):
        typer.echo(f"{paint(f'{subject:<10}', bold=True)} {safe_text(text)}")


def _examine_run(run: str, root: Path, json_: bool) -> None:
    from coterie.doctor.health import diagnose
    from coterie.runs.directory import find

    found = diagnose(find(run, root))
    if json_:
        print_json(found)
    else:
        for line in run_lines(found):
            typer.echo(line)
    raise typer.Exit(1 if found.serious else 0)


def run_lines(found: Diagnosis) -> Iterator[str]:
    """The diagnosis as a person reads it."""
    color = "red" if found.serious else "yellow" if found.verdict.startswith("worth") else "green"
    yield paint(safe_text(f"{found.run}: {found.verdict}"), fg=color, bold=True)
    if found.ended:
        yield from _folded("ended", found.ended)
    for finding in found.findings:
        yield ""
        yield f"{paint(finding.severity, fg=COLORS[finding.severity], bold=True)}: {safe_text(finding.title)}"
        for evidence in finding.evidence:
            yield from _folded("evidence", evidence.text)
        yield from _folded("why it matters", finding.meaning)
        yield from _folded("suggested fix", finding.action)
        yield from _folded("rule", finding.rule)
    if found.quiet:
        yield ""
        yield from _folded("checks passed", ", ".join(found.quiet))
    if found.unjudged:
        yield ""
        short = [one.rule for one in found.unjudged if one.reason.startswith("needs ")]
        if short:
            yield from _folded("checks skipped, the run is too short", ", ".join(short))
        if len(short) < len(found.unjudged):
            yield "checks skipped:"
        for one in found.unjudged:
            if one.rule not in short:
                yield from _folded(one.rule, f"{one.asks} {one.reason}")


def _folded(label: str, text: str) -> list[str]:
    return textwrap.wrap(f"{label}: {safe_text(text)}", WIDTH, initial_indent="  ", subsequent_indent="      ")


def examine() -> dict[str, Any]:
    """Everything the doctor looks at, as JSON-able data. Imports torch."""
    from coterie.data import assets

    facts, chosen = machine.facts(), machine.choice()
    try:
        accelerators, trouble = machine.gpus(), None
    except (ImportError, OSError, RuntimeError) as error:
        accelerators, trouble = [], f"torch cannot be loaded: {error}"
    return {
        "coterie": __version__,
        "machine": asdict(facts) | {"native_bf16": facts.native_bf16},
        "gpus": [asdict(one) for one in accelerators],
        "trouble": trouble,
        "extras": machine.extras(),
        "assets": [plain(one) for one in assets.ls()],
        "threads": asdict(chosen),
        "plan": machine.plan(facts, accelerators, chosen.line()),
    }


def lines(seen: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(subject, text) of each line a person reads."""
    here = seen["machine"]
    yield "coterie", f"{seen['coterie']} on Python {here['python']}, {here['system']}"
    yield (
        "cpu",
        f"{here['cpu']}, {here['cores']} cores; {', '.join(here['flags']) or 'no vector extensions known to matter'}",
    )
    yield "memory", f"{here['memory'] / machine.GIB:.1f} GiB, {here['memory_free'] / machine.GIB:.1f} free"
    yield "disk", f"{here['disk_free'] / machine.GIB:.1f} GiB free in this folder"
    names = [f"{gpu['name']} ({gpu['memory'] / machine.GIB:.0f} GiB)" for gpu in seen["gpus"]]
    yield "gpu", ", ".join(names) or "none"
    if seen["trouble"]:
        yield "trouble", seen["trouble"]
    for extra, packages in sorted(seen["extras"].items()):
        if extra == "gpu" and not seen["gpus"]:
            continue  # of no use here
        have = ", ".join(f"{name} {version or 'not installed'}" for name, version in packages.items())
        remedy = "" if all(packages.values()) else f" (optional; {install_command(extra)})"
        yield f"[{extra}]", have + remedy
    for asset in seen["assets"]:
        yield "asset", f"{asset['name']}: {asset['state']} ({asset['size_mb']:.1f} MB, {asset['licence']})"
    for line in seen["plan"]:
        yield "selected", line


def register(app: typer.Typer) -> None:
    """Add this verb to the program."""
    app.command()(doctor)
