"""Commands `eval`, `drift`, `rollout`, `chat` and `validate`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coterie.cli.options import (
    HELP,
    JSON,
    LOADING,
    SETTINGS,
    USAGE,
    paint,
    plain,
    print_json,
    print_report,
    print_table,
    split_target,
)
from coterie.errors import ConfigError
from coterie.text import interval_text, metric_text, safe_text

if TYPE_CHECKING:
    from coterie.config.schema import RunConfig


def evaluate(ctx: typer.Context, json_: bool = JSON, help_: bool = HELP) -> None:
    """Evaluate a run or model on held-out prompts.

    Reports the mean reward, and pass@k where the reward is binary. A run or one of its checkpoints is evaluated on the
    held-out data of the run unless settings say otherwise.
    """
    from coterie.config.load import load

    target, words = split_target(ctx.args)
    loaded = load([*settings_of(target), *words])
    require_target("eval", target, loaded.config, loaded.config.data.heldout)
    from coterie import console

    with console.console_callback(sys.stderr if json_ else None, results=not json_) as callback:
        callback.on_progress(LOADING)
        from coterie import launch

        results = launch.evaluate(target, loaded.config, callback)
    if json_:
        print_json(results)


def drift(
    ctx: typer.Context,
    against: Annotated[
        str | None, typer.Option(help="Base model; by default the model that the run started from.", show_default=False)
    ] = None,
    json_: bool = JSON,
    help_: bool = HELP,
) -> None:
    """Measure forgetting: the KL divergence from the base model.

    Reports, by task, the held-out results of both models and the KL divergence in both directions. A large
    KL(base‖model) means forgetting.
    """
    from coterie.config.load import load

    target, words = split_target(ctx.args)
    loaded = load([*settings_of(target), *words])
    require_target("drift", target, loaded.config, loaded.config.data.heldout)
    from coterie import console

    with console.console_callback(sys.stderr) as callback:
        callback.on_progress(LOADING)
        from coterie import launch

        drifts = launch.drift(target, loaded.config, against, callback)
    if json_:
        print_json(drifts)
        return
    print_table(
        [
            {
                "task": task_drift.task,
                "prompts": task_drift.prompts,
                "metric": task_drift.metric,
                "base": metric_text(task_drift.metric, task_drift.base),
                "model": metric_text(task_drift.metric, task_drift.model),
                "KL(model‖base)": interval_text(task_drift.forward, 1, 3),
                "KL(base‖model)": interval_text(task_drift.reverse, 1, 3),
            }
            for task_drift in drifts
        ]
    )
    typer.echo("KL in nats a token; brackets are 95 % intervals over prompts")


def rollout(
    ctx: typer.Context,
    count: Annotated[int, typer.Option(min=1, help="Number of rollouts.")] = 4,
    json_: bool = JSON,
    help_: bool = HELP,
) -> None:
    """Sample, score and print a few rollouts.

    Nothing is trained or written.
    """
    from coterie.config.load import load

    target, words = split_target(ctx.args)
    loaded = load([*settings_of(target), *words])
    require_target("rollout", target, loaded.config, (*loaded.config.data.train, *loaded.config.data.heldout))
    from coterie import console

    with console.console_callback(sys.stderr) as callback:
        callback.on_progress(LOADING)
        from coterie import launch

        rollouts = list(launch.sample(loaded.config, count, target, callback))
    for prompt, rollout in rollouts:
        if json_:
            record = {
                "id": rollout.id,
                "messages": list(prompt.messages),
                "answer": prompt.answer,
                "completion": rollout.completion,
                "episode": list(rollout.messages),
                "turns": [
                    {"tokens": len(turn.tokens), "state": turn.state, "reward": turn.reward} for turn in rollout.turns
                ],
                "reward": rollout.reward,
                "reward_parts": dict(rollout.reward_parts),
                "step_rewards": [plain(step) for step in rollout.step_rewards],
                "outcome": rollout.outcome.value,
                "error": rollout.error,
            }
            typer.echo(json.dumps(record))
        else:
            typer.echo(paint(safe_text(rollout.id), bold=True))
            typer.echo(console.sample_text(prompt, rollout, lines=40) + "\n")


def chat(
    target: Annotated[str, typer.Argument(metavar="MODEL_OR_RUN")],
    system: Annotated[
        str | None, typer.Option(help="System message; a run's own data.system when left out.", show_default=False)
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy decoding.")] = 0.7,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Limit of one reply.")] = 512,
) -> None:
    """Chat with a model or with the model of a run.

    An empty line, /exit, /quit or Ctrl-D ends it.
    """
    from coterie import console
    from coterie.runs.models import resolve

    resolve(target, check_files=False)  # a wrong name is reported before torch is loaded

    with console.console_callback(sys.stderr) as callback:
        callback.on_progress(LOADING)
        from coterie import launch

        session = launch.chat(target, system=system, temperature=temperature, max_tokens=max_tokens, callback=callback)
    while True:
        try:
            message = input("you> ").strip()
        except (EOFError, KeyboardInterrupt):
            typer.echo()
            return
        if message in ("", "/exit", "/quit"):
            return
        if re.fullmatch(r"/\w+", message):
            typer.echo(
                f"{safe_text(message)} is not a command; /exit, /quit, an empty line or Ctrl-D ends the chat", err=True
            )
            continue
        typer.echo(safe_text(session.reply(message)))


def validate(ctx: typer.Context, json_: bool = JSON, help_: bool = HELP) -> None:
    """Check data and rewards without loading a model.

    Scores gold answers, which must earn 1, and garbage, which must earn 0.
    """
    from coterie.config.load import load

    loaded = load(ctx.args)
    from coterie import console

    with console.console_callback(sys.stderr) as callback:
        callback.on_progress("reading and tokenizing the prompts, checking the rewards")
        from coterie import launch

        report = launch.validate(loaded.config)
    raise typer.Exit(print_report(report, json_=json_))


def require_target(verb: str, target: str | None, config: RunConfig, sources: Sequence[object]) -> None:
    """Refuse the name of a missing model before anything is loaded.

    Args:
        sources: the prompts that the settings name.
    """
    from coterie.runs.models import resolve, there

    if target is not None:
        resolve(target, Path(config.runs), check_files=False)
    elif not sources:
        raise ConfigError(
            f"coterie {verb} needs a run or a model: `coterie {verb} RUN`, or `coterie {verb} MODEL @ FILE.toml` with "
            f"settings; {there(Path(config.runs))}"
        )


def settings_of(target: str | None) -> Sequence[str]:
    """Words `@ config.toml` for a run or a checkpoint of one; none for a model."""
    if target is None:
        return ()
    name = re.sub(r"@\d+$", "", target)  # RUN@STEP
    paths = [Path(word).expanduser() for word in (target, f"runs/{target}", name, f"runs/{name}")]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        return ()
    files = (folder / "config.toml" for folder in (path, *path.absolute().parents[:3]))
    file = next((file for file in files if file.is_file() and (file.parent / "checkpoints").is_dir()), None)
    return () if file is None else ("@", str(file))


def register(app: typer.Typer) -> None:
    """Add these commands to the program."""
    app.command("eval", **SETTINGS, options_metavar=f"[RUN_OR_MODEL] {USAGE}")(evaluate)
    app.command(**SETTINGS, options_metavar=f"[RUN_OR_MODEL] {USAGE}")(drift)
    app.command(**SETTINGS, options_metavar=f"[RUN_OR_MODEL] {USAGE}")(rollout)
    app.command()(chat)
    app.command(**SETTINGS, options_metavar=USAGE)(validate)
