"""What a person sees while a run goes on: one live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
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

from coterie.observer import PASS, POOLED, REWARD, EvalResult, RunInfo
from coterie.text import conversation, metric_text, one_line, safe_text
from coterie.types import Prompt, Rollout

ROWS = 12
"""Steps that the live table keeps."""
ABSENT = "–"

Metrics = Mapping[str, float]


def number(value: float | None, digits: int = 3) -> str:
    """Short and of stable width: `0.412`, `1.2e-05`, `–` for what was not measured."""
    if value is None:
        return ABSENT
    if value and (abs(value) < 10**-digits or abs(value) >= 10**5):
        return f"{value:.1e}"
    return f"{value:.{digits}f}"


def share(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.0%}" if value >= 0.1 or value == 0 else f"{value:.1%}"


def duration(seconds: float | None) -> str:
    """`45s`, `3m20s`, `2h05m`."""
    if seconds is None:
        return ABSENT
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest:02}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"


def _groups(metrics: Metrics) -> str:
    parts = [metrics.get(f"groups/{name}") for name in ("solved", "mixed", "none")]
    return "/".join(ABSENT if part is None else f"{100 * part:.0f}" for part in parts)


def _clipped(metrics: Metrics) -> float | None:
    low, high = metrics.get("clip/low"), metrics.get("clip/high")
    return None if low is None and high is None else (low or 0) + (high or 0)


COLUMNS: dict[str, Callable[[Metrics], str]] = {
    "reward": lambda m: f"{number(m.get('reward/mean'))}±{number(m.get('reward/std'), 2)}",
    "solved/mixed/none%": _groups,
    "length": lambda m: number(m.get("length/mean"), 0),
    "cut": lambda m: share(m.get("truncated")),
    "KL": lambda m: number(m.get("kl/ref"), 4),
    "entropy": lambda m: number(m.get("entropy"), 2),
    "clip": lambda m: share(_clipped(m)),
    "grad": lambda m: number(m.get("grad_norm"), 2),
    "tok/s": lambda m: number(m.get("speed/generate"), 0),
}
"""Heading → text of a step's metrics."""


def discard(stream: IO[str]) -> None:
    """Send a stream that nobody reads any more to nowhere, so that later writes and the flush at exit succeed."""
    with suppress(OSError, ValueError):  # it has no file descriptor, or is closed
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)


class Lasting(Console):
    """A console whose reader may leave: what is printed after that is lost, and nothing else happens."""

    def on_broken_pipe(self) -> None:
        """Rich would end the program here, and with it a training of hours because of a `| head`."""
        self.quiet = True
        discard(self.file)


