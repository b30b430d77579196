"""The demo: train a shipped recipe, and report accuracy and completions before and after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from coterie import launch
from coterie.board.report import before_and_after, is_right, transcript
from coterie.callbacks import Callback
from coterie.config.load import load
from coterie.errors import ConfigError, RunError
from coterie.runs.directory import RunDirectory
from coterie.runs.inspect import compare, ends, last_step
from coterie.runs.metrics import MetricsDB
from coterie.stats import PairedTest
from coterie.text import difference_text, metric_text
from coterie.types import POOLED, EvalResult, Rollout

TASKS = {"search": "search", "sums": "demo"}
"""Task of the demo → its recipe; the first is the default."""


def recipe(name: str) -> Path:
    """A shipped recipe's config: in a checkout beside `src`, in an installed package inside it.

    Raises:
        RunError: there is no such recipe.
    """
    here = Path(__file__).resolve().parent
    for root in (here.parent.parent / "recipes", here / "recipes"):
        path = root / name / "config.toml"
        if path.is_file():
            return path
    raise RunError(f"the recipe {name!r} is not installed; expected recipes/{name}/config.toml next to the package")


def run_demo(callback: Callback, *, task: str, seed: int, overrides: Sequence[str]) -> Path:
    """Train, then report accuracy before and after, completions of both, and what to try next.

    A demo that was interrupted reports nothing: `coterie resume` finishes its training.

    Args:
        task: key of `TASKS`.

    Raises:
        ConfigError: there is no such task.
    """
    if task not in TASKS:
        raise ConfigError(f"--task {task}: there is no such demo; expected {' or '.join(TASKS)}")
    config = load(["@", str(recipe(TASKS[task])), "--seed", str(seed), *overrides]).config
    run = launch.train(config, callback)
    if last_step(RunDirectory.at(run)) == config.steps:
        for line in summary(run):
            callback.on_event("demo", line)
    return run


def summary(run: Path) -> Iterator[str]:
    """Lines that the demo prints at its end."""
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        before, after = ends(database)
        tests = compare(database, before, database, after)
        later = {result.task: result for result in after}
        for result in before:
            if result.task in tests and result.task != POOLED:
                yield _change(result, later[result.task], tests[result.task])
    for pair in before_and_after(run):
        question = pair.prompt.messages[-1]["content"].strip().splitlines()[-1]
        yield f"prompt   {question}   (answer: {pair.prompt.answer})"
        for label, rollout in (("before", pair.before), ("after ", pair.after)):
            first, *others = transcript(pair.prompt, rollout).strip().splitlines() or [""]
            yield f"  {label}   {_rightness(rollout)}  {_short(first)}"
            yield from (f"           {_short(line)}" for line in others[:LINES])
    yield f"results  {run / 'README.md'} (learning curve: {run / 'curve.png'})"
    yield f"chat     coterie chat {run}"
    yield "next     another task:      coterie demo --task sums"
    yield f"         several tasks:     coterie train @ {_nearby(recipe('group-aware'))}"
    yield "         your own data:     coterie config init my.toml, or README.md, Your own data and reward"


LINES = 8
"""Shown of a conversation after its first line."""


def _nearby(path: Path) -> Path:
    """The path relative to the working folder, where it is inside of it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _change(before: EvalResult, after: EvalResult, test: PairedTest) -> str:
    return (
        f"held-out {before.task}, {before.prompts} unseen items: {_estimate(before, test)} before, "
        f"{_estimate(after, test)} after ({difference_text(test.metric, test)}, p {_p(test.p_value)})"
    )


def _estimate(result: EvalResult, test: PairedTest) -> str:
    return metric_text(test.metric, result.metric(test.metric))


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.2g}"


def _rightness(rollout: Rollout) -> str:
    return "right" if is_right(rollout) else "wrong"


def _short(text: str, width: int = 100) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
