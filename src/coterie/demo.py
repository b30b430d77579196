"""The demos: train a shipped recipe, or the stages of one, and report accuracy and completions before and after."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from coterie import launch
from coterie.board.report import before_and_after, is_right, transcript
from coterie.callbacks import Callback
from coterie.config.load import flag_settings, load
from coterie.config.pipeline import BASE, PipelineConfig, load_pipeline
from coterie.errors import ConfigError, RunError
from coterie.runs.directory import RunDirectory
from coterie.runs.inspect import compare, ends, last_step
from coterie.runs.metrics import MetricsDB
from coterie.stages.pipeline import run_pipeline
from coterie.stages.summary import Row, rows
from coterie.stats import PairedTest
from coterie.text import difference_text, metric_text
from coterie.types import PASS, POOLED, EvalResult, Rollout

STAGES = "pipeline.toml"
"""File of a recipe of several stages."""
TASKS = {"search": "search/config.toml", "stages": f"r1/{STAGES}", "sums": "demo/config.toml"}
"""Task of the demo → its recipe; the first is the default."""


def recipe(name: str) -> Path:
    """A file of a shipped recipe: in a checkout beside `src`, in an installed package inside it.

    Raises:
        RunError: there is no such recipe.
    """
    here = Path(__file__).resolve().parent
    for root in (here.parent.parent / "recipes", here / "recipes"):
        path = root / name
        if path.is_file():
            return path
    raise RunError(f"the recipe {name!r} is not installed; expected recipes/{name} next to the package")


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
    if TASKS[task].endswith(STAGES):
        return _run_stages(callback, recipe(TASKS[task]), seed=seed, overrides=overrides)
    config = load(["@", str(recipe(TASKS[task])), "--seed", str(seed), *overrides]).config
    run = launch.train(config, callback)
    if last_step(RunDirectory.at(run)) == config.steps:
        for line in summary(run):
            callback.on_event("demo", line)
    return run


def _run_stages(callback: Callback, source: Path, *, seed: int, overrides: Sequence[str]) -> Path:
    """Run a pipeline below the working folder's `runs`; the same call again goes on where it was."""
    here = {"runs": str(Path("runs").absolute())}
    given = here | flag_settings(["--seed", str(seed), *overrides]) | {"name": f"{source.parent.name}-{seed}"}
    folder = run_pipeline(source, callback, settings=given)
    for line in stages_summary(folder, load_pipeline(source, given)[0]):
        callback.on_event("demo", line)
    return folder


def stages_summary(folder: Path, config: PipelineConfig) -> Iterator[str]:
    """Lines with the evaluations after each stage, and the same questions as each model answers them."""
    measured = rows(folder, config)
    if not measured:  # stopped before the first evaluation was made
        return
    names = list(dict.fromkeys(name for row in measured for name in row.results))
    for name in names:
        told = [f"{row.stage} {_accuracy(row.results[name])}" for row in measured if name in row.results]
        yield f"held-out {name}: {' → '.join(told)}"
    shown = names[min(1, len(names) - 1)]  # the harder questions
    for place in range(max((len(row.examples.get(shown, ())) for row in measured), default=0)):
        yield from _answers(measured, shown, place)
    yield f"results  {folder / 'README.md'} (picture: {folder / 'stages.png'})"
    if measured[-1].stage != BASE:
        yield f"chat     coterie chat {folder / measured[-1].stage}"


def _accuracy(result: EvalResult) -> str:
    return metric_text(PASS, result.metric(PASS))


def _answers(measured: Sequence[Row], name: str, place: int) -> Iterator[str]:
    """One question of an evaluation, as the model of each stage answers it."""
    asked = next(row.examples[name][place] for row in measured if name in row.examples)
    yield f"prompt   {_short(asked['question'])}   (answer: {asked['answer']})"
    for row in measured:
        lines = row.examples[name][place]["said"].strip().splitlines()
        yield f"  after {row.stage}"
        yield from (f"           {_short(line)}" for line in lines[-LINES:] if asked["question"] not in line)


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
    yield "         several stages:    coterie demo --task stages"
    yield f"         several tasks:     coterie train @ {_nearby(recipe('group-aware/config.toml'))}"
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
