"""Picture of the learning curve."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING

from coterie.board.figure import COLORS, INK, canvas, centred_mean, save, style_axis
from coterie.runs.directory import RunDirectory
from coterie.runs.inspect import REWARD_MEAN, REWARD_STD, comparable
from coterie.runs.metrics import MetricsDB
from coterie.text import one_line
from coterie.types import PASS, POOLED, EvalResult, metric_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Series = Sequence[tuple[int, float]]


def draw_curve(run: RunDirectory, title: str) -> bool:
    """Write `curve.png`: the reward of every step (mean ± std), or the loss of a fine-tuning, and the held-out result
    with its intervals.

    The held-out result is pass@1, or the mean reward where the evaluated reward is graded.

    Returns:
        Whether there is a picture: False without matplotlib, or when nothing was recorded yet.
    """
    with MetricsDB.reader(run.metrics) as database:
        mean, std = database.series(REWARD_MEAN), database.series(REWARD_STD)
        lowest, highest = database.series("reward/min"), database.series("reward/max")
        evals = comparable(database)
        loss = [] if mean else database.series("loss")
        heldout_loss = database.series("heldout/loss")
    if not mean and not loss and not evals:
        return False
    figure = canvas(8, 6.2 if (mean or loss) and evals else 3.6)
    if figure is None:
        return False
    count = bool(mean or loss) + bool(evals)
    axes = list(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0])
    for axis in axes:
        style_axis(axis, grid="y")
        axis.locator_params(axis="x", integer=True, steps=[1, 2, 5, 10])
    # A dollar sign would start a formula.
    figure.suptitle(one_line(title, 90).replace("$", r"\$"), fontsize=12, color=INK, x=0.012, ha="left")
    if mean:
        _rewards(axes[0], mean, dict(std), _bounds(mean, dict(std), lowest, highest))
    elif loss:
        _losses(axes[0], loss, heldout_loss)
    if evals:
        _heldout(axes[-1], evals)
    axes[-1].set_xlabel("training step")
    return save(figure, run.curve)


def _bounds(mean: Series, std: dict[int, float], lowest: Series, highest: Series) -> tuple[float, float]:
    """Smallest and largest reward of the run, which clip the band of mean ± std. Older runs did not record them: then 0
    and 1, where all means and deviations are possible for a reward between these, or else no bounds."""
    if lowest and highest:
        return min(value for _, value in lowest), max(value for _, value in highest)
    unit = all(0 <= value <= 1 and std.get(step, 0.0) ** 2 <= value * (1 - value) + 1e-9 for step, value in mean)
    return (0.0, 1.0) if unit else (-inf, inf)


def _rewards(axis: Axes, mean: Series, std: dict[int, float], bounds: tuple[float, float]) -> None:
    steps, values = [step for step, _ in mean], [value for _, value in mean]
    spread = [std.get(step, 0.0) for step in steps]
    span = max(5, len(steps) // 15) | 1 if len(steps) > 30 else 1  # odd: as many before as after
    center, around = centred_mean(values, span), centred_mean(spread, span)
    axis.fill_between(
        steps,
        [max(value - width, bounds[0]) for value, width in zip(center, around, strict=True)],
        [min(value + width, bounds[1]) for value, width in zip(center, around, strict=True)],
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


def _losses(axis: Axes, loss: Series, heldout: Series) -> None:
    """Loss of every step, and that of the held-out conversations where it was measured."""
    axis.plot(
        [step for step, _ in loss], [value for _, value in loss], color=COLORS[0], linewidth=1.5, label="training"
    )
    if heldout:
        steps, values = [step for step, _ in heldout], [value for _, value in heldout]
        axis.plot(steps, values, color=COLORS[1], linewidth=1.8, marker="o", markersize=5, label="held out")
    axis.set_ylabel("loss, nats a token")
    axis.set_ylim(bottom=0)
    _legend(axis)


def _legend(axis: Axes) -> None:
    """Legend above the panel, where no curve can run into it."""
    axis.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=4, borderaxespad=0.2)


def _heldout(axis: Axes, evals: Sequence[EvalResult]) -> None:
    metric = metric_of(evals)
    scale = 100 if metric == PASS else 1
    tasks = list(dict.fromkeys(result.task for result in evals))
    far = max(result.step for result in evals)
    low, top = 0.0, 0.0
    for index, task in enumerate(tasks):
        points = [
            (result.step, estimate) for result in evals if result.task == task and (estimate := result.metric(metric))
        ]
        if not points:
            continue
        color = INK if task == POOLED else COLORS[1:-1][index % len(COLORS[1:-1])]
        # Tasks are moved apart a little, so that their bars can be told from each other.
        shift = (index - (len(tasks) - 1) / 2) * far * 0.006
        axis.errorbar(
            [step + shift for step, _ in points],
            [scale * estimate.value for _, estimate in points],
            yerr=[
                [scale * (estimate.value - estimate.low) for _, estimate in points],
                [scale * (estimate.high - estimate.value) for _, estimate in points],
            ],
            color=color,
            marker="o",
            markersize=5,
            linewidth=1.8,
            # Between two points alone nothing was measured: a dotted line does not claim a straight rise.
            linestyle=":" if len(points) == 2 else "--" if task == POOLED else "-",
            capsize=3,
            elinewidth=1.2,
            label=one_line(task, 40).replace("$", r"\$"),
        )
        top = max(top, *(scale * estimate.high for _, estimate in points))
        low = min(low, *(scale * estimate.low for _, estimate in points))
    if metric == PASS:
        axis.set_ylabel("held-out pass@1, %\n(95 % interval)")
        axis.set_ylim(0, min(104.0, max(10.0, top * 1.12)))
    else:
        axis.set_ylabel("held-out reward\n(mean, 95 % interval)")
        room = 0.12 * (top - low) or 0.1
        axis.set_ylim(low - room if low < 0 else 0, top + room)
    if len(tasks) > 1:
        _legend(axis)
