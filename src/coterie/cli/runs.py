"""Commands `ls`, `show`, `diff`, `timing` and `groups`."""

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
"""Headings of columns of `ls` that differ from their keys."""
SHOW = {
    "before": "held-out before",
    "after": "held-out after",
    "paired": "after minus before",
    "metrics": "metrics of the last step",
}
"""Headings of `show` that differ from their keys."""
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

    The columns before and after are the first and the last held-out evaluation; the column held-out (in JSON: heldout)
    names their metric.
    """
    from coterie.runs import inspect

    root = folder or root
    runs = [plain(run) for run in inspect.list_runs(root)]
    if json_:
        print_json(runs)
    elif runs:
        print_table([{LS.get(key, key): value for key, value in run.items()} for run in runs])
    else:
        typer.echo(f"no runs in {root}; `coterie demo` makes one")
    for line in () if json_ else _stopped(runs, root):
        typer.echo(line)


def _stopped(runs: Sequence[Mapping[str, Any]], root: Path) -> Iterator[str]:
    """One line for each stopped run with the command that continues it."""
    from coterie.runs import checkpoint

    for run in (run for run in runs if run["state"] == "stopped"):
        saved = max(checkpoint.steps(root / run["name"] / "checkpoints"), default=0)
        start = f"continues from step {saved}" if saved else "starts over: no checkpoint is saved"
        if not run["step"]:
            start = "starts over: no step was finished"
        yield f"{run['name']} was stopped; coterie resume {root / run['name']} {start}"


def show(run: Run, root: Root = Path("runs"), json_: bool = JSON) -> None:
    """Show a run's settings, held-out results and last metrics."""
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
    page["metrics"] = _by_family(summary.metrics)
    page = {SHOW.get(key, key): value for key, value in page.items() if key != "heldout"}
    print_mapping({key: value for key, value in page.items() if value not in (None, [], {})})


def diff(first: Run, second: Run, root: Root = Path("runs"), json_: bool = JSON) -> None:
    """Compare two runs: settings, metrics and held-out results.

    The paired test is over the prompts of both last evaluations, second run minus first. It is left out where the runs
    were evaluated with different rewards, prompts or evaluation settings.
    """
    from coterie.runs import inspect
    from coterie.runs.directory import find

    paths = find(first, root), find(second, root)
    sections = inspect.diff(*paths)
    paired = inspect.compare_runs(*paths) if sections else {}
    obstacles = inspect.obstacles(*paths, paired)
    paired = {task: test for task, test in paired.items() if task not in obstacles}
    if json_:
        beside = {"paired": paired, "not_comparable": obstacles}
        print_json({**sections, **{name: section for name, section in beside.items() if section}})
    elif not sections:
        typer.echo("no difference")
    for name, section in () if json_ else sections.items():
        rows = [{name: key, first: cell(plain(pair[0])), second: cell(plain(pair[1]))} for key, pair in section.items()]
        print_table(rows)
        typer.echo()
    if paired and not json_:
        print_table(_differences(paired))
    for task, names in () if json_ else obstacles.items():
        verb = "differs" if len(names) == 1 and names[0] != "rewards.functions" else "differ"
        typer.echo(f"held-out {task} not comparable: {', '.join(names)} {verb}")


