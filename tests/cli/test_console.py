"""The console prints what matters, with or without a terminal, and obeys nothing that a model says."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from coterie.callbacks import RunInfo
from coterie.console import (
    ConsoleCallback,
    PipeSafeConsole,
    duration,
    eval_line,
    millions,
    number,
    sample_text,
    share,
    wrapped,
)
from coterie.progress import Activity
from coterie.types import Context, EvalResult, Interval, Outcome, Prompt, Rollout, StopReason

INFO = RunInfo(
    run=Path("runs/legs-001"),
    steps=50,
    first_step=1,
    model="smollm2-135m",
    parameters=134_515_008,
    trained_parameters=134_515_008,
    train_prompts=1000,
    heldout_prompts=100,
    prompts_per_step=8,
    group_size=8,
)
METRICS = {
    **{"reward/mean": 0.4123, "reward/std": 0.31, "groups/all_correct": 0.125, "groups/mixed": 0.625},
    **{"groups/all_wrong": 0.25, "length/mean": 45.2, "truncated": 0.03, "entropy": 1.2, "clip/low": 0.001},
    **{"clip/high": 0.002, "grad_norm": 0.83, "speed/generate": 812.0, "time/step": 4.0, "lr": 3e-05},
}
RESULT = EvalResult(
    step=50,
    task="leg_counting",
    prompts=100,
    samples=4,
    k=4,
    pass_at_1=Interval(value=0.612, low=0.57, high=0.653),
    pass_at_k=Interval(value=0.9, low=0.85, high=0.94),
    mean_length=31.4,
    truncated=0.02,
)
NASTY = "\x1b]0;owned\x07 [red]bold[/red] \u202e" + "x\n" * 40


def sample(completion: str = NASTY) -> tuple[Prompt, Rollout]:
    prompt = Prompt(id="t/1", messages=({"role": "user", "content": NASTY},), answer="4\x1b", task="t")
    context = Context(
        prompt_id="t/1",
        task="t",
        difficulty=None,
        version=0,
        prompt_length=3,
        completion_length=3,
        stop_reason=StopReason.STOP,
    )
    rollout = Rollout(
        id="t/1#0@0",
        sample=0,
        turns=(),
        completion=completion,
        reward=0.5,
        reward_parts={"task": 0.5, "format": None},
        outcome=Outcome.OK,
        context=context,
    )
    return prompt, rollout


def watch(*, live: bool, width: int = 100, color: bool = False) -> tuple[str, ConsoleCallback]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=live, width=width, no_color=not color, highlight=False)
    with ConsoleCallback(console) as callback:
        callback.on_event("progress", "fetching the model")
        callback.on_start(INFO)
        for step in range(1, 16):
            callback.on_step(step, METRICS, sample() if step % 2 else None)
        callback.on_event("checkpoint", "step 15\x1b")
        callback.on_evaluate([RESULT])
        callback.on_end(INFO.run, "done")
    return out.getvalue(), callback


def test_plain_lines():
    text, _ = watch(live=False)
    lines = text.splitlines()
    assert "\x1b" not in text
    assert "fetching the model" in lines
    assert sum(line.startswith("step ") for line in lines) == 15
    assert "step 3/50  reward 0.412±0.31  solved/mixed/none% 12/62/25  length 45  trunc 3.0%  grad 0.83" in text
    assert "grad 0.83  lr 3e-05  4.0 s  ETA 3m08s" in text
    assert max(len(line) for line in lines if line.startswith("step ")) <= 120
    assert "checkpoint: step 15\\x1b" in lines
    assert lines[-1] == "done"
    assert "[red]bold[/red]" in text


def test_live_table_keeps_the_last_steps_and_gives_the_terminal_back():
    text, callback = watch(live=True)
    assert callback._live is None
    assert text.rstrip().endswith("done\x1b[0m")
    last = text[text.rindex("solved/mixed/none%") :]
    rows = [line.split()[0] for line in re.sub(r"\x1b\[[\d;?]*\w", "", last).splitlines() if "±" in line]
    assert rows == [str(step) for step in range(4, 16)]
    assert "step 15 of 50 ━━━━━━──────────────" in last
    assert "elapsed, 2m20s left" in last
    assert "one rollout" in last
    assert "owned\\x07" in last
    assert "]0;owned\x07" not in text


@pytest.mark.parametrize(("width", "titles"), [(60, "step reward solved/mixed/none%"), (80, "s/step"), (100, "lr")])
def test_table_fits(width, titles):
    text, _ = watch(live=True, width=width)
    plain = re.sub(r"\x1b\[[\d;?]*\w", "", text).replace("\r", "\n").splitlines()
    heads = [line.split() for line in plain if "solved/mixed/none%" in line]
    assert set(titles.split()) <= set(heads[-1])
    assert "KL" not in heads[-1]  # nothing measured it
    assert all(len(line.rstrip()) <= width for line in plain)


def test_no_line_breaks_inside_a_number_with_its_interval():
    text = wrapped(eval_line(RESULT), 80)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert re.findall(r"pass@\d [\d.]+ % \[[\d.]+, [\d.]+\]", text) == [
        "pass@1 61.2 % [57.0, 65.3]",
        "pass@4 90.0 % [85.0, 94.0]",
    ]
    for width in range(20, 90):
        assert " ".join(wrapped(eval_line(RESULT), width).split()) == " ".join(eval_line(RESULT).split())
    assert wrapped("model    a b c\n\n  x", 20) == "model    a b c\n\n  x"
    assert wrapped("steps    all fifty of them are done", 30) == "steps    all fifty of them are\n         done"


def test_progress_without_a_terminal_is_told_at_once_and_then_now_and_then():
    out, seconds = io.StringIO(), 0.0
    callback = ConsoleCallback(Console(file=out, width=100), live=False, clock=lambda: seconds)
    callback.on_progress("loading the model")
    callback.on_progress("loading the model")
    for done in range(0, 120):  # half a second each
        callback.on_progress("evaluating", done, 120, "completions")
        seconds += 0.5
    assert out.getvalue().splitlines() == [
        "loading the model …",
        "evaluating: 30 of 120 completions",
        "evaluating: 60 of 120 completions",
        "evaluating: 90 of 120 completions",
    ]


def test_progress_on_a_terminal_leaves_nothing_behind():
    out, seconds = io.StringIO(), 0.0
    console = Console(file=out, force_terminal=True, width=100, highlight=False)
    with ConsoleCallback(console, clock=lambda: seconds) as callback:
        callback.on_progress("downloading smollm2", 0, 98_400_000, "bytes")
        for _ in range(8):
            seconds += 0.5
            callback.on_progress("downloading smollm2", int(seconds * 10e6), 98_400_000, "bytes")
        assert "downloading smollm2 ━━━━━━━━────────────: 40 of about 98 MB, 10.0 MB/s" in out.getvalue()
        callback.on_evaluate([RESULT])
    assert callback._live is None
    assert out.getvalue().endswith("\x1b[?25h\r\x1b[1A\x1b[2K")  # the cursor is back, the line is gone


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        ((0, 0, ""), "at work …"),
        ((0, 120, "completions"), "at work: 0 of 120 completions"),
        ((7, 0, "rows"), "at work: 7 rows"),
        ((2_000_000, 0, "bytes"), "at work: 2 MB"),
    ],
)
def test_activities(figures, text):
    activity = Activity(name="at work")
    activity.update(*figures)
    assert activity.text() == text


def test_a_finished_run_says_how_to_train_on():
    out = io.StringIO()
    ConsoleCallback(Console(file=out, width=100), live=False).on_start(replace(INFO, first_step=51))
    assert "all 50 done; `coterie resume runs/legs-001 --steps N` adds more" in out.getvalue()


def test_small_models_have_a_size():
    assert [millions(count) for count in (134_515_008, 28_900, 1_500_000)] == ["135M", "0.029M", "1.5M"]


def test_broken_run_leaves_a_clean_terminal():
    out = io.StringIO()
    callback = ConsoleCallback(Console(file=out, force_terminal=True, width=90))

    def run() -> None:
        with callback:
            callback.on_start(INFO)
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        run()
    assert callback._live is None
    assert "\x1b[?25h" in out.getvalue()  # the cursor is back


def test_no_color(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    out = io.StringIO()
    ConsoleCallback(Console(file=out, force_terminal=True), live=False).on_event("warning", "slow")
    assert "\x1b[3" not in out.getvalue()


def test_steps_without_metrics():
    out = io.StringIO()
    ConsoleCallback(Console(file=out, width=200), live=False).on_step(1, {}, None)
    assert out.getvalue().startswith("step 1/?  reward –±–  solved/mixed/none% –/–/–  – s  ETA –")


def test_sample_is_short_and_safe():
    text = sample_text(*sample(), lines=5)
    assert "… 35 more lines" in text
    assert "reward     0.50 (task 0.50, format –); ok" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_eval_line():
    assert eval_line(RESULT) == (
        "held-out leg_counting at step 50: pass@1 61.2 % [57.0, 65.3], pass@4 90.0 % [85.0, 94.0]"
        "  (100 prompts × 4, length 31, cut 2.0%)"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (number(None), "–"),
        (number(0.0), "0.000"),
        (number(1.23e-5), "1.2e-05"),
        (number(123456.0, 0), "1.2e+05"),
        (number(float("nan")), "nan"),
        (share(None), "–"),
        (share(0.0), "0%"),
        (share(0.004), "0.4%"),
        (share(0.25), "25%"),
        (duration(None), "–"),
        (duration(45), "45s"),
        (duration(200), "3m20s"),
        (duration(7500), "2h05m"),
    ],
)
def test_short_forms(text, expected):
    assert text == expected


class Gone(io.StringIO):
    """An output that fails from the third write on."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error, self.writes = error, 0

    def write(self, text: str) -> int:
        self.writes += 1
        if self.writes > 2:
            raise self.error
        return super().write(text)


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "full"), ValueError("I/O operation on closed file")])
def test_a_run_outlives_its_output(error, live):
    out = Gone(error)
    with ConsoleCallback(PipeSafeConsole(file=out, force_terminal=live, width=100), live=live) as callback:
        callback.on_start(INFO)
        for step in range(1, 4):
            callback.on_step(step, METRICS, sample())
        callback.on_evaluate([RESULT])
        callback.on_event("warning", "slow")
        callback.on_end(INFO.run, "done")
    assert callback.console.quiet
    assert out.writes < 9


