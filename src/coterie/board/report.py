"""README of a run: results with their uncertainty, and the settings and commands to reproduce them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie import machine
from coterie.board.curve import draw_curve
from coterie.config.layers import flatten
from coterie.config.schema import RunConfig
from coterie.doctor.health import gradient_line, health_lines
from coterie.errors import RunError
from coterie.runs import parquet, rollouts
from coterie.runs.directory import RunDirectory
from coterie.runs.durable import write_file
from coterie.runs.inspect import compare, ends, metrics_by_task, reward_change
from coterie.runs.metrics import Event, MetricsDB
from coterie.runs.rollouts import RolloutRecord
from coterie.stats import PairedTest
from coterie.text import conversation, metric_text, p_text, safe_text
from coterie.train.evaluate import CORRECT
from coterie.train.recorder import EVALS
from coterie.types import PASS, REWARD, EvalResult, Interval, Prompt, Rollout, metric_of

_CORE = (
    "seed",
    "steps",
    "collect.prompts_per_step",
    "collect.group_size",
    "sampling.temperature",
    "sampling.max_tokens",
    "objective.kl_beta",
    "objective.clip_low",
    "objective.clip_high",
    "optim.lr",
)
"""Settings shown even where they are the defaults."""
_LONGEST = 1500
"""Characters shown of a completion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BeforeAfter:
    """One held-out prompt with an attempt from either end of the training."""

    prompt: Prompt
    before: Rollout
    after: Rollout


def write_report(run: RunDirectory, *, machine: str, seconds: float, samples: Sequence[BeforeAfter] = ()) -> Path:
    """Write `README.md` and, where matplotlib is installed, `curve.png`.

    Args:
        machine: one line, e.g. processor, cores, memory.
        seconds: of training, over all attempts.

    Raises:
        RunError: the run's settings or metrics cannot be read, or the disk refused.
    """
    config = run.read_config()
    model = config.get("model", {}).get("name", "a model")
    with MetricsDB.reader(run.metrics) as database:
        done, events = database.last_step() or 0, database.events()
        results = _results(database)
        still = gradient_line(database)
        speeds = {name: database.series(f"speed/{name}") for name in ("generate", "update")}
    # Of a path the last name: a picture has no room for more, and the run's settings hold the rest.
    method = next((name for table, name in _TABLES.items() if config.get(table)), "GRPO")
    picture = draw_curve(run, f"{run.path.resolve().name}: {Path(str(model)).name}, {done} steps of {method}")
    counts: dict[str, int] = {}
    for event in events:
        counts[event.kind] = counts.get(event.kind, 0) + 1
    unusual = [f"{count} × {kind}" for kind, count in counts.items() if kind in _UNUSUAL]
    rates = [f"{sum(v for _, v in s) / len(s):,.0f} tok/s in {name}" for name, s in speeds.items() if s]
    facts = [
        f"- Steps: {done} of {config.get('steps', '?')}.",
        f"- Time: {_duration(seconds)}" + (f" ({', '.join(rates)})." if rates else "."),
        f"- Machine: {_inline(machine)}.",
        *([f"- Gradient: {_inline(still)}."] if still else []),
        f"- Unusual events: {', '.join(unusual) or 'none'}.",
    ]
    sections = [
        f"# {run.path.resolve().name}",
        f"{_code_span(str(model))}, trained with {_METHODS[method]}.",
        "## Result\n\n" + results,
        "## Health\n\n" + "\n".join(health_lines(run.path)),
        "![Learning curve: training and held-out result by step](curve.png)" if picture else _NO_PICTURE,
        "## Reproduce\n\n" + _command(run, config, on_cuda=_was_on_cuda(config, events)),
        "## Time and machine\n\n" + "\n".join(facts),
        "## Settings that matter\n\n" + _settings(config),
        *_samples(samples),
    ]
    write_file(run.readme, ("\n\n".join(sections) + "\n").encode("utf-8", "backslashreplace"))
    return run.readme


