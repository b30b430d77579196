"""Progress of a run on standard output: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import re
import sys
import textwrap
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import IO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from coterie.callbacks import Callback, RunInfo
from coterie.progress import Activity, bar
from coterie.text import conversation, counted, metric_text, one_line, safe_text
from coterie.types import PASS, POOLED, REWARD, EvalResult, Prompt, Rollout

ROWS = 12
"""Steps that the live table keeps."""
SILENCE_S = 15.0
"""Without a terminal, seconds between two progress lines of an activity with a count."""
FRAME_S = 0.25
"""Seconds between two redraws of a count on a terminal."""
ABSENT = "–"

Metrics = Mapping[str, float]


def number(value: float | None, digits: int = 3) -> str:
    """Short text of stable width for a number: `0.412`, `1.2e-05`, `–` where it was not measured."""
    if value is None:
        return ABSENT
    if value and (abs(value) < 10**-digits or abs(value) >= 10**5):
        return f"{value:.1e}"
    return f"{value:.{digits}f}"


def seconds(value: float | None) -> str:
    """Text for the seconds of a step, without a unit: `12.3`, `0.09`, `–` where they were not measured."""
    if value is None:
        return ABSENT
    return f"{value:.1f}" if value >= 0.1 else f"{value:.2f}" if value >= 0.01 else f"{value:.3f}"


def short(value: float | None) -> str:
    """Text with few digits for a setting: `3e-05`, `0.1`, `–`."""
    return ABSENT if value is None else f"{value:.2g}"


def share(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.0%}" if value >= 0.1 or value == 0 else f"{value:.1%}"


def duration(seconds: float | None) -> str:
    """Text for a duration: `45s`, `3m20s`, `2h05m`."""
    if seconds is None:
        return ABSENT
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest:02}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"


def _groups(metrics: Metrics) -> str:
    parts = [metrics.get(f"groups/{name}") for name in ("all_correct", "mixed", "all_wrong")]
    if "epoch" in metrics:
        return ABSENT
    return "/".join(ABSENT if part is None else f"{100 * part:.0f}" for part in parts)


def _clipped(metrics: Metrics) -> float | None:
    low, high = metrics.get("clip/low"), metrics.get("clip/high")
    return None if low is None and high is None else (low or 0) + (high or 0)


def _reward(metrics: Metrics) -> str:
    if "epoch" in metrics:  # a fine-tuning
        return ABSENT
    return f"{number(metrics.get('reward/mean'))}±{number(metrics.get('reward/std'), 2)}"


COLUMNS: dict[str, Callable[[Metrics], str]] = {
    "reward": _reward,
    "loss": lambda m: ABSENT if "reward/mean" in m or "epoch" not in m else number(m.get("loss")),
    "held-out loss": lambda m: number(m.get("heldout/loss")),
    "epoch": lambda m: number(m.get("epoch"), 2),
    "to teacher": lambda m: number(m.get("distill/reverse_kl")),
    "solved/mixed/none%": _groups,
    "length": lambda m: number(m.get("length/mean"), 0),
    "trunc": lambda m: share(m.get("truncated")),
    "KL": lambda m: number(m.get("kl/ref"), 4),
    "entropy": lambda m: number(m.get("entropy"), 2),
    "clip": lambda m: share(_clipped(m)),
    "grad": lambda m: number(m.get("grad_norm"), 2),
    "tok/s": lambda m: number(m.get("speed/generate"), 0),
    "lr": lambda m: short(m.get("lr")),
    "s/step": lambda m: seconds(m.get("time/step")),
}
"""Heading → text of a step's metrics."""
DISPENSABLE = ("clip", "tok/s", "entropy", "lr", "KL", "grad", "trunc", "length", "s/step")
"""Columns that a narrow terminal leaves out, in this order."""
PLAIN_WITHOUT = ("clip", "tok/s", "entropy", "s/step")
"""Columns that a plain line leaves out."""


def discard(stream: IO[str]) -> None:
    """Redirect a stream without a reader to the null device, so that later writes and the flush at exit succeed."""
    with suppress(OSError, ValueError):  # it has no file descriptor, or is closed
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)


