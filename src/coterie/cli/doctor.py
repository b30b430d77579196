"""Command `doctor`: system information, or the diagnosis of a run."""

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
        _diagnose_run(run, root, json_)
        return
    system = examine()
    if json_:
        print_json(system)
        return
    for subject, text in lines(system):
        typer.echo(f"{paint(f'{subject:<10}', bold=True)} {safe_text(text)}")


def _diagnose_run(run: str, root: Path, json_: bool) -> None:
    from coterie.doctor.health import diagnose
    from coterie.runs.directory import find

    diagnosis = diagnose(find(run, root))
    if json_:
        print_json(diagnosis)
    else:
        for line in run_lines(diagnosis):
            typer.echo(line)
    raise typer.Exit(1 if diagnosis.serious else 0)


def run_lines(diagnosis: Diagnosis) -> Iterator[str]:
    """Lines of text for a diagnosis."""
    color = "red" if diagnosis.serious else "yellow" if diagnosis.verdict.startswith("needs") else "green"
    yield paint(safe_text(f"{diagnosis.run}: {diagnosis.verdict}"), fg=color, bold=True)
    if diagnosis.ended:
        yield from _wrapped("ended", diagnosis.ended)
    for finding in diagnosis.findings:
        yield ""
        yield f"{paint(finding.severity, fg=COLORS[finding.severity], bold=True)}: {safe_text(finding.title)}"
        for evidence in finding.evidence:
            yield from _wrapped("evidence", evidence.text)
        yield from _wrapped("why it matters", finding.meaning)
        yield from _wrapped("suggested fix", finding.action)
        yield from _wrapped("rule", finding.rule)
    if diagnosis.quiet:
        yield ""
        yield from _wrapped("checks passed", ", ".join(diagnosis.quiet))
    if diagnosis.unjudged:
        yield ""
        short = [skipped.rule for skipped in diagnosis.unjudged if skipped.reason.startswith("needs ")]
        if short:
            yield from _wrapped("checks skipped, the run is too short", ", ".join(short))
        if len(short) < len(diagnosis.unjudged):
            yield "checks skipped:"
        for skipped in diagnosis.unjudged:
            if skipped.rule not in short:
                yield from _wrapped(skipped.rule, f"{skipped.asks} {skipped.reason}")


def _wrapped(label: str, text: str) -> list[str]:
    return textwrap.wrap(f"{label}: {safe_text(text)}", WIDTH, initial_indent="  ", subsequent_indent="      ")


def examine() -> dict[str, Any]:
    """System information as JSON-able data. Imports torch."""
    from coterie.data import assets

    facts, chosen = machine.facts(), machine.choice()
    try:
        accelerators, trouble = machine.gpus(), None
    except (ImportError, OSError, RuntimeError) as error:
        accelerators, trouble = [], f"torch cannot be loaded: {error}"
    return {
        "coterie": __version__,
        "machine": asdict(facts) | {"native_bf16": facts.native_bf16},
        "gpus": [asdict(gpu) for gpu in accelerators],
        "trouble": trouble,
        "extras": machine.extras(),
        "assets": [plain(asset) for asset in assets.ls()],
        "threads": asdict(chosen),
        "plan": machine.plan(facts, accelerators, chosen.line()),
    }


def lines(system: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Lines of text for the system information, as (subject, text)."""
    here = system["machine"]
    yield "coterie", f"{system['coterie']} on Python {here['python']}, {here['system']}"
    yield (
        "cpu",
        f"{here['cpu']}, {here['cores']} cores; {', '.join(here['flags']) or 'no vector extensions known to matter'}",
    )
    yield "memory", f"{here['memory'] / machine.GIB:.1f} GiB, {here['memory_free'] / machine.GIB:.1f} free"
    yield "disk", f"{here['disk_free'] / machine.GIB:.1f} GiB free in this folder"
    names = [f"{gpu['name']} ({gpu['memory'] / machine.GIB:.0f} GiB)" for gpu in system["gpus"]]
    yield "gpu", ", ".join(names) or "none"
    if system["trouble"]:
        yield "trouble", system["trouble"]
    for extra, packages in sorted(system["extras"].items()):
        if extra == "gpu" and not system["gpus"]:
            continue  # of no use here
        have = ", ".join(f"{name} {version or 'not installed'}" for name, version in packages.items())
        remedy = "" if all(packages.values()) else f" (optional; {install_command(extra)})"
        yield f"[{extra}]", have + remedy
    for asset in system["assets"]:
        yield "asset", f"{asset['name']}: {asset['state']} ({asset['size_mb']:.1f} MB, {asset['licence']})"
    for line in system["plan"]:
        yield "selected", line


def register(app: typer.Typer) -> None:
    """Add this command to the program."""
    app.command()(doctor)