def timing(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs, or the folder of a sweep.")],
    root: Root = Path("runs"),
    skip: Annotated[int, typer.Option(min=0, help="First steps that are left out: they set things up.")] = 1,
    json_: bool = JSON,
) -> None:
    """Show where the seconds of runs went, by part of a step.

    Seconds a step and shares of it, by the clock and on the processors, means over all steps but the first. Runs of a
    sweep that differ in the seed alone are taken together.
    """
    from coterie.phases import PATHS
    from coterie.runs.directory import find
    from coterie.runs.timing import arms, run_timing

    folders = [folder for name in runs for folder in _members(name) or [find(name, root)]]
    timings = arms([run_timing(folder, skip) for folder in folders])
    if json_:
        print_json([plain(timing) for timing in timings])
        return
    rows: list[dict[str, Any]] = []
    for unit, spent in (
        ("", {timing.name: timing.spent() for timing in timings}),
        ("CPU: ", {timing.name: timing.cpu_spent() for timing in timings}),
    ):
        for path in PATHS:
            if any(path in seconds for seconds in spent.values()):
                cells = {name: _seconds_cell(seconds, path) for name, seconds in spent.items()}
                rows.append({"seconds a step": unit + "  " * (len(path) - 1) + path[-1], **cells})
    for heading in dict.fromkeys(heading for timing in timings for heading in timing.counts):
        counts = {timing.name: f"{timing.counts.get(heading, 0.0):.0f}" for timing in timings}
        rows.append({"seconds a step": heading, **counts})
    rows.append({"seconds a step": "steps measured", **{timing.name: str(timing.steps) for timing in timings}})
    print_table(rows)


def _members(sweep: str) -> list[Path]:
    """Folders of a sweep's runs; none where it is no sweep."""
    folder = Path(sweep).expanduser() / "runs"
    return sorted(config.parent for config in folder.glob("*/config.toml"))


def _seconds_cell(seconds: Mapping[tuple[str, ...], float], path: tuple[str, ...]) -> str:
    whole = seconds.get(("step",), 0.0)
    if path not in seconds:
        return ""
    share = f" {seconds[path] / whole:4.0%}" if whole else ""
    return f"{seconds[path]:8.3f}{share}"


def _differences(tests: Mapping[str, PairedTest]) -> list[dict[str, Any]]:
    """Rows of differences of pass@1 (in points) or of the mean reward, with 95 % bootstrap intervals over prompts."""
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


def _by_family(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Metrics of the last step by the first part of their names, in the order of docs/diagnostics.md."""
    groups: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        family, slash, rest = name.partition("/")
        groups.setdefault(family if slash else "step", {})[rest or name] = value
    order = {family: place for place, family in enumerate(FAMILIES)}
    return {family: groups[family] for family in sorted(groups, key=lambda name: (order.get(name, len(order)), name))}


def groups(
    run: Run,
    root: Root = Path("runs"),
    step: Annotated[int | None, typer.Option(help="Step of the checkpoint; the newest by default.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the tree and the prompts to this PNG or SVG file.")] = None,
    json_: bool = JSON,
) -> None:
    """Show the regions of similar prompts of a group-aware run.

    Prints the tree of regions: the rule of each in words, success, drift, number of prompts, examples, and the splits
    and merges so far.
    """
    from coterie.board.regions import draw, read
    from coterie.errors import RunError, install_command

    groups = read(Path(run), root, step)
    if plot is not None and not draw(plot, groups):
        raise RunError(
            f"{plot} was not drawn: it needs a step with prompts, and matplotlib ({install_command('train')})"
        )
    if json_:
        print_json(groups.plain())
        return
    outlook = [] if groups.outlook is None else [groups.outlook.sentence()]
    typer.echo("\n".join([f"{groups.run}, step {groups.step}: {groups.summary()}", *outlook, ""]))
    for region in groups.regions:
        start = "  " * region.depth
        rule = f"{region.label}: {region.step}" if region.leaf else region.step
        typer.echo(
            f"{start}{safe_text(rule)}: success {region.success:.2f} ({region.drift:+.2f} over the window), "
            f"spread {region.spread:.2f}, {region.prompts} prompts"
        )
        if region.leaf and region.examples:
            typer.echo(f"{start}   e.g. {safe_text(', '.join(region.examples))}")
    if groups.moved:
        typer.echo("\nsplits and merges")
    for at, what in groups.moved:
        typer.echo(f"  step {at}: {safe_text(what)}")


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.command()(ls)
    app.command()(show)
    app.command()(diff)
    app.command()(timing)
    app.command()(groups)
