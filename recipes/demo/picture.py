"""Picture of demo runs: training reward, held-out accuracy, and held-out completions before and after training.

    for seed in 0 1 2; do coterie demo --seed $seed; done
    python recipes/demo/picture.py docs/demo.png runs/smollm2-135m-one_hop-001 …-002 …-003

The completions are the first attempts at the first held-out prompts of the first run, not chosen ones.
"""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import fill
from typing import Any

import coterie
from coterie.board.figure import COLORS, INK, canvas, save, style_axis
from coterie.runs.rollouts import read_step
from coterie.types import Rollout

ROWS = 6
"""Held-out prompts shown."""
WIDTH = 34
"""Characters of a line shown."""
TASKS = ("one_hop", "chain_sum")
"""Tasks of the demos."""


def main(picture: Path, folders: list[str]) -> int:
    """Draw and write the picture; the exit code."""
    figure = canvas(12, 4.1)
    if figure is None:
        print("matplotlib is not installed: pip install matplotlib", file=sys.stderr)
        return 1
    runs = [coterie.load_run(folder) for folder in folders]
    curve, table = figure.subplots(1, 2, width_ratios=[1.0, 1.9])
    style_axis(curve, grid="y")
    _draw_curves(curve, runs)
    _draw_completions(table, runs[0])
    save(figure, picture)
    return 0


def _draw_curves(axis: Any, runs: list[coterie.Run]) -> None:
    for number, run in enumerate(runs):
        color, metrics = COLORS[number], run.metrics
        axis.plot(metrics["step"], metrics["reward/mean"], color=color, alpha=0.35, linewidth=1.2)
        points = [(result.step, result.pass_at_1) for result in run.evaluations if result.task in TASKS]
        steps = [step + 0.5 * (number - 1) for step, _ in points]
        estimates = [estimate for _, estimate in points if estimate is not None]
        values = [estimate.value for estimate in estimates]
        low = [estimate.value - estimate.low for estimate in estimates]
        high = [estimate.high - estimate.value for estimate in estimates]
        label = f"seed {run.config.seed}"
        axis.errorbar(steps, values, [low, high], fmt="o", color=color, capsize=3, label=label)
    axis.set(xlabel="training step", title="mean training reward (lines), held-out accuracy (dots, 95 %)")
    axis.set_ylim(bottom=0)
    axis.title.set(fontsize=9, color=INK)
    axis.legend(loc="upper left", frameon=False, fontsize=9)


def _draw_completions(axis: Any, run: coterie.Run) -> None:
    steps = [result.step for result in run.evaluations]
    before, after = (_first_attempts(run.path / "evals", step) for step in (min(steps), max(steps)))
    prompts = [prompt for prompt in before if prompt in after][:ROWS]
    cells = [[fill(prompt, WIDTH - 6), _cell(before[prompt]), _cell(after[prompt])] for prompt in prompts]
    axis.axis("off")
    table = axis.table(
        cellText=cells,
        colLabels=["held-out prompt", "before", "after"],
        colWidths=[0.28, 0.36, 0.36],
        cellLoc="left",
        loc="center",
    )
    table.auto_set_font_size(False)
    table.set_fontsize(7.5)
    table.scale(1, 2.6)
    for (row, _), cell in table.get_celld().items():
        cell.set(edgecolor="#DDDDDD", linewidth=0.6)
        if row == 0:
            cell.get_text().set(weight="bold", color=INK)


def _first_attempts(folder: Path, step: int) -> dict[str, Rollout]:
    """First attempt at each prompt of the demo's own task, by the question in the prompt."""
    attempts: dict[str, Rollout] = {}
    for record in read_step(folder, step):
        if record.prompt.task in TASKS:
            question = record.prompt.messages[-1]["content"].split(":")[-1].strip()
            attempts.setdefault(question, record.rollout)
    return attempts


def _cell(rollout: Rollout) -> str:
    """The model's turns, one a line; what a tool answered is left out."""
    turns = [message["content"] for message in rollout.messages if "tool_calls" in message] + [rollout.completion]
    lines = [" ".join(turn.split()).replace("$", r"\$") for turn in turns]
    mark = "✓" if (rollout.reward or 0) >= 1 else "✗"
    return f"{mark} " + "\n   ".join(line[:WIDTH] + ("…" if len(line) > WIDTH else "") for line in lines)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
