"""Report of a pipeline: a table of the evaluations by stage, a picture, and the same questions at each stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie.board.figure import COLORS, canvas, save, style_axis
from coterie.config.pipeline import BASE, PipelineConfig
from coterie.rollout.collector import Experience
from coterie.runs.durable import json_dumps, write_file
from coterie.runs.inspect import compare_items
from coterie.runs.metrics import EvalItem
from coterie.stages.records import read_record
from coterie.stats import PairedTest
from coterie.text import conversation, difference_text, metric_text, safe_text
from coterie.types import PASS, EvalResult, Interval, metric_of, overall

SHARES = {"format": "-", "valid_steps": "--", "faithful": ":"}
"""Parts of the reward that lie between 0 and 1 and that the picture shows, with their lines."""
EXAMPLES = 3
"""Questions shown at each stage."""
_LONGEST = 900
"""Characters shown of a conversation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The evaluations of one stage's model."""

    stage: str
    results: Mapping[str, EvalResult]
    """By evaluation, all tasks pooled."""
    items: Mapping[str, Sequence[EvalItem]]
    """By evaluation, one a held-out prompt; none in records of before they were kept."""
    examples: Mapping[str, Sequence[Mapping[str, Any]]]


def examples(experience: Experience | None) -> list[dict[str, Any]]:
    """The first attempt at each of the first questions."""
    if experience is None:
        return []
    firsts = [rollout for rollout in experience.rollouts if rollout.sample == 0][:EXAMPLES]
    shown = []
    for rollout in firsts:
        prompt = experience.prompt_of(rollout)
        spoken = conversation(rollout.messages) if rollout.messages else rollout.completion
        text = spoken if len(spoken) <= _LONGEST else f"{spoken[:_LONGEST]} …"
        asked = prompt.messages[-1]["content"]
        shown.append({"question": asked, "answer": prompt.answer, "said": text, "reward": rollout.reward})
    return shown


def rows(folder: Path, config: PipelineConfig) -> list[Row]:
    """The recorded evaluations, the model before the first stage first."""
    table = []
    for name in (BASE, *(stage.name for stage in config.stage if stage.kind != "rejection")):
        record = read_record(folder, name)
        measured = {} if record is None or not record.evaluations else record.evaluations
        names = [evaluation.name for evaluation in config.evaluation if evaluation.name in measured]
        if names:
            results = {key: _pooled([_result(x) for x in measured[key]["results"]]) for key in names}
            items = {key: [EvalItem(**x) for x in measured[key].get("items", ())] for key in names}
            shown = {key: measured[key]["examples"] for key in names}
            table.append(Row(stage=name, results=results, items=items, examples=shown))
    return table


def differences(table: Sequence[Row], starts: Mapping[str, str]) -> dict[str, dict[str, PairedTest]]:
    """Each stage's results minus those of the model from which it started, on the same prompts: stage → evaluation →
    difference. Evaluations that were not made of both models are left out.

    Args:
        starts: stage → the stage whose last model it started from, or `base`.
    """
    by_stage = {row.stage: row for row in table}
    tests: dict[str, dict[str, PairedTest]] = {}
    for row in table:
        before = by_stage.get(starts.get(row.stage, ""))
        if before is None:
            continue
        for name in [name for name in row.results if name in before.results]:
            metric = metric_of([before.results[name], row.results[name]])
            test = compare_items(before.items[name], row.items[name], metric)
            if test is not None:
                tests.setdefault(row.stage, {})[name] = test
    return tests


def _result(facts: Mapping[str, Any]) -> EvalResult:
    intervals: dict[str, Any] = {
        key: None if facts[key] is None else Interval(**facts[key]) for key in ("pass_at_1", "pass_at_k", "reward")
    }
    return EvalResult(**{**facts, **intervals})


def _pooled(results: Sequence[EvalResult]) -> EvalResult:
    return (overall(results) or list(results))[-1]


