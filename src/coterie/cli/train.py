"""Commands `demo`, `train`, `sft`, `distill`, `resume` and `sweep`."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coterie.cli.options import HELP, LOADING, SETTINGS, USAGE, check_files, print_json, print_report
from coterie.cli.runs import Root, Run
from coterie.cli.stages import exit_by_signal
from coterie.errors import ConfigError

if TYPE_CHECKING:
    from coterie.config.layers import Loaded  # brings pydantic along


def demo(
    ctx: typer.Context,
    task: Annotated[
        str,
        typer.Option(
            help="search: look facts up with a search tool; stages: the same in four stages, to questions of two hops; "
            "sums: add and subtract two numbers."
        ),
    ] = "search",
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    help_: bool = HELP,
) -> None:
    """Train a small language model in a few minutes.

    Takes two CPU cores; reports the accuracy on held-out prompts before and after training.
    """
    from coterie import console

    with console.console_callback() as callback:
        callback.on_progress(LOADING)

        from coterie.demo import run_demo

        run_demo(callback, task=task, seed=seed, overrides=ctx.args)
    exit_by_signal(callback.stopped)


DryRun = Annotated[bool, typer.Option("--dry-run", help="Check model, data, reward, memory and time without training.")]
Checks = Annotated[bool, typer.Option("--json", help="With --dry-run: print the checks as JSON.")]
Board = Annotated[
    bool, typer.Option("--board", help="Show the runs in a browser while this one trains: `coterie board`.")
]


def train(
    ctx: typer.Context, dry_run: DryRun = False, json_: Checks = False, board: Board = False, help_: bool = HELP
) -> None:
    """Train a model with GRPO.

    For example: coterie train @ recipes/NAME/config.toml --steps 50 --optim.lr 1e-5
    """
    from coterie.config.load import load

    _train(load(ctx.args), dry_run, json_, board)


def sft(
    ctx: typer.Context, dry_run: DryRun = False, json_: Checks = False, board: Board = False, help_: bool = HELP
) -> None:
    """Fine-tune a model on conversations (supervised fine-tuning).

    The rows of data.train are messages, a prompt and its completion, or a prompt with annotated steps and an answer.
    For example: coterie sft @ FILE.toml --sft.epochs 2
    """
    from dataclasses import replace

    from coterie.config.load import load

    loaded = load(ctx.args)
    _train(replace(loaded, config=loaded.config.with_table("sft")), dry_run, json_, board)


def distill(
    ctx: typer.Context, dry_run: DryRun = False, json_: Checks = False, board: Board = False, help_: bool = HELP
) -> None:
    """Learn from a teacher's log-probs of the tokens that the student samples (on-policy distillation).

    For example: coterie distill @ FILE.toml --distill.teacher runs/mine
    """
    from dataclasses import replace

    from coterie.config.load import load

    loaded = load(ctx.args)
    _train(replace(loaded, config=loaded.config.require_teacher()), dry_run, json_, board)


def _train(loaded: Loaded, dry_run: bool, json_: bool, board: bool) -> None:
    """Train in a new run, or check with `dry_run` whether that would go well."""
    from coterie import console
    from coterie.runs.directory import check_name
    from coterie.runs.models import resolve

    # A wrong name is reported before torch is loaded.
    resolve(loaded.config.model.name, Path(loaded.config.runs), check_files=False)

    if json_ and not dry_run:
        raise ConfigError("--json prints the checks of --dry-run; of a run, `coterie show RUN --json` does")
    check_files(loaded.config)
    if not dry_run:
        check_name(Path(loaded.config.runs), loaded.config.name)
    with ExitStack() as stack:
        address = stack.enter_context(_board(Path(loaded.config.runs))) if board and not dry_run else ""
        callback = stack.enter_context(console.console_callback(sys.stderr if dry_run else None))
        if address:
            callback.on_event("board", address)
        callback.on_progress(LOADING)
        from coterie import launch

        if not dry_run:
            launch.train(loaded.config, callback)
            exit_by_signal(callback.stopped)
            return
        report = launch.dry_run(loaded.config)
    raise typer.Exit(print_report(report, json_=json_))


def _board(runs: Path) -> AbstractContextManager[str]:
    from coterie.board.server import beside

    return beside(runs.expanduser())


def resume(
    run: Run,
    root: Root = Path("runs"),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Set the checkpoints aside and start over from step 0.")
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="New total number of steps; lengthens the run, also a finished one.", show_default=False
        ),
    ] = None,
    accept_reward_change: Annotated[
        bool,
        typer.Option(
            "--accept-reward-change",
            help="Continue although a reward function was edited; evaluations before and after are not compared.",
        ),
    ] = False,
) -> None:
    """Resume from the latest checkpoint."""
    from coterie import console
    from coterie.runs.directory import RunDirectory

    kept = RunDirectory.at(run, root).read_config().get("rejection")
    with console.console_callback() as callback:
        callback.on_progress(LOADING)
        from coterie import launch
        from coterie.stages import rejection

        again = launch.resume if kept is None else rejection.resume
        again(Path(run), callback, runs=root, fresh=fresh, steps=steps, accept_reward_change=accept_reward_change)
    exit_by_signal(callback.stopped)


def sweep(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder of the sweep; the same command again resumes it.")],
    vary: Annotated[list[str], typer.Option(help="Values of a setting, KEY=VALUE,VALUE…; may be repeated.")] = [],  # noqa: B006
    arm: Annotated[
        list[str], typer.Option(help="A named set of settings, 'NAME: KEY=VALUE KEY=VALUE…'; may be repeated.")
    ] = [],  # noqa: B006
    seeds: Annotated[str, typer.Option(help="Seeds, e.g. 0-4 or 0,1,7.")] = "0-2",
    reach: Annotated[
        float | None,
        typer.Option(help="Report the rollouts and seconds until this held-out pass@1 or reward, e.g. 0.3."),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(min=1, help="Number of parallel runs. They share the cores evenly; each needs its own memory."),
    ] = 1,
    lean: Annotated[bool, typer.Option("--lean", help="Delete the checkpoints of finished runs.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Only report on the runs that are there.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    help_: bool = HELP,
) -> None:
    """Train and compare every combination of settings and seeds.

    For example: coterie sweep @ recipes/demo --vary algorithm=grpo,dr_grpo --vary optim.lr=1e-5,2e-5 --out sweeps/one
    """
    from coterie.config.load import load
    from coterie.sweep.grid import cells, parse_arms, parse_seeds, parse_vary

    varied = parse_vary(vary)
    grid = cells(varied, parse_seeds(seeds), parse_arms(arm))
    for cell in grid:
        load([*ctx.args, *cell.words()])  # a wrong setting is reported before the first hour of work
    from coterie.sweep import run
    from coterie.sweep.report import write

    if not report:
        run.run(grid, ctx.args, out, lambda message: typer.echo(message, err=json_), lean=lean, jobs=jobs)
    results, text = write(out, grid, varied, reach)
    if json_:
        print_json([result.numbers() for result in results])
    else:
        typer.echo(f"\n{text}\nwritten to {out}")


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.command(**SETTINGS, options_metavar=USAGE)(demo)
    app.command(**SETTINGS, options_metavar=USAGE)(train)
    app.command(**SETTINGS, options_metavar=USAGE)(sft)
    app.command(**SETTINGS, options_metavar=USAGE)(distill)
    app.command()(resume)
    app.command(**SETTINGS, options_metavar=USAGE)(sweep)
