"""Tables and a picture of the sweep of this recipe: answers and steps, before and after, and the arms seed by seed.

python recipes/step-rewards/compare.py sweeps/step-rewards recipes/step-rewards/arms.png
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import coterie
from coterie.board.figure import COLORS, INK, canvas, save, style_axis
from coterie.stats import t_interval

MEASURES = {
    "exact": "right answers",
    "valid_steps": "valid steps",
    "unsound": "of right answers: a wrong step",
    "faithful": "answer follows from the last step",
}
"""Reward parts of an evaluation, and what they are called."""
Shares = dict[str, float]
"""Part → its mean; `unsound` is missing where no answer is right."""


def main(sweep: Path, picture: Path | None) -> int:
    """Print the tables, and draw; the exit code."""
    arms = read(sweep)
    print("\n".join([*each_run(arms), "", *compared(arms)]))
    if picture is not None and not draw(picture, arms):
        print("matplotlib is not installed: pip install matplotlib", file=sys.stderr)
        return 1
    return 0


def read(sweep: Path) -> dict[str, dict[int, tuple[Shares, Shares]]]:
    """Arm → seed → what the evaluations before and after training say, of finished runs."""
    arms: dict[str, dict[int, tuple[Shares, Shares]]] = {}
    for folder in sorted((sweep / "runs").iterdir()):
        run = coterie.load_run(folder)
        if run.evaluations[-1].step == run.config.steps:
            arm = folder.name.partition("--seed-")[0].replace("_", " ")
            before, after = (dict(run.evaluations[place].reward_parts) for place in (0, -1))
            arms.setdefault(arm, {})[run.config.seed] = before, after
    return arms


def each_run(arms: Mapping[str, Mapping[int, tuple[Shares, Shares]]]) -> Iterator[str]:
    """A row for each run."""
    yield f"| arm | seed | {' | '.join(MEASURES.values())} |"
    yield "| --- | --: | " + " | ".join("---" for _ in MEASURES) + " |"
    for arm, seeds in arms.items():
        for seed, (before, after) in sorted(seeds.items()):
            cells = (f"{_percent(before, name)} → {_percent(after, name)}" for name in MEASURES)
            yield f"| {arm} | {seed} | {' | '.join(cells)} |"


def compared(arms: Mapping[str, Mapping[int, tuple[Shares, Shares]]]) -> Iterator[str]:
    """Gains of each arm, and the difference of the second to the first, seed by seed, with Student's 95 % intervals."""
    yield f"| points, mean over seeds | {' | '.join(MEASURES.values())} |"
    yield "| --- | " + " | ".join("---" for _ in MEASURES) + " |"
    for arm, seeds in arms.items():
        yield f"| {arm}: after − before | {' | '.join(_points(list(seeds.values()), name) for name in MEASURES)} |"
    first, *others = arms.items()
    for arm, seeds in others:
        both = [(first[1][seed][1], seeds[seed][1]) for seed in sorted(seeds) if seed in first[1]]
        yield f"| {arm} − {first[0]}, after | {' | '.join(_points(both, name) for name in MEASURES)} |"


def _points(pairs: Sequence[tuple[Shares, Shares]], name: str) -> str:
    gains = [100 * (second[name] - first[name]) for first, second in pairs if name in first and name in second]
    if not gains:
        return "–"
    estimate = t_interval(gains)
    value, low, high = (round(x, 1) + 0.0 for x in (estimate.value, estimate.low, estimate.high))  # no -0.0
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _percent(shares: Shares, name: str) -> str:
    return f"{shares[name]:.1%}".replace("%", " %") if name in shares else "–"


def draw(picture: Path, arms: Mapping[str, Mapping[int, tuple[Shares, Shares]]]) -> bool:
    """A panel for each measure, a line for each run from before to after; False without matplotlib."""
    figure = canvas(11, 3.2)
    if figure is None:
        return False
    for axis, (name, title) in zip(figure.subplots(1, len(MEASURES)), MEASURES.items(), strict=True):
        style_axis(axis, grid="y")
        for place, (arm, seeds) in enumerate(arms.items()):
            _lines(axis, name, seeds, place, arm)
        axis.set_xticks([x + 1.5 * place for place in range(len(arms)) for x in (0, 1)])
        axis.set_xticklabels(["before", "after"] * len(arms), fontsize=7)
        axis.set_title(title, fontsize=9, color=INK)
        axis.set_ylim(0, 102)
    figure.axes[0].set_ylabel("%")
    figure.axes[0].legend(frameon=False, fontsize=8, loc="lower left")
    save(figure, picture)
    return True


def _lines(axis: Any, name: str, seeds: Mapping[int, tuple[Shares, Shares]], place: int, arm: str) -> None:
    label: str | None = arm
    for before, after in seeds.values():
        if name in before and name in after:
            values = [100 * before[name], 100 * after[name]]
            axis.plot([1.5 * place, 1.5 * place + 1], values, "o-", color=COLORS[place], alpha=0.6, label=label)
            label = None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None))