def write_summary(folder: Path, config: PipelineConfig, starts: Mapping[str, str]) -> Path:
    """Write `README.md`, `report.json` and, where matplotlib is installed, `stages.png`.

    Args:
        starts: as for `differences`.
    """
    table = rows(folder, config)
    tests = differences(table, starts)
    picture = _draw(folder / "stages.png", config, table) if table else False
    facts = [{"stage": row.stage, "evaluations": _numbers(row, tests.get(row.stage, {}))} for row in table]
    write_file(folder / "report.json", (json_dumps(facts, indent=1) + "\n").encode())
    text = "\n".join(_page(folder, config, table, starts, tests, picture=picture))
    write_file(folder / "README.md", (text + "\n").encode("utf-8", "backslashreplace"))
    return folder / "README.md"


def _numbers(row: Row, tests: Mapping[str, PairedTest]) -> dict[str, Any]:
    return {
        name: {
            "metric": (metric := metric_of([result])),
            "value": None if (x := result.metric(metric)) is None else [x.value, x.low, x.high],
            "prompts": result.prompts,
            "samples": result.samples,
            "length": result.mean_length,
            "truncated": result.truncated,
            "parts": dict(result.reward_parts),
            "difference": None if (test := tests.get(name)) is None else [test.difference, test.low, test.high],
        }
        for name, result in row.results.items()
    }


def _page(
    folder: Path,
    config: PipelineConfig,
    table: Sequence[Row],
    starts: Mapping[str, str],
    tests: Mapping[str, Mapping[str, PairedTest]],
    *,
    picture: bool,
) -> Iterator[str]:
    yield f"# {folder.resolve().name}\n"
    yield from _stage_lines(folder, config)
    if table:
        yield "\n## Held-out results after each stage\n"
        yield from _results(config, table)
        if tests:
            yield "\nDifferences to the model from which a stage started, paired by prompt:\n"
            yield from _differences(config, starts, tests)
        yield "\nIntervals are 95 % bootstrap intervals over prompts. Held-out prompts are never trained on.\n"
        if picture:
            yield "![Held-out result and length by stage](stages.png)\n"
        yield "## Length and parts of the reward\n"
        yield from _parts(config, table)
        yield from _examples(config, table)


def _stage_lines(folder: Path, config: PipelineConfig) -> Iterator[str]:
    yield "| stage | kind | takes | state |\n| --- | --- | --- | --- |"
    for stage in config.stage:
        record = read_record(folder, stage.name)
        state = "to come" if record is None else "finished" if record.finished else "begun"
        takes = ", ".join(f"{what.partition('.')[0]} of {name}" for what, name in stage.takes().items()) or "–"
        yield f"| [{stage.name}]({stage.name}/README.md) | {stage.kind} | {takes} | {state} |"


def _results(config: PipelineConfig, table: Sequence[Row]) -> Iterator[str]:
    names = [evaluation.name for evaluation in config.evaluation]
    metrics = {name: metric_of([row.results[name] for row in table if name in row.results]) for name in names}
    heads = [f"{_cell(name)}, {metrics[name]}" for name in names]
    yield f"| after | {' | '.join(heads)} |\n| --- |{' --- |' * len(names)}"
    for row in table:
        cells = [
            metric_text(metrics[name], row.results[name].metric(metrics[name])) if name in row.results else "–"
            for name in names
        ]
        yield f"| {row.stage} | {' | '.join(cells)} |"


def _differences(
    config: PipelineConfig, starts: Mapping[str, str], tests: Mapping[str, Mapping[str, PairedTest]]
) -> Iterator[str]:
    names = [evaluation.name for evaluation in config.evaluation]
    yield f"| stage | minus | {' | '.join(map(_cell, names))} |\n| --- | --- |{' --- |' * len(names)}"
    for stage, compared in tests.items():
        cells = [difference_text(compared[name].metric, compared[name]) if name in compared else "–" for name in names]
        yield f"| {stage} | {starts[stage]} | {' | '.join(cells)} |"


def _parts(config: PipelineConfig, table: Sequence[Row]) -> Iterator[str]:
    for evaluation in config.evaluation:
        measured = [(row.stage, row.results[evaluation.name]) for row in table if evaluation.name in row.results]
        if not measured:
            continue
        labels = list(dict.fromkeys(label for _, result in measured for label in result.reward_parts))
        prompts = f"{measured[0][1].prompts} prompts × {measured[0][1].samples}"
        yield f"| {_cell(evaluation.name)} ({prompts}) | tokens | cut | {' | '.join(map(_cell, labels))} |"
        yield f"| --- | --- | --- |{' --- |' * len(labels)}"
        for stage, result in measured:
            parts = [f"{result.reward_parts[label]:.3f}" if label in result.reward_parts else "–" for label in labels]
            yield f"| {stage} | {result.mean_length:.0f} | {result.truncated:.0%} | {' | '.join(parts)} |"
        yield ""


