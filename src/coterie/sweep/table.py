"""A sweep's results side by side, as a Markdown table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median_high

from coterie.algo.statistics import Estimate, t_interval
from coterie.observer import PASS
from coterie.sweep.result import CellResult
from coterie.text import interval_text

GIB = 1 << 30

NOTE = (
    "Mean over seeds with Student's 95 % interval in brackets; ± is half its width. Area: mean training reward over "
    "all steps. Collapsed: stopped because it diverged, or the last tenth of the steps (three at least) has less than "
    "half of the reward of the best tenth, by more than the few prompts of a step explain."
)


def by_setting(results: Sequence[CellResult]) -> dict[str, list[CellResult]]:
    """The results of all seeds of each setting, in order of appearance."""
    found: dict[str, list[CellResult]] = {}
    for one in results:
        found.setdefault(one.cell.label, []).append(one)
    return found


def over_seeds(results: Sequence[CellResult], value: Callable[[CellResult], float | None]) -> Estimate | None:
    """Mean and interval of what the seeds have; None where none has it."""
    values = [found for one in results if (found := value(one)) is not None and found == found]
    return t_interval(values) if values else None


def markdown(results: Sequence[CellResult], reach: float | None = None) -> str:
    """The table, and below it what its columns mean.

    Args:
        reach: held-out result (a share, or a reward where it is graded) of which is said when it was reached.
    """
    metric = results[0].metric if results else PASS
    what = "held-out before → after, %" if metric == PASS else "held-out reward before → after"
    head = f"| setting | seeds | {what} | reward, area | s/step | peak GiB | collapsed |"
    rule, note = "| --- | --: | --- | --- | --: | --: | --: |", NOTE
    if reach is not None:
        level = f"{100 * reach:g} %" if metric == PASS else f"reward {reach:g}"
        head += f" rollouts to {level} | seconds to {level} | reached |"
        rule += " --- | --- | --: |"
        note += (
            f" Rollouts and seconds of training until the first evaluation with at least {level} held-out: median over "
            "all seeds [least, most], where never is more than any number."
        )
    lines = [head, rule, *(_row(label, found, reach) for label, found in by_setting(results).items())]
    return "\n".join(lines) + f"\n\n{note}\n"


def _row(label: str, found: Sequence[CellResult], reach: float | None) -> str:
    whole = [one for one in found if not one.error]
    before, after = over_seeds(whole, lambda one: one.before), over_seeds(whole, lambda one: one.after)
    seconds, peak = over_seeds(found, lambda one: one.seconds), over_seeds(found, lambda one: one.peak)
    scale, digits = (100, 1) if not found or found[0].metric == PASS else (1, 3)
    change = "–"
    if before is not None and after is not None:
        change = f"{scale * before.value:.{digits}f} → {interval_text(after, scale, digits)}"
    cells = [
        f"`{label}`",
        str(len(found)),
        change,
        interval_text(over_seeds(whole, lambda one: one.area), 1, 3),
        "–" if seconds is None else f"{seconds.value:.2f} ± {seconds.high - seconds.value:.2f}",
        "–" if peak is None else f"{peak.value / GIB:.2f} ± {(peak.high - peak.value) / GIB:.2f}",
        f"{sum(one.collapsed for one in found)}/{len(found)}",
    ]
    if reach is not None:
        points = [one.reached(reach) for one in found]
        cells += [
            _middle([None if point is None else point.rollouts for point in points]),
            _middle([None if point is None else point.seconds for point in points]),
            f"{sum(point is not None for point in points)}/{len(points)}",
        ]
    return "| " + " | ".join(cells) + " |"


def _middle(values: Sequence[float | None]) -> str:
    """Median [least, most]; what was never reached counts as more than any number."""
    known = sorted(float("inf") if value is None else float(value) for value in values)
    texts = [f"{value:.0f}" if value < float("inf") else "never" for value in (median_high(known), known[0], known[-1])]
    return f"{texts[0]} [{texts[1]}, {texts[2]}]"
