"""Picture of several seeds of a recipe: training reward, and the held-out result of each task with its interval.

python recipes/curves.py recipes/code/curve.png runs/code-0 runs/code-1 runs/code-2
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import coterie
from coterie.board.figure import COLORS, INK, canvas, save, style_axis


def main(picture: Path, folders: list[str]) -> int:
    """Draw and write the picture; the exit code."""
    runs = [coterie.load_run(folder) for folder in folders]
    tasks = list(dict.fromkeys(result.task for run in runs for result in run.evaluations))
    figure = canvas(4 + 3 * len(tasks), 3.4)
    if figure is None:
        print("matplotlib is not installed: pip install matplotlib", file=sys.stderr)
        return 1
    training, *heldout = figure.subplots(1, 1 + len(tasks), width_ratios=[1.3, *[1] * len(tasks)])
    style_axis(training, grid="y")
    for number, run in enumerate(runs):
        values = run.metrics["reward/mean"]
        training.plot(run.metrics["step"], values, color=COLORS[number], label=f"seed {run.config.seed}")
    _label(training, "mean training reward")
    training.legend(loc="upper left", frameon=False, fontsize=8)
    for axis, task in zip(heldout, tasks, strict=True):
        style_axis(axis, grid="y")
        for number, run in enumerate(runs):
            _draw_task(axis, run, task, number)
        _label(axis, f"held out: {task.replace('_', ' ')}")
    save(figure, picture)
    return 0


def _draw_task(axis: Any, run: coterie.Run, task: str, number: int) -> None:
    results = [result for result in run.evaluations if result.task == task]
    points = [(result.step, result.pass_at_1) for result in results]
    estimates = [estimate for _, estimate in points if estimate is not None]
    values = [estimate.value for estimate in estimates]
    errors = [
        [estimate.value - estimate.low for estimate in estimates],
        [estimate.high - estimate.value for estimate in estimates],
    ]
    steps = [step + 0.3 * (number - 1) for step, _ in points]
    axis.errorbar(steps, values, errors, fmt="o-", color=COLORS[number], capsize=3, linewidth=0.8)


def _label(axis: Any, title: str) -> None:
    axis.set(xlabel="training step", title=title)
    axis.set_ylim(bottom=0)
    axis.title.set(fontsize=9, color=INK)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