def _examples(config: PipelineConfig, table: Sequence[Row]) -> Iterator[str]:
    for evaluation in config.evaluation:
        shown = {row.stage: row.examples.get(evaluation.name, ()) for row in table}
        count = max(map(len, shown.values()), default=0)
        for place in range(count):
            yield f"## {_cell(evaluation.name)}, question {place + 1}\n"
            for number, (stage, attempts) in enumerate(item for item in shown.items() if place < len(item[1])):
                example = attempts[place]
                if number == 0:
                    yield f"{_block(example['question'])}\n\nAnswer: `{_cell(str(example['answer']))}`\n"
                reward = "error" if example["reward"] is None else f"{example['reward']:.2f}"
                yield f"**{stage}**, reward {reward}:\n\n{_block(example['said'])}\n"


def _cell(text: str) -> str:
    return " ".join(safe_text(text).split()).replace("|", "\\|").replace("`", "'")


def _block(text: str) -> str:
    fence = "`" * max(3, 1 + max((len(x) for x in safe_text(text).split() if set(x) == {"`"}), default=0))
    return f"{fence}text\n{safe_text(text.strip())}\n{fence}"


def _draw(path: Path, config: PipelineConfig, table: Sequence[Row]) -> bool:
    """Picture of the results by stage with their intervals, of the parts in `SHARES`, and of the length of answers."""
    shown = [label for label in SHARES if any(label in x.reward_parts for row in table for x in row.results.values())]
    figure = canvas(8, 7.2 if shown else 5.6)
    if figure is None:
        return False
    top, *middle, bottom = figure.subplots(2 + bool(shown), 1, sharex=True, height_ratios=[2, *[1] * bool(shown), 1])
    places = range(len(table))
    for index, evaluation in enumerate(config.evaluation):
        points = [
            (place, row.results[evaluation.name])
            for place, row in zip(places, table, strict=True)
            if evaluation.name in row.results
        ]
        metric = metric_of([result for _, result in points])
        scale = 100 if metric == PASS else 1
        color, shift = COLORS[index % len(COLORS)], 0.04 * (index - (len(config.evaluation) - 1) / 2)
        bars = [(place + shift, x) for place, result in points if (x := result.metric(metric)) is not None]
        top.errorbar(
            [place for place, _ in bars],
            [scale * x.value for _, x in bars],
            yerr=[[scale * (x.value - x.low) for _, x in bars], [scale * (x.high - x.value) for _, x in bars]],
            color=color, marker="o", capsize=3, linewidth=1.6, label=evaluation.name.replace("$", r"\$"),
        )  # fmt: skip
        bottom.plot([place for place, _ in points], [x.mean_length for _, x in points], color=color, marker="o")
        for axis in middle:
            _draw_shares(axis, points, shown, color, named=index == 0)
    for axis in (top, *middle, bottom):
        style_axis(axis, grid="y")
    top.set_ylabel("held-out result\n(pass@1 in %, or reward)")
    top.set_ylim(bottom=min(0.0, top.get_ylim()[0]))
    top.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3)
    bottom.set_ylabel("tokens")
    bottom.set_ylim(bottom=0)
    bottom.set_xticks(list(places), [row.stage for row in table])
    return save(figure, path)


def _draw_shares(
    axis: Any, points: Sequence[tuple[int, EvalResult]], shown: Sequence[str], color: str, *, named: bool
) -> None:
    """Parts of the reward by stage, in the evaluation's colour and a line of their own."""
    for label in shown:
        values = [(place, x.reward_parts[label]) for place, x in points if label in x.reward_parts]
        axis.plot(
            [place for place, _ in values], [100 * value for _, value in values], color=color, marker=".",
            linestyle=SHARES[label], label=label.replace("_", " ") if named else None,
        )  # fmt: skip
    axis.set_ylabel("share in %")
    axis.set_ylim(0, 105)
    if named:
        axis.legend(frameon=False, fontsize=8, loc="lower right")
