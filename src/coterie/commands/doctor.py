"""doctor: what this machine has, and what coterie will therefore do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import typer

from coterie import __version__, machine, threads
from coterie.commands.common import JSON, paint, plain, print_json
from coterie.text import safe_text


def doctor(json_: bool = JSON) -> None:
    """What this machine has, and what follows."""
    seen = examine()
    if json_:
        print_json(seen)
        return
    for subject, text in lines(seen):
        typer.echo(f"{paint(f'{subject:<10}', bold=True)} {safe_text(text)}")


def examine() -> dict[str, Any]:
    """Everything the doctor looks at, as JSON-able data. Imports torch."""
    from coterie.data import assets

    facts, chosen = machine.facts(), threads.choice()
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
        "sandboxes": machine.sandboxes(),
        "assets": [plain(one) for one in assets.ls()],
        "threads": asdict(chosen),
        "plan": machine.plan(facts, accelerators, chosen.line()),
    }


def lines(seen: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(subject, text) of each line a person reads."""
    here = seen["machine"]
    yield "coterie", f"{seen['coterie']} on Python {here['python']}, {here['system']}"
    yield "cpu", f"{here['cpu']}, {here['cores']} cores; {', '.join(here['flags']) or 'no flags that matter'}"
    yield "memory", f"{here['memory'] / machine.GIB:.1f} GiB, {here['memory_free'] / machine.GIB:.1f} free"
    yield "disk", f"{here['disk_free'] / machine.GIB:.1f} GiB free in this folder"
    names = [f"{gpu['name']} ({gpu['memory'] / machine.GIB:.0f} GiB)" for gpu in seen["gpus"]]
    yield "gpu", ", ".join(names) or "none"
    if seen["trouble"]:
        yield "trouble", seen["trouble"]
    for extra, packages in sorted(seen["extras"].items()):
        have = ", ".join(f"{name} {version}" if version else f"{name} missing" for name, version in packages.items())
        remedy = "" if all(packages.values()) else f"; in the source folder: pip install -e '.[{extra}]'"
        yield f"[{extra}]", have + remedy
    fences = [f"{name} ({where})" for name, where in seen["sandboxes"].items() if where]
    yield (
        "sandbox",
        ", ".join(fences) or "neither bwrap nor wasmtime; model-written code has no fence of its own",
    )
    for asset in seen["assets"]:
        yield "asset", f"{asset['name']}: {asset['state']} ({asset['size_mb']:.1f} MB, {asset['licence']})"
    for line in seen["plan"]:
        yield "therefore", line


def register(app: typer.Typer) -> None:
    """Add this verb to the program."""
    app.command()(doctor)
