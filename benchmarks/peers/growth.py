"""How a step's time and memory grow with its rollouts, its groups, its prompts and its completions."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.peers import growth_plot
from benchmarks.peers.growth_step import MODEL, Sizes, heading, use_threads
from coterie.errors import CoterieError

POINT_DEADLINE_S = 900.0
"""Wall-clock limit of one point."""
MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One size that grows while the others stand still."""

    name: str
    """File name."""
    title: str
    axis: str
    sizes: tuple[Sizes, ...]
    xs: tuple[int, ...]
    """What stands on the horizontal axis, by point."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What was measured at one size."""

    x: int
    sizes: Sizes
    generate: float
    """Seconds."""
    update: float
    """Seconds."""
    loaded: int
    """Peak resident bytes before the step."""
    generate_peak: int
    """Peak resident bytes up to the end of generating."""
    peak: int
    """Peak resident bytes up to the end of the update."""


def curves(quick: bool) -> tuple[Curve, ...]:
    """The four curves; `quick` has the first three points of each, of half the completion length."""
    base = Sizes(prompts=4, group_size=8, prompt=64, completion=16 if quick else 32)
    many = 3 if quick else 4
    prompts, groups = (1, 2, 4, 8, 16)[:many] if quick else (2, 4, 8, 16), (2, 4, 8, 16)[:many]
    lengths, completions = (64, 256, 1024, 2048)[:many], ((8, 16, 32) if quick else (16, 64, 128, 256))
    wide = replace(base, prompt=256)
    return (
        _curve("rollouts", "rollouts per step (prompts × 8)", "rollouts", base, "prompts", prompts, each=8),
        _curve("group_size", "group size, 4 prompts of 256 tokens", "rollouts per prompt", wide, "group_size", groups),
        _curve("prompt_length", "prompt length, 4 prompts × 8 rollouts", "tokens per prompt", base, "prompt", lengths),
        _curve(
            "completion_length",
            "completion length, 4 prompts × 8 rollouts",
            "tokens per completion",
            base,
            "completion",
            completions,
        ),
    )


def _curve(
    name: str, title: str, axis: str, start: Sizes, growing: str, values: tuple[int, ...], *, each: int = 1
) -> Curve:
    """The sizes in which the field `growing` of `start` takes each value; the axis counts `each` for one of it."""
    sizes = tuple(replace(start, **{growing: value}) for value in values)
    return Curve(name=name, title=title, axis=axis, sizes=sizes, xs=tuple(each * value for value in values))


def ideal(points: Sequence[Point], measured: str) -> list[float]:
    """What each point would be if cost followed the work, from the first point on.

    Seconds follow the tokens that must be processed, each prompt once: for rollouts per step a line through zero, for
    a group that shares its prompt, and for lengths, a line that starts higher. Memory would not grow at all.
    """
    first = points[0]
    value = float(getattr(first, measured))
    if measured == "peak":
        return [value for _ in points]
    return [value * point.sizes.tokens / first.sizes.tokens for point in points]


def exponent(points: Sequence[Point], measured: str) -> float:
    """Slope of log(seconds) against log(tokens) between the last two points: 1 is linear; nan for one point."""
    if len(points) < 2:
        return math.nan
    before, last = points[-2:]
    tokens = math.log(last.sizes.tokens / before.sizes.tokens)
    return math.log(getattr(last, measured) / getattr(before, measured)) / tokens


def measure(x: int, sizes: Sizes, model: str = MODEL) -> Point:
    """One point, in a fresh process.

    Raises:
        CoterieError: the process failed, or took longer than `POINT_DEADLINE_S`.
    """
    command = [sys.executable, "-m", "benchmarks.peers.growth_worker", json.dumps(asdict(sizes) | {"model": model})]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=POINT_DEADLINE_S)
    except subprocess.TimeoutExpired as error:
        raise CoterieError(f"{sizes} took longer than {POINT_DEADLINE_S:g} s; measure on a quiet machine") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing was printed"])[-1]
        raise CoterieError(f"measuring {sizes} failed with exit code {done.returncode}: {last}")
    return Point(x=x, sizes=sizes, **json.loads(done.stdout.splitlines()[-1]))


def table(curve: Curve, points: Sequence[Point]) -> list[str]:
    """Markdown of one curve."""
    lines = [
        f"## {curve.title}",
        "",
        f"| {curve.axis} | tokens | generate s | ideal | update s | ideal | peak MiB | before the step |",
        "| --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    ideals = {name: ideal(points, name) for name in ("generate", "update")}
    for index, point in enumerate(points):
        seconds = " | ".join(f"{getattr(point, name):.2f} | {ideals[name][index]:.2f}" for name in ideals)
        memory = f"{point.peak / MIB:.0f} | {point.loaded / MIB:.0f}"
        lines.append(f"| {point.x} | {point.sizes.tokens} | {seconds} | {memory} |")
    slopes = ", ".join(f"{name} {exponent(points, name):.2f}" for name in ("generate", "update"))
    return [*lines, "", f"Exponent in tokens, last two points (1 is linear): {slopes}.", ""]


def run(out: Path, quick: bool) -> None:
    """Measure all curves; print Markdown, and write it with `growth.json` and one picture a curve into `out`.

    Under 10 minutes on two quiet cores, under 3 when quick.

    Raises:
        CoterieError: a point could not be measured.
    """
    out.mkdir(parents=True, exist_ok=True)
    use_threads()
    lines = [*heading("Growth"), *EXPLANATION]
    print("\n".join(lines), flush=True)
    record: dict[str, list[dict[str, object]]] = {}
    for curve in curves(quick):
        points = [measure(x, sizes) for x, sizes in zip(curve.xs, curve.sizes, strict=True)]
        record[curve.name] = [asdict(point) for point in points]
        text = table(curve, points)
        if growth_plot.draw(out / f"growth_{curve.name}.png", curve, points, ideal):
            text += [f"![{curve.title}](growth_{curve.name}.png)", ""]
        print("\n".join(text), flush=True)
        lines += text
    (out / "growth.json").write_text(json.dumps({"machine": lines[2], "curves": record}, indent=2) + "\n")
    (out / "growth.md").write_text("\n".join(lines))


EXPLANATION = [
    f"{MODEL}, every completion runs to its limit, every point in a fresh process, one generate call and one update "
    "(with its optimizer step) after a step of a few tokens. Ideal: seconds in proportion to the tokens that must be "
    "processed (each prompt once), from the first point; memory that stays where it is.",
    "",
]
