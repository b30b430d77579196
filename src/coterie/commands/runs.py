"""ls, show, diff: looking at runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coterie.commands.common import JSON, cell, plain, print_json, print_mapping, print_table
from coterie.observer import EvalResult, Interval

if TYPE_CHECKING:
    from coterie.algo.statistics import PairedTest  # brings numpy along

Root = Annotated[Path, typer.Option("--runs", help="Folder that holds the runs.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="Name under the runs' folder, or a path.")]


def ls(root: Root = Path("runs"), json_: bool = JSON) -> None:
    """List the runs of a folder."""
    from coterie.runs import inspect

    runs = [plain(one) for one in inspect.list_runs(root)]
    if json_:
        print_json(runs)
    elif runs:
        print_table(runs)
    else:
        typer.echo(f"no runs in {root}; `coterie demo` makes one")
    for line in () if json_ else _stopped(runs, root):
        typer.echo(line)


def _stopped(runs: Sequence[Mapping[str, Any]], root: Path) -> Iterator[str]:
    """For each run that was stopped, a line on how to continue it."""
    from coterie.runs import checkpoint

    for run in (run for run in runs if run["state"] == "stopped"):
        saved = max(checkpoint.steps(root / run["name"] / "checkpoints"), default=0)
        start = f"continues from step {saved}" if saved else "starts over: no checkpoint is saved"
        if not run["step"]:
            start = "starts over: no step was finished"
        yield f"{run['name']} was stopped; coterie resume {root / run['name']} {start}"


def show(run: Run, root: Root = Path("runs"), json_: bool = JSON) -> None:
    """What a run was and what it reached."""
    from coterie.runs import inspect
    from coterie.runs.directory import find

    summary = inspect.summary(find(run, root))
    if json_:
        print_json(summary)
        return
    page: dict[str, Any] = plain(summary)
    for end in ("before", "after"):
        page[end] = [_accuracy(result) for result in getattr(summary, end)]
    page["paired"] = _differences(summary.paired)
    print_mapping({key: value for key, value in page.items() if value not in (None, [], {})})


def diff(one: Run, other: Run, root: Root = Path("runs"), json_: bool = JSON) -> None:
    """Where two runs differ.

    The paired test is on the prompts of both last evaluations, the second run minus the first.
    """
    from coterie.runs import inspect
    from coterie.runs.directory import find

    paths = find(one, root), find(other, root)
    sections = inspect.diff(*paths)
    paired = inspect.compare_runs(*paths) if sections else {}
    if json_:
        print_json({**sections, "paired": paired} if paired else sections)
    elif not sections:
        typer.echo("no difference")
    for name, section in () if json_ else sections.items():
        rows = [{name: key, one: cell(plain(pair[0])), other: cell(plain(pair[1]))} for key, pair in section.items()]
        print_table(rows)
        typer.echo()
    if paired and not json_:
        print_table(_differences(paired))


def _differences(tests: Mapping[str, PairedTest]) -> list[dict[str, Any]]:
    """Of pass@1, in points; intervals are 95 % bootstrap intervals over prompts."""
    return [
        {
            "task": task,
            "pass@1": f"{100 * test.difference:+.1f} points [{100 * test.low:+.1f}, {100 * test.high:+.1f}]",
            "p": "< 0.001" if test.p_value < 0.001 else f"{test.p_value:.3f}",
        }
        for task, test in tests.items()
    ]


def _accuracy(result: EvalResult) -> dict[str, Any]:
    def percent(one: Interval) -> str:
        return f"{100 * one.value:.1f} % [{100 * one.low:.1f}, {100 * one.high:.1f}]"

    return {
        "step": result.step,
        "task": result.task,
        "pass@1": percent(result.pass_at_1),
        f"pass@{result.k}": percent(result.pass_at_k),
    }


def register(app: typer.Typer) -> None:
    """Add these verbs to the program."""
    app.command()(ls)
    app.command()(show)
    app.command()(diff)
