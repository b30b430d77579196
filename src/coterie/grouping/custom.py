"""A baseline of the user's own: what it may read, how it is asked, and whether it reads what it must not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from coterie.grouping.arrays import Groups
from coterie.grouping.features import Column
from coterie.grouping.memory import PromptTable, Window
from coterie.stats import Floats, Ints

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Past:
    """The groups of one past step; P of them."""

    time: float
    prompts: tuple[str, ...]
    """[P] ids."""
    means: Floats
    """[P] mean reward."""
    weights: Floats
    """[P] what the group counts for: about its number of rollouts."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class View:
    """What a baseline of the user's own may read: the step's N scored rollouts, and the steps before. No array can be
    written to."""

    rewards: Floats
    """[N] in the reward's own units. A rollout's own reward must not enter its own baseline."""
    prompts: tuple[str, ...]
    """[N] prompt id of each rollout."""
    groups: tuple[Ints, ...]
    """One a prompt: the places of its rollouts in the other arrays."""
    features: Floats
    """[N, F] standardised features of the prompt."""
    columns: tuple[Column, ...]
    """[F] what the features are."""
    weights: Floats
    """[N] what each rollout counts for (`grouping.weights`), about 1 on average."""
    time: float
    """Of this step: the steps that the estimator has learned from."""
    history: tuple[Past, ...]
    """At most the last 60 steps, oldest first."""
    known: float
    """Faded mean reward of the steps before; the middle of the range before the first."""


CustomBaseline = Callable[[View], Sequence[float] | Floats]
"""The baseline of each rollout, [N] in the reward's units. The same view must give the same numbers."""


def view_of(
    groups: Groups, columns: tuple[Column, ...], book: PromptTable, window: Window, bounds: tuple[float, float]
) -> View:
    """A step and those before it in the reward's own units; `bounds` are what 0 and 1 of the estimator's stand for."""
    low, high = bounds
    names = list(book.rows)
    history = [
        Past(
            time=step.time,
            prompts=tuple(names[row] for row in step.rows),
            means=_locked(low + (high - low) * step.mean),
            weights=_locked(step.evidence.copy()),
        )
        for step in window.steps
    ]
    return View(
        rewards=_locked(low + (high - low) * groups.rewards),
        prompts=tuple(groups.prompts[g] for g in groups.of),
        groups=tuple(_locked(np.flatnonzero(groups.of == g)) for g in range(len(groups.prompts))),
        features=_locked(groups.features[groups.of]),
        columns=columns,
        weights=_locked(groups.weights.copy()),
        time=groups.time,
        history=tuple(history),
        known=low + (high - low) * groups.known,
    )


def _locked(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def ask(function: CustomBaseline, view: View, name: str) -> Floats:
    """[N] what the function says.

    Raises:
        ValueError: it raised, or gave something else than N finite numbers.
    """
    count = view.rewards.size
    try:
        found = np.asarray(function(view), dtype=np.float64)
    except Exception as error:  # the user's own code
        raise ValueError(f"the baseline {name!r} raised {type(error).__name__}: {error}") from error
    if found.shape != (count,) or not np.isfinite(found).all():
        raise ValueError(
            f"the baseline {name!r} gave {'numbers that are not finite' if found.shape == (count,) else found.shape}; "
            f"expected {count} finite numbers, one a rollout of `view.rewards`"
        )
    return found
