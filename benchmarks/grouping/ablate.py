"""What is each signal and each scale worth on recorded rollouts? No training: the same rollouts, other baselines.

python benchmarks/grouping/ablate.py RUN [RUN …] [--out ablation.json]

Every variant of the estimator is shown a run's rollouts in their order, step by step, and says a baseline b for each
before it learns from it. Since b never contains its own reward r, E[(r - b)²] is p (1 - p) + (b - p)², and siblings say
what p (1 - p) is: what is left is the baseline's squared error, which adds to the gradient's variance. The runs' own
rollouts do not depend on the variant, so differences between variants are paired by run.

The features are those of the run's first step: of the model as it was before training.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from gradients import recorded

from coterie.build.learner import group_aware_estimator
from coterie.build.reading import read_inputs
from coterie.build.run import embed_for, policy_for, use_threads
from coterie.callbacks import Callback
from coterie.config.load import load_file
from coterie.grouping.arrays import Rollouts
from coterie.grouping.estimator import GroupAwareEstimator
from coterie.grouping.features import Column
from coterie.grouping.model import GroupAwareBaseline
from coterie.grouping.presets import SCALES, Settings
from coterie.runs import parquet
from coterie.runs.durable import json_dumps, write_file
from coterie.stats import t_interval
from coterie.text import interval_text

EARLY = 10
"""Steps that a prompt's own memory has had no time to fill."""
SIGNALS = ("semantic", "complexity", "task", "reward", "temporal")
FULL = "mixture"
OTHERS = ("rloo", "global", "tracker", "js2", "empirical_bayes")
"""Presets that claim to leave the own reward out; the group's mean, which does not, cannot be judged like this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Error:
    """Of one variant on one run, in squared rewards."""

    whole: float
    early: float
    """Of the first `EARLY` steps."""
    power: float
    """E[w (r - b)²], which the gradient's variance is made of; w is the rollout's length over the mean."""


def variants() -> Iterator[tuple[str, str, Settings]]:
    """(name, preset, settings)."""
    yield FULL, FULL, Settings()
    for name in (*SIGNALS, *sorted(SCALES - {"key"})):
        yield f"− {name}", FULL, Settings().without(name)
    for name in OTHERS:
        yield name, name, Settings()


def judge(stream: Sequence[Rollouts], columns: tuple[Column, ...], preset: str, settings: Settings) -> Error:
    """Show a stream of steps to one variant."""
    model = GroupAwareBaseline(columns, preset=preset, settings=settings, seed=0)
    squares, floors, powers = [], [], []
    for rollouts in stream:
        error = rollouts.rewards - model.predict(rollouts)
        weights = np.ones(error.size) if rollouts.weights is None else rollouts.weights / rollouts.weights.mean()
        squares.append(float(np.mean(error**2)))
        powers.append(float(np.mean(weights * error**2)))
        floors.append(floor(rollouts))
        model.observe(rollouts)
    excess = np.array(squares) - np.array(floors)
    return Error(whole=float(excess.mean()), early=float(excess[:EARLY].mean()), power=float(np.mean(powers)))


def floor(rollouts: Rollouts) -> float:
    """Mean over rollouts of p (1 - p), from siblings: unbiased, and equal for every variant.

    Raises:
        ValueError: a rollout has no sibling.
    """
    total = 0.0
    names = np.array(rollouts.prompts)
    for name in dict.fromkeys(rollouts.prompts):
        group = rollouts.rewards[names == name]
        if group.size < 2:
            raise ValueError(f"prompt {name} has a single rollout: nothing says how far its rewards spread")
        total += group.size * float(group.var(ddof=1))
    return total / names.size


def judges(runs: Sequence[Path]) -> Iterator[tuple[Path, GroupAwareEstimator]]:
    """Every run with a judge that knows its questions' features. Runs on the same data share the model's answers."""
    estimators: dict[str, GroupAwareEstimator] = {}
    for run in runs:
        config = load_file(run / "config.toml").config
        same = repr(
            (config.model, config.data, config.grouping.embedding, config.grouping.key, config.grouping.weights)
        )
        if same not in estimators:
            use_threads(config)
            inputs = read_inputs(config, Callback())
            grouping = config.grouping.model_copy(update={"preset": FULL, "ablate": []})
            config = config.model_copy(update={"grouping": grouping})
            embed = embed_for(config, inputs, policy_for(config, inputs))
            estimators[same] = group_aware_estimator(config, inputs.train.prompts, embed)
        yield run, estimators[same]


def streams(runs: Sequence[Path]) -> Iterator[tuple[Path, list[Rollouts], tuple[Column, ...]]]:
    """Every run's steps with the features that its questions have."""
    for run, judge in judges(runs):
        steps, features = parquet.steps(run / "rollouts"), judge.features
        yield run, [recorded(run, number, features, judge.config.weights) for number in steps], features.map.columns


def table(results: Mapping[str, Mapping[str, Error]]) -> str:
    """Markdown: [variant] → what it says, paired by run."""
    lines = [
        f"| baseline | squared error | more than {FULL} | first {EARLY} steps | gradient power over {FULL}'s |",
        "| --- | --- | --- | --- | --- |",
    ]
    full, text = results[FULL], partial(interval_text, digits=4)
    for name, errors in results.items():
        whole = t_interval([error.whole for error in errors.values()])
        more = t_interval([error.whole - full[run].whole for run, error in errors.items()])
        early = t_interval([error.early for error in errors.values()])
        power = t_interval([error.power / full[run].power for run, error in errors.items()])
        rest = ["–", text(early), "1"] if name == FULL else [text(more, sign="+"), text(early), text(power, digits=3)]
        lines.append(f"| {name} | {text(whole)} | " + " | ".join(rest) + " |")
    return "\n".join(lines)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("runs", nargs="+", type=Path)
    words.add_argument("--out", type=Path, help="JSON of every number")
    given = words.parse_args()
    results: dict[str, dict[str, Error]] = {name: {} for name, _, _ in variants()}
    for run, stream, columns in streams(given.runs):
        for name, preset, settings in variants():
            results[name][str(run)] = judge(stream, columns, preset, settings)
    if given.out:
        plain = {
            name: {run: {key: getattr(error, key) for key in Error.__slots__} for run, error in errors.items()}
            for name, errors in results.items()
        }
        write_file(given.out, json_dumps(plain).encode())
    print(f"{len(given.runs)} runs; means over them with Student's 95 % interval\n\n{table(results)}")


if __name__ == "__main__":
    main()
