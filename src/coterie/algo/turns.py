"""Rewards and credit of the turns of an episode, and the tokens that they belong to."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from coterie.algo.grouping.anchors import Episode
from coterie.types import Rollout


def turn_rewards(rollout: Rollout, total: float, given: float) -> np.ndarray:
    """[K] what each turn earned, adding up to `total`: what the environment gave for it, and at the last turn the rest.

    Args:
        total: reward of the rollout, or of one part of it; NaN where there is none.
        given: how much of it the environment's rewards count for, times: the weight of that part; 0 = not at all.
    """
    earned = given * np.array([turn.reward for turn in rollout.turns], dtype=np.float64)
    earned[-1] += total - float(earned.sum())
    return earned


def episode_of(rollout: Rollout, total: float, given: float) -> Episode:
    """The rollout as states are compared; see `turn_rewards`. A turn whose state has no name is alone in it."""
    states = [turn.state if turn.state is not None else (rollout.id, k) for k, turn in enumerate(rollout.turns)]
    return Episode(
        prompt=f"{rollout.context.prompt_id}@{rollout.context.version}",
        states=tuple(states),
        rewards=turn_rewards(rollout, total, given),
    )


def spread(values: np.ndarray, rollout: Rollout) -> np.ndarray:
    """[K] → [C]: the value of a turn for each of its tokens."""
    return np.repeat(values, [len(turn.tokens) for turn in rollout.turns])


def given_by_environment(weights: Mapping[str, float], label: str) -> float:
    """Weight of the environment's rewards in one part of the reward, or in the whole one, whose label is empty.

    Args:
        weights: of the parts that are the environment's, by label.
    """
    return sum(weights.values()) if not label else float(label in weights)


def has_states(rollout: Rollout) -> bool:
    """Whether it is an episode of an environment of several turns, whose turns carry the name of their state.

    How many turns it took must not be asked: that depends on what was sampled, and an advantage that only longer
    episodes get biases the gradient.
    """
    return any(turn.state is not None for turn in rollout.turns)