class PipeSafeConsole(Console):
    """Console that survives a closed pipe: what is printed after that is lost, and nothing else happens."""

    def on_broken_pipe(self) -> None:
        """Discard later output; rich would end the program here, and with it a training because of a `| head`."""
        self.quiet = True
        discard(self.file)


class ConsoleCallback(Callback):
    """Callback that prints. A context manager: leaving it gives the terminal back, whatever happened.

    No method raises because of the output: once that is gone, the training goes on without it.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        live: bool | None = None,
        results: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`live` draws a table that is updated in place; None does so on a terminal that can move the cursor. Without
        `results` those of an evaluation are not printed."""
        self.console = console or PipeSafeConsole(highlight=False)
        self.is_live = self.console.is_terminal and not self.console.is_dumb_terminal if live is None else live
        self.clock, self.results = clock, results
        self._live: Live | None = None
        self._info: RunInfo | None = None
        self._rows: deque[tuple[int, Metrics]] = deque(maxlen=ROWS)
        self._times: deque[float] = deque(maxlen=ROWS)
        self._sample: tuple[Prompt, Rollout] | None = None
        self._activity: Activity | None = None
        self._start_time = self._print_time = self._draw_time = clock()
        self.stopped = ""
        """Name of the signal that ended the run before its last step."""

    def __enter__(self) -> ConsoleCallback:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_live()

    def on_start(self, info: RunInfo) -> None:
        self._stop_live()
        self._info, self._start_time = info, self.clock()
        size = f"{millions(info.parameters)} parameters, {millions(info.trained_parameters)} trained"
        self._print(f"run      {info.run}")
        self._print(f"model    {info.model} ({size})")
        what = "prompts " if info.group_size else "rows    "
        self._print(f"{what} {info.train_prompts} train, {info.heldout_prompts} held-out prompts")
        batch = f"{counted(info.prompts_per_step, 'prompt')} × {counted(info.group_size, 'rollout')}"
        each = f"{batch} = {info.prompts_per_step * info.group_size}"
        if not info.group_size:
            each = counted(info.prompts_per_step, "conversation")
        if info.first_step > info.steps:
            self._print(f"steps    all {info.steps} done; `coterie resume {info.run} --steps N` adds more")
        else:
            self._print(f"steps    {info.first_step} to {info.steps}, each {each}")
            self._start_live()

    def on_step(self, step: int, metrics: Metrics, sample: tuple[Prompt, Rollout] | None) -> None:
        self._rows.append((step, dict(metrics)))
        if "time/step" in metrics:
            self._times.append(metrics["time/step"])
        self._sample = sample or self._sample
        self._activity = None
        if self._live is not None:
            self._redraw(self._live)
            return
        cells = {title: show(metrics) for title, show in COLUMNS.items() if title not in PLAIN_WITHOUT}
        values = "  ".join(f"{title} {text}" for title, text in cells.items() if text != ABSENT)
        pace = f"{seconds(metrics.get('time/step'))} s"
        self._print(f"step {step}/{self._last()}  {values}  {pace}  ETA {duration(self._remaining(step))}")

    def on_progress(self, name: str, done: int = 0, total: int = 0, unit: str = "") -> None:
        begins = self._activity is None or self._activity.name != name
        if self._activity is None or begins:
            self._activity = Activity(name=name, clock=self.clock)
        self._activity.update(done, total, unit)
        counts = bool(total or done)
        if self.is_live:
            if self._live is None:
                self._start_live(transient=True)
            elif begins or self.clock() - self._draw_time >= FRAME_S:
                self._redraw(self._live)
        elif self.clock() - max(self._print_time, self._activity.began) >= SILENCE_S if counts else begins:
            self._print(self._activity.text())

    def on_evaluate(self, results: Sequence[EvalResult]) -> None:
        self._activity = None
        for result in results if self.results else ():
            self._print(eval_line(result), style="bold" if result.task == POOLED or len(results) == 1 else "")

    def on_event(self, kind: str, message: str) -> None:
        if kind == "stopped":
            self.stopped = message
            return
        style = {"warning": "yellow", "skipped_update": "yellow", "stop": "bold", "demo": ""}.get(kind, "dim")
        self._print(message if kind in ("progress", "demo", "stop") else f"{kind}: {message}", style=style)

    def on_end(self, run: Path, message: str) -> None:
        self._stop_live()
        if not self.is_live and self._sample is not None:
            self._print(sample_text(*self._sample))
        self._print(message, style="bold")

    def _start_live(self, *, transient: bool = False) -> None:
        """Start the live display on a terminal; a transient one is erased at its end."""
        if self.is_live and not self.console.quiet:
            self._live = Live(self._render(), console=self.console, refresh_per_second=4, transient=transient)
            with self._tolerant():
                self._live.start()

    def _stop_live(self) -> None:
        self._activity = None
        if self._live is not None:
            self._redraw(self._live)
            with self._tolerant():
                self._live.stop()
            self._live = None

    def _print(self, message: str, style: str = "") -> None:
        self._print_time = self.clock()
        text = safe_text(message)
        if self.console.is_terminal:
            text = wrapped(text, self.console.width)
        with self._tolerant():
            self.console.print(Text(text, style=style), soft_wrap=True)

    def _redraw(self, live: Live) -> None:
        self._draw_time = self.clock()
        with self._tolerant():
            live.update(self._render(), refresh=True)

    @contextmanager
    def _tolerant(self) -> Generator[None]:
        """Context in which a failing output is no error: a full disk behind `> log`, a closed terminal or stream."""
        try:
            yield
        except BlockingIOError:
            return  # rich keeps the text for the next time
        except (OSError, ValueError) as error:
            file = self.console.file
            if isinstance(error, UnicodeError) and isinstance(file, TextIOWrapper):
                file.reconfigure(errors="backslashreplace")
                return
            self.console.quiet = True
            discard(file)

    def _last(self) -> int | str:
        return self._info.steps if self._info is not None else "?"

    def _remaining(self, step: int) -> float | None:
        """Estimated seconds to the last step, at the pace of the last few."""
        if self._info is None or not self._times:
            return None
        return (self._info.steps - step) * sum(self._times) / len(self._times)

    def _render(self) -> RenderableType:
        activity = None if self._activity is None else Text(self._activity.text(drawn=True), style="dim")
        if self._info is None:
            return activity or Text("")
        parts: list[RenderableType] = []
        if self._rows:
            step, elapsed = self._rows[-1][0], duration(self.clock() - self._start_time)
            parts.append(_table(self._rows, self.console.width))
            done = f"step {step} of {self._last()} {bar(step, self._info.steps)}"
            parts.append(Text(f"{done} {elapsed} elapsed, {duration(self._remaining(step))} left", style="dim"))
        if activity is not None or not self._rows:
            parts.append(activity or Text("collecting the first step …", style="dim"))
        if self._sample is not None:
            parts.append(Panel(Text(sample_text(*self._sample, lines=8)), title="one rollout", title_align="left"))
        return Group(*parts)