_METHODS = {
    "GRPO": "GRPO (Group Relative Policy Optimization)",
    "supervised fine-tuning": "supervised fine-tuning on conversations",
    "distillation": "on-policy distillation from a teacher",
}
_TABLES = {"sft": "supervised fine-tuning", "distill": "distillation"}
"""Method by the table of the settings that asks for it."""
_UNUSUAL = ("warning", "stop", "resume", "reward_changed", "skipped_update", "error", "collapse")
_ON_CPU = "The same machine and number of threads give the same tokens, bit for bit."
_ON_CUDA = (
    "The draws are the same, but this run was on CUDA: kernels there may differ in the last bits from one time to the "
    "next, and a token with them, so expect a similar run and not the same one."
)
_NO_PICTURE = (
    "There is no picture of the learning curve: matplotlib is not installed (`pip install matplotlib`), "
    "or no step was recorded. The numbers are in `metrics.sqlite`."
)


def _results(database: MetricsDB) -> str:
    before, after = ends(database)
    if not before and not after:
        return "No held-out evaluation was recorded."
    if not before or not after:
        single = before or after
        head = f"| held-out task | prompts × attempts | metric | step {single[0].step} |\n" + "| --- " * 4 + "|"
        rows = [
            _row(result.task, _size(result), name, metric_text(kind, estimate))
            for result in single
            for name, kind, estimate, _ in _lines(result, result, metric_of([result]))
        ]
        change = reward_change(database)
        lost = "" if before else " The evaluation before training (step 0) is not on record: nothing can be compared."
        if change is not None:
            lost = (
                f" The source of a reward function changed at step {change.step}: evaluations up to step "
                f"{change.data['evaluated']} are of another reward and are not compared with later ones."
            )
        return "\n".join((head, *rows)) + f"\n\nIntervals are 95 % bootstrap intervals over prompts.{lost}"
    later = {result.task: result for result in after}
    tests, metrics = compare(database, before, database, after), metrics_by_task(database)
    lines = [
        (result, line)
        for result in before
        if result.task in later
        for line in _lines(result, later[result.task], metrics.get(result.task, PASS))
    ]
    points = all(kind == PASS for _, (_, kind, _, _) in lines)
    rewards = {} if points else compare(database, before, database, after, metric=REWARD)
    rows = []
    for result, (name, kind, first, last) in lines:
        test = {metrics.get(result.task, PASS): tests.get(result.task), REWARD: rewards.get(result.task)}.get(name)
        change = _change(kind, first, last, test, unit="" if points or kind != PASS else " points")
        rows.append(_row(result.task, _size(result), name, metric_text(kind, first), metric_text(kind, last), *change))
    unit = " in points" if points else ""
    head = (
        f"| held-out task | prompts × attempts | metric | before (step {before[0].step}) "
        f"| after (step {after[0].step}) | difference{unit} | p |\n" + "| --- " * 7 + "|"
    )
    note = (
        "Intervals are 95 % bootstrap intervals over prompts. The difference and its interval are paired by "
        "prompt; p is two-sided, from random sign flips. Held-out prompts are never trained on."
    )
    return "\n".join((head, *rows)) + "\n\n" + note


Line = tuple[str, str, Interval | None, Interval | None]


def _lines(before: EvalResult, after: EvalResult, metric: str) -> list[Line]:
    """Rows (label, kind of number, before, after) of one task: pass@1 and pass@k where the task is judged by them, and
    the mean reward where it differs."""
    lines: list[Line] = []
    if metric == PASS:
        lines.append((PASS, PASS, before.metric(PASS), after.metric(PASS)))
        if before.k > 1:
            lines.append((f"pass@{before.k}", PASS, before.pass_at_k, after.pass_at_k))
        if (before.reward, after.reward) in ((None, None), (before.pass_at_1, after.pass_at_1)):
            return lines
    return [*lines, (REWARD, REWARD, before.reward, after.reward)]