def test_a_text_that_cannot_be_written_costs_no_other():
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    callback = ConsoleCallback(PipeSafeConsole(file=out, width=100), live=False)
    callback.on_event("warning", "±")
    callback.on_event("warning", "plain")
    assert raw.getvalue() == b"warning: \\xb1\nwarning: plain\n"


HEAD = """
import sys
from dataclasses import replace
from pathlib import Path
from coterie import console
from coterie.cli.main import app, main

@app.command()
def work():
    with console.console_callback() as callback:
        for step in range(20000):
            callback.on_event("progress", f"step {step}")
        callback.on_end(Path("runs/x"), "done")
    print("and printed", "x" * 100_000)
    Path(sys.argv[1]).write_text("trained")

sys.exit(main(["work"]))
"""


def test_a_reader_that_leaves_does_not_end_the_training(tmp_path):
    command = [sys.executable, "-c", HEAD, str(tmp_path / "result")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as training:
        assert training.stdout is not None
        assert training.stderr is not None
        assert training.stdout.readline() == b"step 0\n"
        training.stdout.close()
        assert training.stderr.read() == b""
    assert training.returncode == 0
    assert (tmp_path / "result").read_text() == "trained"


def test_eval_line_of_a_graded_reward() -> None:
    graded = replace(RESULT, pass_at_1=None, pass_at_k=None, reward=Interval(value=0.4123, low=0.37, high=0.453))
    assert eval_line(graded).startswith("held-out leg_counting at step 50: reward 0.412 [0.370, 0.453]  (100 prompts")
    same = replace(RESULT, reward=RESULT.pass_at_1)
    assert eval_line(same) == eval_line(RESULT), "the mean of a binary reward is pass@1"
    zero = Interval(value=0.0, low=0.0, high=0.0)
    unknown = eval_line(replace(RESULT, pass_at_1=zero, pass_at_k=zero, reward=zero))
    assert "pass@1 0.0 % [0.0, 0.0], pass@4 0.0 % [0.0, 0.0], reward 0.000 [0.000, 0.000]" in unknown
