"""Custom baselines: the read-only view of a step that a user's function gets, and the call of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from coterie.grouping.arrays import Groups
from coterie.grouping.features import Column
from coterie.grouping.memory import PromptTable, RecentSteps
from coterie.stats import Floats, Ints


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PastStep:
    """The groups of one past step; P of them."""

    time: float
    prompts: tuple[str, ...]
    """[P] ids."""
    means: Floats
    """[P] mean reward."""
    weights: Floats
    """[P] weight of the group: about its number of rollouts."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class View:
    """Input of a custom baseline: the step's N scored rollouts, and the steps before. No array can be written to."""

    rewards: Floats
    """[N] in the reward's own units. A rollout's own reward must not enter its own baseline."""
    prompts: tuple[str, ...]
    """[N] prompt id of each rollout."""
    groups: tuple[Ints, ...]
    """One a prompt: the places of its rollouts in the other arrays."""
    features: Floats
    """[N, F] standardised features of the prompt."""
    columns: tuple[Column, ...]
    """[F] names and units of the features."""
    weights: Floats
    """[N] weight of each rollout (`grouping.weights`), about 1 on average."""
    time: float
    """Of this step: the steps that the estimator has learned from."""
    history: tuple[PastStep, ...]
    """At most the last 60 steps, oldest first."""
    history_mean: float
    """Faded mean reward of the steps before; the middle of the range before the first."""


CustomBaseline = Callable[[View], Sequence[float] | Floats]
"""The baseline of each rollout, [N] in the reward's units. The same view must give the same numbers."""


def view_of(
    groups: Groups,
    columns: tuple[Column, ...],
    prompt_table: PromptTable,
    window: RecentSteps,
    bounds: tuple[float, float],
) -> View:
    """View of a step and its history in reward units; `bounds` correspond to 0 and 1 of the estimator's units."""
    low, high = bounds
    names = list(prompt_table.index)
    history = [
        PastStep(
            time=step.time,
            prompts=tuple(names[row] for row in step.rows),
            means=_read_only(low + (high - low) * step.mean),
            weights=_read_only(step.evidence.copy()),
        )
        for step in window.steps
    ]
    return View(
        rewards=_read_only(low + (high - low) * groups.rewards),
        prompts=tuple(groups.prompts[g] for g in groups.of),
        groups=tuple(_read_only(np.flatnonzero(groups.of == g)) for g in range(len(groups.prompts))),
        features=_read_only(groups.features[groups.of]),
        columns=columns,
        weights=_read_only(groups.weights.copy()),
        time=groups.time,
        history=tuple(history),
        history_mean=low + (high - low) * groups.history_mean,
    )


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def call_baseline(function: CustomBaseline, view: View, name: str) -> Floats:
    """[N] the function's baselines, checked."""
    count = view.rewards.size
    try:
        baselines = np.asarray(function(view), dtype=np.float64)
    except Exception as error:  # the user's own code
        raise ValueError(f"the baseline {name!r} raised {type(error).__name__}: {error}") from error
    if baselines.shape != (count,) or not np.isfinite(baselines).all():
        fault = "numbers that are not finite" if baselines.shape == (count,) else baselines.shape
        raise ValueError(
            f"the baseline {name!r} gave {fault}; expected {count} finite numbers, one a rollout of `view.rewards`"
        )
    return baselines