def _table(rows: Iterable[tuple[int, Metrics]], width: int) -> Table:
    """Table of the steps; columns without values, and those for which the width has no room, are left out."""
    cells = [(str(step), {title: show(metrics) for title, show in COLUMNS.items()}) for step, metrics in rows]
    shown = [title for title in COLUMNS if any(row[title] != ABSENT for _, row in cells)]
    widths = {title: max(len(title), *(len(row[title]) for _, row in cells)) for title in shown}
    for title in DISPENSABLE:
        if len("step") + sum(1 + widths[name] for name in shown) <= width:
            break
        shown = [name for name in shown if name != title]
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for title in ("step", *shown):
        table.add_column(title, justify="right", no_wrap=True)
    for step, row in cells:
        table.add_row(step, *(row[title] for title in shown))
    return table


_GLUE = re.compile(r" (?=[%\[])|(?<=,) (?=-?[\d.]+\])| (?=-?[\d.]+( %)? \[)")
"""Spaces inside `pass@1 61.2 % [57.0, 65.3]`, a number with its name, unit and interval, where no line may break."""


def wrapped(text: str, width: int) -> str:
    """Text in lines of at most `width` characters, broken between words and never inside a number with its interval."""
    lines = []
    for line in text.split("\n"):
        indent = re.match(r" *(?:\S+  +)?", line)
        behind = " " * (len(indent[0]) if indent and len(indent[0]) <= width // 3 else 0)
        lines += textwrap.wrap(
            _GLUE.sub("\0", line),
            max(width, 20),
            subsequent_indent=behind,
            break_long_words=False,
            break_on_hyphens=False,
            replace_whitespace=False,
        ) or [""]
    return "\n".join(lines).replace("\0", " ")


def millions(count: int) -> str:
    """Text for a count in millions: `135M`, `0.029M`."""
    return f"{count / 1e6:.0f}M" if count >= 1e7 else f"{count / 1e6:.2g}M"


def eval_line(result: EvalResult) -> str:
    """Line for an evaluation: `held-out leg_counting at step 50: pass@1 61.2 % [57.0, 65.3], pass@4 …`, or for a graded
    reward `reward 0.412 …`."""
    estimates = {}
    if result.pass_at_1 is not None:
        estimates[PASS] = metric_text(PASS, result.pass_at_1)
        if result.k > 1:
            estimates[f"pass@{result.k}"] = metric_text(PASS, result.pass_at_k)
    # 0 of 0 may be a graded reward that has not risen yet.
    if result.reward is not None and (result.reward != result.pass_at_1 or result.reward.value == 0):
        estimates[REWARD] = metric_text(REWARD, result.reward)
    return (
        f"held-out {result.task} at step {result.step}: "
        f"{', '.join(f'{name} {text}' for name, text in estimates.items())}"
        f"  ({result.prompts} prompts × {result.samples}, length {result.mean_length:.0f}, "
        f"cut {share(result.truncated)})"
    )


def sample_text(prompt: Prompt, rollout: Rollout, lines: int = 12) -> str:
    """Text for one rollout with its prompt and reward, safe to print, each part cut to `lines` lines."""
    parts = ", ".join(f"{name} {number(value, 2)}" for name, value in rollout.reward_parts.items())
    ending = rollout.error or rollout.outcome.value
    return "\n".join(
        [
            *_dialogue(prompt, rollout, lines),
            f"answer     {_clipped_text(prompt.answer or ABSENT, 1)}",
            f"reward     {number(rollout.reward, 2)} ({safe_text(parts or 'no parts')}); {safe_text(ending)}",
            *([f"steps      {_clipped_text(_steps(rollout), 1)}"] if rollout.step_rewards else []),
        ]
    )


def _dialogue(prompt: Prompt, rollout: Rollout, lines: int) -> list[str]:
    """Lines for prompt and completion, or for the whole conversation of an episode with several turns."""
    if rollout.messages:
        return [f"episode    {_clipped_text(conversation(rollout.messages), lines)}"]
    return [
        f"prompt     {_clipped_text(prompt.messages[-1]['content'], lines)}",
        f"completion {_clipped_text(rollout.completion, lines)}",
    ]


def _steps(rollout: Rollout) -> str:
    """Text for the step rewards, `arithmetic 1 @ 12, 0 @ 30`: value and last token of each step, by step function."""
    labels: dict[str, list[str]] = {}
    for step in rollout.step_rewards:
        labels.setdefault(step.label, []).append(f"{number(step.value, 2)} @ {step.end}")
    return "; ".join(f"{label} {', '.join(steps)}" for label, steps in labels.items())


def _clipped_text(text: str, lines: int, width: int = 400) -> str:
    rows = [one_line(row, width) for row in text.strip().split("\n")]
    shown = rows[:lines] + ([f"… {len(rows) - lines} more lines"] if len(rows) > lines else [])
    return "\n           ".join(shown)


def console_callback(file: IO[str] | None = None, *, results: bool = True) -> ConsoleCallback:
    """Console callback for standard output, or another stream; NO_COLOR and a pipe are respected."""
    return ConsoleCallback(PipeSafeConsole(file=file or sys.stdout, highlight=False), results=results)
