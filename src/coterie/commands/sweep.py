"""sweep: many runs of one recipe, compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coterie.commands.common import HELP, SETTINGS, USAGE, print_json


def sweep(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder of the sweep; run the same command again to resume it.")],
    vary: Annotated[list[str], typer.Option(help="KEY=VALUE,VALUE…; may be given several times.")] = [],  # noqa: B006
    arm: Annotated[list[str], typer.Option(help="'NAME: KEY=VALUE KEY=VALUE…', a bundle of settings; several.")] = [],  # noqa: B006
    seeds: Annotated[str, typer.Option(help="Seeds, e.g. 0-4 or 0,1,7.")] = "0-2",
    reach: Annotated[
        float | None,
        typer.Option(help="Held-out pass@1 (a share) or reward, e.g. 0.3: say after how many rollouts it was reached."),
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="Parallel runs, which share the cores evenly. Each needs its own memory.")
    ] = 1,
    lean: Annotated[bool, typer.Option("--lean", help="Delete the checkpoints of finished runs.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Report only; train nothing.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    help_: bool = HELP,
) -> None:
    """Train every combination of varied settings and seeds, and compare.

    For example: coterie sweep @ recipes/demo --vary algorithm=grpo,dr_grpo --vary optim.lr=1e-5,2e-5 --out sweeps/one
    """
    from coterie.config.load import load
    from coterie.sweep.grid import cells, parse_arms, parse_seeds, parse_vary

    varied = parse_vary(vary)
    found = cells(varied, parse_seeds(seeds), parse_arms(arm))
    for cell in found:
        load([*ctx.args, *cell.words()])  # a wrong setting is reported before the first hour of work
    from coterie.sweep import run
    from coterie.sweep.report import write

    if not report:
        run.run(found, ctx.args, out, lambda message: typer.echo(message, err=json_), lean=lean, jobs=jobs)
    results, text = write(out, found, varied, reach)
    if json_:
        print_json([one.numbers() for one in results])
    else:
        typer.echo(f"\n{text}\nwritten to {out}")


def register(app: typer.Typer) -> None:
    """Add this verb to the program."""
    app.command(**SETTINGS, options_metavar=USAGE)(sweep)
