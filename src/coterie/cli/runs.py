"""ls, show, diff: looking at runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coterie.cli.options import JSON, cell, plain, print_json, print_mapping, print_table
from coterie.text import difference_text, metric_text, p_text, safe_text
from coterie.types import PASS, REWARD, EvalResult

if TYPE_CHECKING:
    from coterie.stats import PairedTest  # brings numpy along


LS = {"reward": "train reward", "heldout": "held-out"}
"""Columns of `ls` that are headed by more than their key."""
SHOW = {
    "before": "held-out before",
    "after": "held-out after",
    "paired": "after minus before",
    "metrics": "metrics of the last step",
}
"""Headings of `show` that say more than their key."""
FAMILIES = (
    *("reward", "groups", "answers", "advantage", "step", "loss", "ratio", "clip", "kl", "surprisal", "critic"),
    *("length", "repetition", "prompt_overlap", "think", "turns", "mismatch", "staleness"),
)
"""Order in which `show` prints families of metrics; others follow by name. `step` has those without a family."""


def _expanded(path: Path | None) -> Path | None:
    return path and path.expanduser()


Root = Annotated[Path, typer.Option("--runs", help="Folder that holds the runs.", callback=Path.expanduser)]
Run = Annotated[str, typer.Argument(metavar="RUN", help="Name under the runs' folder, or a path.")]


def ls(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="The same as --runs FOLDER.", callback=_expanded)
    ] = None,
    root: Root = Path("runs"),
    json_: bool = JSON,
) -> None:
    """List the runs of a folder.

    before and after are of the first and the last held-out evaluation; the column held-out (in JSON: heldout) names
    their metric.
    """
    from coterie.runs import inspect

    root = folder or root
    runs = [plain(one) for one in inspect.list_runs(root)]
    if json_:
        print_json(runs)
    elif runs:
        print_table([{LS.get(key, key): value for key, value in run.items()} for run in runs])
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
        page[end] = [_estimates(result, summary.heldout.get(result.task, PASS)) for result in getattr(summary, end)]
    page["paired"] = _differences(summary.paired)
    page["metrics"] = _grouped(summary.metrics)
    page = {SHOW.get(key, key): value for key, value in page.items() if key != "heldout"}
    print_mapping({key: value for key, value in page.items() if value not in (None, [], {})})


def diff(one: Run, other: Run, root: Root = Path("runs"), json_: bool = JSON) -> None:
    """Where two runs differ.

    The paired test is on the prompts of both last evaluations, the second run minus the first. Where the runs were
    evaluated by different rewards, prompts or evaluation settings, it is left out.
    """
    from coterie.runs import inspect
    from coterie.runs.directory import find

    paths = find(one, root), find(other, root)
    sections = inspect.diff(*paths)
    paired = inspect.compare_runs(*paths) if sections else {}
    obstacles = _obstacles(paths, paired)
    paired = {task: test for task, test in paired.items() if task not in obstacles}
    if json_:
        beside = {"paired": paired, "not_comparable": obstacles}
        print_json({**sections, **{name: section for name, section in beside.items() if section}})
    elif not sections:
        typer.echo("no difference")
    for name, section in () if json_ else sections.items():
        rows = [{name: key, one: cell(plain(pair[0])), other: cell(plain(pair[1]))} for key, pair in section.items()]
        print_table(rows)
        typer.echo()
    if paired and not json_:
        print_table(_differences(paired))
    for task, names in () if json_ else obstacles.items():
        typer.echo(f"held-out {task} not comparable: {', '.join(names)} {'differs' if _is_one(names) else 'differ'}")


def _is_one(names: Sequence[str]) -> bool:
    return len(names) == 1 and names[0] != "rewards.functions"


def _obstacles(paths: Sequence[Path], tests: Mapping[str, PairedTest]) -> dict[str, list[str]]:
    """By task, the settings that keep the two runs' results from being compared."""
    from coterie.runs.directory import RunDirectory
    from coterie.runs.inspect import differing

    if not tests:
        return {}
    one, other = (RunDirectory.at(path).read_config() for path in paths)
    obstacles = {task: differing(one, other, test.metric) for task, test in tests.items()}
    return {task: names for task, names in obstacles.items() if names}


def _differences(tests: Mapping[str, PairedTest]) -> list[dict[str, Any]]:
    """Of pass@1, in points, or of the mean reward; intervals are 95 % bootstrap intervals over prompts."""
    metrics = {test.metric for test in tests.values()}
    return [
        {
            "task": task,
            **({} if len(metrics) == 1 else {"metric": test.metric}),
            (test.metric if len(metrics) == 1 else "difference"): difference_text(test.metric, test),
            "p": p_text(test),
        }
        for task, test in tests.items()
    ]


def _estimates(result: EvalResult, metric: str) -> dict[str, Any]:
    estimates: dict[str, Any] = {"step": result.step, "task": result.task}
    if metric == PASS:
        estimates[PASS] = metric_text(PASS, result.metric(PASS))
        estimates[f"pass@{result.k}"] = metric_text(PASS, result.pass_at_k)
    if result.reward is not None or metric == REWARD:
        estimates[REWARD] = metric_text(REWARD, result.reward)
    return estimates


def _grouped(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The metrics of the last step under the first part of their names, in the order of docs/diagnostics.md."""
    groups: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        family, slash, rest = name.partition("/")
        groups.setdefault(family if slash else "step", {})[rest or name] = value
    order = {family: place for place, family in enumerate(FAMILIES)}
    return {family: groups[family] for family in sorted(groups, key=lambda name: (order.get(name, len(order)), name))}


def groups(
    run: Run,
    root: Root = Path("runs"),
    step: Annotated[int | None, typer.Option(help="Checkpoint to look at; the newest when left out.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the tree, and prompts by similarity and success, into this PNG or SVG.")
    ] = None,
    json_: bool = JSON,
) -> None:
    """Print the regions of a group-aware run.

    The tree with its rules in words, sizes, success, drift, examples, and how it moved.
    """
    from coterie.board.regions import draw, read
    from coterie.errors import RunError, install_command

    found = read(Path(run), root, step)
    if plot is not None and not draw(plot, found):
        raise RunError(
            f"{plot} was not drawn: it needs a step with prompts, and matplotlib ({install_command('train')})"
        )
    if json_:
        print_json(found.plain())
        return
    typer.echo(f"{found.run}, step {found.step}: {found.summary()}\n")
    for region in found.regions:
        start = "  " * region.depth
        rule = f"{region.label}: {region.step}" if region.leaf else region.step
        typer.echo(
            f"{start}{safe_text(rule)}: success {region.success:.2f} ({region.drift:+.2f} over the window), "
            f"spread {region.spread:.2f}, {region.prompts} prompts"
        )
        if region.leaf and region.examples:
            typer.echo(f"{start}   e.g. {safe_text(', '.join(region.examples))}")
    if found.moved:
        typer.echo("\nhow it moved")
    for at, what in found.moved:
        typer.echo(f"  step {at}: {safe_text(what)}")


def register(app: typer.Typer) -> None:
    """Add these verbs to the program."""
    app.command()(ls)
    app.command()(show)
    app.command()(diff)
    app.command()(groups)