class Watcher:
    """An Observer for people. A context manager: leaving it gives the terminal back, whatever happened.

    No callback raises because of the output: once that is gone, the training goes on unwatched.
    """

    def __init__(self, console: Console | None = None, *, live: bool | None = None) -> None:
        """`live` is decided by the console when None: a terminal that can move the cursor."""
        self.console = console or Lasting(highlight=False)
        self.is_live = self.console.is_terminal and not self.console.is_dumb_terminal if live is None else live
        self._live: Live | None = None
        self._info: RunInfo | None = None
        self._rows: deque[tuple[int, Metrics]] = deque(maxlen=ROWS)
        self._times: deque[float] = deque(maxlen=ROWS)
        self._sample: tuple[Prompt, Rollout] | None = None
        self._progress = ""
        self.stopped = ""
        """Name of the signal that ended the run before its last step."""

    def __enter__(self) -> Watcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def started(self, info: RunInfo) -> None:
        self._info = info
        size = f"{info.parameters / 1e6:.0f}M parameters, {info.trained_parameters / 1e6:.3g}M trained"
        self._say(f"run      {info.run}")
        self._say(f"model    {info.model} ({size})")
        self._say(f"prompts  {info.train_prompts} to train on, {info.heldout_prompts} held out")
        batch = info.prompts_per_step * info.group_size
        self._say(
            f"steps    {info.first_step} to {info.steps}, each {info.prompts_per_step} prompts × "
            f"{info.group_size} rollouts = {batch}"
        )
        if self.is_live:
            self._live = Live(self._picture(), console=self.console, refresh_per_second=4)
            with self._unharmed():
                self._live.start()

    def stepped(self, step: int, metrics: Metrics, sample: tuple[Prompt, Rollout] | None) -> None:
        self._rows.append((step, dict(metrics)))
        if "time/step" in metrics:
            self._times.append(metrics["time/step"])
        self._sample = sample or self._sample
        self._progress = ""
        if self._live is not None:
            self._redraw(self._live)
            return
        values = "  ".join(f"{title} {show(metrics)}" for title, show in COLUMNS.items())
        self._say(f"step {step}/{self._last()}  {values}  ETA {duration(self._remaining(step))}")

    def evaluated(self, results: Sequence[EvalResult]) -> None:
        for result in results:
            self._say(eval_line(result), style="bold" if result.task == POOLED or len(results) == 1 else "")

    def noted(self, kind: str, message: str) -> None:
        if kind == "stopped":
            self.stopped = message
            return
        if kind == "progress" and self._live is not None:
            self._progress = one_line(message, 200)
            self._redraw(self._live)
            return
        style = {"warning": "yellow", "skipped_update": "yellow", "stop": "bold", "demo": ""}.get(kind, "dim")
        self._say(message if kind in ("progress", "demo") else f"{kind}: {message}", style=style)

    def finished(self, run: Path, message: str) -> None:
        self._stop()
        if not self.is_live and self._sample is not None:
            self._say(sample_text(*self._sample))
        self._say(message, style="bold")
        self._say(f"run: {run}")

    def _stop(self) -> None:
        if self._live is not None:
            self._progress = ""
            self._redraw(self._live)
            with self._unharmed():
                self._live.stop()
            self._live = None

    def _say(self, message: str, style: str = "") -> None:
        with self._unharmed():
            self.console.print(Text(safe_text(message), style=style), soft_wrap=True)

    def _redraw(self, live: Live) -> None:
        with self._unharmed():
            live.update(self._picture())

    @contextmanager
    def _unharmed(self) -> Generator[None]:
        """Outlive the output: a full disk behind `> log`, a terminal that hung up, a closed stream."""
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
        """Seconds to the last step at the pace of the last few."""
        if self._info is None or not self._times:
            return None
        return (self._info.steps - step) * sum(self._times) / len(self._times)

    def _picture(self) -> RenderableType:
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
        table.add_column("step", justify="right")
        for title in COLUMNS:
            table.add_column(title, justify="right", no_wrap=True)
        for step, metrics in self._rows:
            table.add_row(str(step), *(show(metrics) for show in COLUMNS.values()))
        parts: list[RenderableType] = [table]
        if self._rows:
            step = self._rows[-1][0]
            left = duration(self._remaining(step))
            parts.append(Text(f"step {step} of {self._last()}, ETA {left}   {self._progress}", style="dim"))
        else:
            parts.append(Text(self._progress or "collecting the first step …", style="dim"))
        if self._sample is not None:
            parts.append(Panel(Text(sample_text(*self._sample, lines=8)), title="one rollout", title_align="left"))
        return Group(*parts)


def eval_line(result: EvalResult) -> str:
    """`held-out leg_counting at step 50: pass@1 61.2 % [57.0, 65.3], pass@4 …`; of a graded reward `reward 0.412 …`."""
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
    """One rollout with its prompt and reward, made safe to print, each text cut to `lines` lines."""
    parts = ", ".join(f"{name} {number(value, 2)}" for name, value in rollout.reward_parts.items())
    ending = rollout.error or rollout.outcome.value
    return "\n".join(
        [
            *_said(prompt, rollout, lines),
            f"answer     {_clipped_text(prompt.answer or ABSENT, 1)}",
            f"reward     {number(rollout.reward, 2)} ({safe_text(parts or 'no parts')}); {safe_text(ending)}",
            *([f"steps      {_clipped_text(_steps(rollout), 1)}"] if rollout.step_rewards else []),
        ]
    )


def _said(prompt: Prompt, rollout: Rollout, lines: int) -> list[str]:
    """Question and answer; of several turns, all that was said, with who said it."""
    if rollout.messages:
        return [f"episode    {_clipped_text(conversation(rollout.messages), lines)}"]
    return [
        f"prompt     {_clipped_text(prompt.messages[-1]['content'], lines)}",
        f"completion {_clipped_text(rollout.completion, lines)}",
    ]


def _steps(rollout: Rollout) -> str:
    """`arithmetic 1 @ 12, 0 @ 30`: value and last token of each step, by step function."""
    labels: dict[str, list[str]] = {}
    for step in rollout.step_rewards:
        labels.setdefault(step.label, []).append(f"{number(step.value, 2)} @ {step.end}")
    return "; ".join(f"{label} {', '.join(steps)}" for label, steps in labels.items())


def _clipped_text(text: str, lines: int, width: int = 400) -> str:
    rows = [one_line(row, width) for row in text.strip().split("\n")]
    shown = rows[:lines] + ([f"… {len(rows) - lines} more lines"] if len(rows) > lines else [])
    return "\n           ".join(shown)


def watcher() -> Watcher:
    """The observer for this process's standard output; NO_COLOR and a pipe are respected."""
    return Watcher(Lasting(file=sys.stdout, highlight=False))
