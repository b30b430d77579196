"""A run as HTML for notebooks: its learning curve as SVG, its held-out results and a few rollouts.

Everything is read from the run's folder, so a run that goes on shows where it is. Text of a model is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from coterie.board.figure import COLORS
from coterie.runs.inspect import REWARD_MEAN
from coterie.text import metric_text, safe_text
from coterie.types import EvalResult, metric_of, overall

SHOWN = 3
"""Rollouts of the first and of the last step, and evaluations at the end, in the tables."""
LONGEST = 300
"""Characters of a text in them."""
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 220, 52, 12, 26, 30
"""Of the picture and its margins, in pixels."""
TRAINING, HELDOUT, *_ = COLORS


def html_of(
    summary: str,
    metrics: Mapping[str, Sequence[Any]],
    evaluations: Sequence[EvalResult],
    steps: Iterable[Sequence[Mapping[str, Any]]],
) -> str:
    """The whole view.

    Args:
        summary: of the run, one line.
        metrics: columns by name, `step` among them.
        steps: rollouts as rows, of each step to show.
    """
    parts = [f"<p><code>{escape(safe_text(summary))}</code></p>", curve_of(metrics, evaluations)]
    shown = sorted({result.step for result in evaluations})
    shown = [*shown[:1], *shown[1:][-SHOWN:]]
    results = [_evaluation(result) for result in evaluations if result.step in shown]
    parts.append(_table(["step", "task", "held-out"], results))
    rows = [_rollout(row) for rollouts in steps for row in _first_of_prompts(rollouts)]
    parts.append(_table(["step", "prompt", "completion", "reward"], rows))
    return "\n".join(parts)


def curve_of(metrics: Mapping[str, Sequence[Any]], evaluations: Sequence[EvalResult]) -> str:
    """The mean reward of every step, and the held-out results with their intervals, as SVG; empty without any.

    The held-out result is pass@1, or the mean reward where the evaluated reward is graded.
    """
    rewards = zip(metrics["step"], metrics.get(REWARD_MEAN, []), strict=False)
    training = [(step, value) for step, value in rewards if value is not None]
    results = overall(evaluations)
    name = metric_of(results)
    heldout = [(result.step, interval) for result in results if (interval := result.metric(name)) is not None]
    if not training and not heldout:
        return ""
    values = [value for _, value in training]
    values += [bound for _, interval in heldout for bound in (interval.low, interval.high)]
    steps = [step for step, _ in (*training, *heldout)]
    x = _scale(min(steps), max(steps), LEFT, WIDTH - RIGHT)
    y = _scale(min(values), max(values), HEIGHT - BOTTOM, TOP)
    marks = [_axes(min(steps), max(steps), min(values), max(values), x, y)]
    line = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in training)
    marks.append(f'<polyline points="{line}" fill="none" stroke="{TRAINING}" stroke-width="1.5"/>')
    for step, interval in heldout:
        at = f"{x(step):.1f}"
        marks.append(
            f'<path d="M{at} {y(interval.low):.1f}V{y(interval.high):.1f}" stroke="{HELDOUT}"/>'
            f'<circle cx="{at}" cy="{y(interval.value):.1f}" r="3.5" fill="{HELDOUT}"/>'
        )
    marks.append(_text(LEFT, 14, "training reward", TRAINING))
    marks.append(_text(LEFT + 110, 14, f"held-out {name}", HELDOUT) if heldout else "")
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" style="max-width: {WIDTH}px" role="img" aria-label="learning curve" '
        f'font-family="sans-serif" font-size="11">{"".join(marks)}</svg>'
    )


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = high - low or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _axes(
    first: int, last: int, low: float, high: float, x: Callable[[float], float], y: Callable[[float], float]
) -> str:
    marks = []
    for value in (low, (low + high) / 2, high):
        level = f"{y(value):.1f}"
        marks.append(f'<path d="M{LEFT} {level}H{WIDTH - RIGHT}" stroke="currentColor" stroke-opacity="0.15"/>')
        marks.append(_text(LEFT - 6, y(value) + 4, f"{value:.3g}", anchor="end"))
    for step in dict.fromkeys((first, (first + last) // 2, last)):
        marks.append(_text(x(step), HEIGHT - BOTTOM + 16, f"step {step}", anchor="middle" if step < last else "end"))
    return "".join(marks)


def _text(x: float, y: float, text: str, color: str = "currentColor", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" text-anchor="{anchor}">{escape(text)}</text>'


def _first_of_prompts(rollouts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One rollout of each of some prompts."""
    prompts: dict[str, Mapping[str, Any]] = {}
    for row in rollouts:
        prompts.setdefault(row["prompt_id"], row)
    return list(prompts.values())[:SHOWN]


def _evaluation(result: EvalResult) -> list[str]:
    name = "pass@1" if result.pass_at_1 is not None else "reward"
    return [str(result.step), result.task, f"{name} {metric_text(name, result.metric(name))}"]


def _rollout(row: Mapping[str, Any]) -> list[str]:
    reward = row["reward"]
    prompt = json.loads(row["prompt"])[-1]["content"]
    return [str(row["step"]), prompt, row["completion"], row["outcome"] if reward is None else f"{reward:.3g}"]


def _table(titles: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    style = 'style="text-align: left; white-space: pre-wrap"'
    cells = ["".join(f"<td {style}>{escape(_short(text))}</td>" for text in row) for row in rows]
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _short(text: str) -> str:
    text = safe_text(text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