def _change(
    metric: str, before: Interval | None, after: Interval | None, test: PairedTest | None, *, unit: str
) -> tuple[str, str]:
    if before is None or after is None:
        return "–", ""
    scale, digits = (100, 1) if metric == PASS else (1, 3)
    if test is None:
        return f"{scale * (after.value - before.value):+.{digits}f}{unit}", ""
    interval = f"[{scale * test.low:+.{digits}f}, {scale * test.high:+.{digits}f}]"
    return f"**{scale * test.difference:+.{digits}f}**{unit} {interval}", p_text(test)


def _size(result: EvalResult) -> str:
    return f"{result.prompts} × {result.samples}"


def _row(*cells: str) -> str:
    return "| " + " | ".join(_inline(cell) for cell in cells) + " |"


def _inline(text: str) -> str:
    """Text escaped for one line or table cell."""
    return " ".join(safe_text(text).split()).replace("|", "\\|").replace("`", "'").replace("<", "&lt;")


def _code_span(text: str) -> str:
    """Code span that the text cannot end."""
    return "`" + " ".join(safe_text(text).split()).replace("`", "'") + "`"


def _was_on_cuda(config: Mapping[str, Any], events: Sequence[Event]) -> bool:
    """True if the run used CUDA: by its settings, or with `device = "auto"` by its last start."""
    starts = [event.data for event in events if event.kind == "versions"]
    devices = [config.get("model", {}).get("device", ""), starts[-1].get("device", "") if starts else ""]
    return any(str(device).startswith("cuda") for device in devices)


def _command(run: RunDirectory, config: Mapping[str, Any], *, on_cuda: bool) -> str:
    # The name is taken by this very run, and runs are never overwritten.
    name = f" --name {run.path.resolve().name}-again" if config.get("name") else ""
    verb = next((table for table in _TABLES if config.get(table)), "train")
    return (
        f"```sh\ncoterie {verb} @ {shlex.quote(run.config.as_posix())}{name}\n```\n\n"
        f"{_ON_CUDA if on_cuda else _ON_CPU} "
        f"`coterie show {run.path.as_posix()}` says more; `coterie chat {run.path.as_posix()}` talks "
        "to the result."
    )


def _settings(config: Mapping[str, Any]) -> str:
    """The core settings and whatever differs from the defaults."""
    default = {".".join(key): value for key, value in flatten(RunConfig().model_dump(mode="json"))}
    chosen = {".".join(key): value for key, value in flatten(dict(config))}
    sampled = ("collect.", "objective.") if config.get("sft") else ()
    keys = [key for key in _CORE if (key in chosen or key in default) and not key.startswith(sampled)]
    keys += [
        key
        for key, value in chosen.items()
        if key not in _CORE and key not in ("name", "runs") and (key not in default or default[key] != value)
    ]
    rows = []
    for key in keys:
        value = chosen.get(key, default.get(key))
        text = str(value).lower() if isinstance(value, bool) else str(value)
        rows.append(_row(f"{key}", text if text else "(empty)"))
    return "| setting | value |\n| --- | --- |\n" + "\n".join(rows) + "\n\nAll of them: `config.toml`."


def _samples(samples: Sequence[BeforeAfter]) -> Iterable[str]:
    if not samples:
        return
    yield "## The same questions, before and after"
    for number, sample in enumerate(samples, 1):
        answer = "" if sample.prompt.answer is None else f" (answer: {_code_span(sample.prompt.answer)})"
        yield f"### {number}. {_inline(sample.prompt.task)}{answer}"
        yield _code_block(sample.prompt.messages[-1]["content"])
        for label, rollout in (("Before", sample.before), ("After", sample.after)):
            reward = rollout.outcome if rollout.reward is None else f"reward {rollout.reward:.2f}"
            cut = ", cut by the limit" if rollout.context.stop_reason.truncated else ""
            yield f"**{label}**, {reward}, {rollout.context.completion_length} tokens{cut}:"
            yield _code_block(transcript(sample.prompt, rollout))


