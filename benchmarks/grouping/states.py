"""What is the scale `state` worth on recorded episodes? No training: the same turns, with and without it.

python benchmarks/grouping/states.py RUN [RUN …]

A run with an environment of several turns gives its episodes. Step by step mixture says a baseline for each of them
before it learns from it. The turns after the first then have the episode's baseline, or one that knows what other
attempts still earned from the same state. E[w (return - baseline)²] is what the gradient's variance is made of; w is
the turn's Σ (1 - p)². Neither baseline holds its own return, so the smaller is the better. Groups are cut to smaller
sizes too: with two attempts a state is seldom shared.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ablate import judges

from coterie.algo.turns import episode_of, given_by_environment
from coterie.grouping.arrays import Rollouts
from coterie.grouping.estimator import GroupAwareEstimator, probability_weight, sampled_weights
from coterie.grouping.presets import STATE, Settings
from coterie.grouping.reward_models import PartwiseBaseline
from coterie.runs import parquet
from coterie.runs import rollouts as store
from coterie.stats import t_interval
from coterie.text import interval_text
from coterie.types import Rollout

SIZES = (2, 4, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """Of one run at one group size."""

    shared: float
    """Share of the later turns whose state another attempt came to."""
    power: float
    """Of all later turns with the scale, over that without."""
    met: float
    """The same of those whose state is shared."""


def measure(run: Path, judge: GroupAwareEstimator, size: int) -> Worth:
    """Every step with the first `size` attempts at each prompt."""
    model = PartwiseBaseline(
        judge.features.map.columns, preset=judge.config.preset, settings=Settings(config=judge.config), seed=0
    )
    turns = np.concatenate([_later(model, judge, rows, float(n)) for n, rows in _steps(run, size)])
    met = turns[:, 2] > 0
    with_it, without = turns[:, 0], turns[:, 1]
    return Worth(
        shared=float(met.mean()),
        power=float(with_it.sum() / without.sum()),
        met=float(with_it[met].sum() / without[met].sum()) if met.any() else float("nan"),
    )


def _steps(run: Path, size: int) -> Iterator[tuple[int, list[Rollout]]]:
    for number in parquet.steps(run / "rollouts"):
        rows = [record.rollout for record in store.read_step(run / "rollouts", number)]
        yield number, [rollout for rollout in rows if rollout.reward is not None and rollout.sample < size]


def _later(model: PartwiseBaseline, judge: GroupAwareEstimator, rows: Sequence[Rollout], time: float) -> np.ndarray:
    """[turns, 3] of the turns after the first: w (return - baseline)² with the scale and without, and whether it moved
    the baseline."""
    names = tuple(rollout.context.prompt_id for rollout in rows)
    totals = np.array([rollout.reward for rollout in rows], dtype=np.float64)
    step = {
        "": Rollouts(
            prompts=names,
            rewards=totals,
            features=judge.features.of(names),
            time=time,
            weights=sampled_weights(rows, judge.config.weights),
        )
    }
    given = given_by_environment(judge.terms.environment, "")
    episodes = [episode_of(rollout, float(total), given) for rollout, total in zip(rows, totals, strict=True)]
    verdict = model.explain(step, {"": episodes})
    squares = [
        (weight * (advantage - moved) ** 2, weight * advantage**2, moved != 0)
        for rollout, advantage, states in zip(rows, verdict.advantages, verdict.states[STATE], strict=True)
        for turn, moved in list(zip(rollout.turns, states, strict=True))[1:]
        for weight in [probability_weight(turn.sampler_logprobs)]
    ]
    model.observe(step)
    return np.array(squares, dtype=np.float64).reshape(-1, 3)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("runs", nargs="+", type=Path)
    given = words.parse_args()
    worths_of = {size: [measure(run, judge, size) for run, judge in judges(given.runs)] for size in SIZES}
    print(f"{len(given.runs)} runs; turns after the first; means over runs with Student's 95 % interval\n")
    print("| attempts | states that others came to | gradient power with / without | where others came |")
    print("| --- | --- | --- | --- |")
    for size, worths in worths_of.items():
        shared = interval_text(t_interval([worth.shared for worth in worths]), digits=2)
        power, met = (
            interval_text(t_interval([getattr(worth, name) for worth in worths]), digits=3) for name in ("power", "met")
        )
        print(f"| {size} | {shared} | {power} | {met} |")


if __name__ == "__main__":
    main()
