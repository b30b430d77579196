"""The learning curve as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from coterie.observer import POOLED, EvalResult
from coterie.runs.directory import RunDirectory
from coterie.runs.inspect import REWARD_MEAN, REWARD_STD
from coterie.runs.metrics import MetricsDB
from coterie.runs.pictures import COLORS, INK, canvas, dress, save
from coterie.text import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Series = Sequence[tuple[int, float]]


def draw_curve(run: RunDirectory, title: str) -> bool:
    """Write `curve.png`: the reward of every step (mean ± std), and held-out pass@1 with its intervals.

    Returns:
        Whether there is a picture: False without matplotlib, or when nothing was recorded yet.

    Raises:
        RunError: the metrics cannot be read, or the disk refused.
    """
    with MetricsDB.reader(run.metrics) as database:
        mean, std = database.series(REWARD_MEAN), database.series(REWARD_STD)
        evals = database.evals()
    if not mean and not evals:
        return False
    figure = canvas(8, 6.2 if mean and evals else 3.6)
    if figure is None:
        return False
    count = bool(mean) + bool(evals)
    axes = list(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0])
    for axis in axes:
        dress(axis, grid="y")
        axis.locator_params(axis="x", integer=True, steps=[1, 2, 5, 10])
    # A dollar sign would start a formula.
    figure.suptitle(one_line(title, 90).replace("$", r"\$"), fontsize=12, color=INK, x=0.012, ha="left")
    if mean:
        _rewards(axes[0], mean, dict(std))
    if evals:
        _heldout(axes[-1], evals)
    axes[-1].set_xlabel("training step")
    return save(figure, run.curve)


def _rewards(axis: Axes, mean: Series, std: dict[int, float]) -> None:
    steps, values = [step for step, _ in mean], [value for _, value in mean]
    spread = [std.get(step, 0.0) for step in steps]
    span = max(5, len(steps) // 15) if len(steps) > 30 else 1
    center, around = _running_mean(values, span), _running_mean(spread, span)
    axis.fill_between(
        steps,
        [value - width for value, width in zip(center, around, strict=True)],
        [value + width for value, width in zip(center, around, strict=True)],
        color=COLORS[0],
        alpha=0.12,
        linewidth=0,
        label="± std over rollouts",
    )
    if span > 1:  # single steps are noisy: many of them are drawn faint under their running mean
        axis.plot(steps, values, color=COLORS[0], alpha=0.4, linewidth=0.9, label="each step")
    label = f"mean of {span} steps" if span > 1 else "mean"
    marker = "o" if len(steps) == 1 else None
    axis.plot(steps, center, color=COLORS[0], linewidth=2, marker=marker, label=label)
    axis.set_ylabel("reward in training")
    _legend(axis)


def _legend(axis: Axes) -> None:
    """Above the panel, where no curve can run into it."""
    axis.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=4, borderaxespad=0.2)


def _running_mean(values: Sequence[float], span: int) -> list[float]:
    """Mean of the last `span` values at each point; of fewer at the start."""
    return [sum(values[max(0, end - span) : end]) / min(span, end) for end in range(1, len(values) + 1)]


def _heldout(axis: Axes, evals: Sequence[EvalResult]) -> None:
    tasks = list(dict.fromkeys(result.task for result in evals))
    far = max(result.step for result in evals)
    top = 0.0
    for index, task in enumerate(tasks):
        results = [result for result in evals if result.task == task]
        color = INK if task == POOLED else COLORS[1:-1][index % len(COLORS[1:-1])]
        # Tasks are moved apart a little, so that their bars can be told from each other.
        shift = (index - (len(tasks) - 1) / 2) * far * 0.006
        axis.errorbar(
            [result.step + shift for result in results],
            [100 * result.pass_at_1.value for result in results],
            yerr=[
                [100 * (result.pass_at_1.value - result.pass_at_1.low) for result in results],
                [100 * (result.pass_at_1.high - result.pass_at_1.value) for result in results],
            ],
            color=color,
            marker="o",
            markersize=5,
            linewidth=1.8,
            # Between two points alone nothing was measured: a dotted line does not claim a straight rise.
            linestyle=":" if len(results) == 2 else "--" if task == POOLED else "-",
            capsize=3,
            elinewidth=1.2,
            label=one_line(task, 40).replace("$", r"\$"),
        )
        top = max(top, *(100 * result.pass_at_1.high for result in results))
    axis.set_ylabel("held-out pass@1, %\n(95 % interval)")
    axis.set_ylim(0, min(104.0, max(10.0, top * 1.12)))
    if len(tasks) > 1:
        _legend(axis)