def _code_block(text: str) -> str:
    """Code block that the text cannot end."""
    shown = safe_text(text.strip())
    if len(shown) > _LONGEST:
        shown = f"{shown[:_LONGEST]}… ({len(shown) - _LONGEST:,} more characters)"
    longest = max((len(run) for run in re.findall(r"`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{shown}\n{fence}"


def _duration(seconds: float) -> str:
    if seconds < 0:
        raise RunError(f"a run of {seconds} s; time does not run backwards, so measure with a monotonic clock")
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


# The README that a finished run leaves: gathers what `runs.report` writes.


def report_run(run: RunDirectory) -> Path:
    """Write the run's README.md and picture from what is recorded."""
    with MetricsDB.reader(run.metrics) as database:
        seconds = sum(value for _, value in database.series("time/step"))
    return write_report(
        run, machine=machine.facts(run.path).line(), seconds=seconds, samples=before_and_after(run.path)
    )


def before_and_after(run: Path, count: int = 3) -> list[BeforeAfter]:
    """First attempts at held-out prompts of the first task, before training and at the last evaluation: the first
    prompt that turned right, the first that stayed wrong, and so on, so that the choice is nobody's taste. Of a graded
    reward: the first whose reward rose, the first for which it stayed, the first for which it fell."""
    folder = run / EVALS
    steps = parquet.steps(folder)
    if len(steps) < 2 or steps[0] != 0 or _reward_changed(run):
        return []
    try:
        before, after = (_first_attempts(rollouts.read_step(folder, step)) for step in (steps[0], steps[-1]))
    except RunError:
        return []  # damaged rollouts cost the examples, never the report
    shared = [name for name in before if name in after]
    main = [name for name in shared if before[name].prompt.task == before[shared[0]].prompt.task]
    pairs = {name: (before[name].rollout, after[name].rollout) for name in main}
    graded = REWARD in _metrics(run).values()
    kind_of, kinds = (_movement, MOVEMENTS) if graded else (_rightness, RIGHTNESS)
    firsts: dict[Kind, str] = {}
    for name, pair in pairs.items():
        firsts.setdefault(kind_of(*pair), name)
    chosen = [firsts[kind] for kind in kinds if kind in firsts][:count]
    return [
        BeforeAfter(prompt=before[name].prompt, before=before[name].rollout, after=after[name].rollout)
        for name in chosen
    ]


Kind = tuple[bool, bool]
RIGHTNESS: tuple[Kind, ...] = ((False, True), (False, False), (True, True), (True, False))
"""Right before and after: turned right, stayed wrong, stayed right, turned wrong."""
MOVEMENTS: tuple[Kind, ...] = ((True, False), (False, False), (False, True))
"""The reward rose, or fell: rose, stayed, fell."""


def _rightness(before: Rollout, after: Rollout) -> Kind:
    return is_right(before), is_right(after)


def _movement(before: Rollout, after: Rollout) -> Kind:
    change = (after.reward or 0.0) - (before.reward or 0.0)
    return change > 0, change < 0


def _reward_changed(run: Path) -> bool:
    with MetricsDB.reader(RunDirectory.at(run).metrics) as database:
        return reward_change(database) is not None


def _metrics(run: Path) -> dict[str, str]:
    with MetricsDB.reader(RunDirectory.at(run).metrics) as database:
        return metrics_by_task(database)


def transcript(prompt: Prompt, rollout: Rollout) -> str:
    """The model's turns and what the environment answered, behind the messages of the prompt: a line or more each; a
    rollout of one turn is its completion alone."""
    opening = len(prompt.messages) if rollout.messages[: len(prompt.messages)] == prompt.messages else 0
    return conversation(rollout.messages[opening:]) if rollout.messages else rollout.completion


def is_right(rollout: Rollout) -> bool:
    """True if a recorded attempt earned the full reward of 1."""
    return (rollout.reward or 0.0) >= CORRECT


def _first_attempts(records: list[RolloutRecord]) -> dict[str, RolloutRecord]:
    return {record.prompt.id: record for record in records if record.rollout.sample == 0}
