"""The optimal token baseline: hand-worked numbers, an independent formula, and exact unbiasedness."""

from __future__ import annotations

from itertools import product
from math import log

import numpy as np
import pytest
from attempts import batch
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.algo.advantages import credit
from coterie.algo.token_baseline import optimal_token_baselines, token_energies
from coterie.config.load import load
from coterie.config.objective import AdvantageConfig
from coterie.errors import ConfigError

MEMBERS = st.lists(
    st.tuples(st.floats(-5, 5, width=16), st.lists(st.floats(-3, 0, width=16), min_size=1, max_size=5)),
    min_size=2,
    max_size=4,
)


def slow(rewards: list[float], energies: list[list[float]]) -> list[list[float]]:
    """The formula token by token."""
    out = []
    for i, energy in enumerate(energies):
        others = [j for j in range(len(rewards)) if j != i]
        row = []
        for t in range(len(energy)):
            pairs = [(energies[j][t], rewards[j]) for j in others if t < len(energies[j])]
            total = sum(w for w, _ in pairs)
            mean = sum(rewards[j] for j in others) / len(others)
            row.append(sum(w * r for w, r in pairs) / total if total > 0 else mean)
        out.append(row)
    return out


@settings(max_examples=80, deadline=None)
@given(members=MEMBERS)
def test_it_is_the_formula_token_by_token(members: list[tuple[float, list[float]]]) -> None:
    rewards = [reward for reward, _ in members]
    energies = [token_energies(logprobs) for _, logprobs in members]
    got = optimal_token_baselines(np.array(rewards), energies)
    for baseline, reference in zip(got, slow(rewards, [row.tolist() for row in energies]), strict=True):
        np.testing.assert_allclose(baseline, reference, atol=1e-9)


def test_equal_energies_give_leave_one_out_and_a_longer_rollout_the_mean_of_the_others() -> None:
    groups, rollouts = batch([[1.0, 0.0, 0.0]], [[2, 2, 4]])
    config = AdvantageConfig(baseline="optimal_token", scale="none")
    values = [x.advantage for x in credit(groups, rollouts, config, clip_low=0.2, clip_high=0.2)]
    assert values[0] == 1.0  # the others have 0 at every token
    np.testing.assert_allclose(values[1], -0.5)
    np.testing.assert_allclose(values[2], -0.5)  # tokens 3 and 4: nobody else has any; the mean of the others


def test_a_group_of_equal_rewards_and_empty_rollouts_learn_nothing_false() -> None:
    groups, rollouts = batch([[1.0, 1.0], [0.0, 1.0]], [[2, 3], [0, 0]])
    config = AdvantageConfig(baseline="optimal_token", scale="none")
    values = [x.advantage for x in credit(groups, rollouts, config, clip_low=0.2, clip_high=0.2)]
    assert values == [0.0, 0.0, -1.0, 1.0]


def test_a_group_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="a group of 1 has no optimal_token baseline; expected at least 2 rollouts"):
        optimal_token_baselines(np.ones(1), [np.ones(2)])


P_FIRST, P_SECOND = 0.3, np.array([0.6, 0.25, 0.15])
"""The first token stops with this probability; else one of three second tokens follows."""
SEQUENCES = [(0,), (1, 0), (1, 1), (1, 2)]
REWARDS = [0.2, 1.0, 0.0, -0.5]


def logprobs(sequence: tuple[int, ...]) -> list[float]:
    first = log(P_FIRST) if sequence[0] == 0 else log(1 - P_FIRST)
    return [first, *(log(P_SECOND[token]) for token in sequence[1:])]


def scores(sequence: tuple[int, ...]) -> list[np.ndarray]:
    """[C] gradients of the log-probs with respect to the logits, four in all (one of the first choice)."""
    first = np.array([(1 - P_FIRST) if sequence[0] == 0 else -P_FIRST, 0.0, 0.0, 0.0])
    return [first, *(np.concatenate([[0.0], np.eye(3)[token] - P_SECOND]) for token in sequence[1:])]


@pytest.mark.parametrize("size", [2, 3])
def test_the_expected_gradient_is_exact(size: int) -> None:
    total, plain = np.zeros(4), np.zeros(4)
    for draw in product(range(len(SEQUENCES)), repeat=size):
        chance = float(np.exp(sum(sum(logprobs(SEQUENCES[k])) for k in draw)))
        rewards = np.array([REWARDS[k] for k in draw])
        baselines = optimal_token_baselines(rewards, [token_energies(logprobs(SEQUENCES[k])) for k in draw])
        for k, baseline in zip(draw, baselines, strict=True):
            for b, score in zip(baseline, scores(SEQUENCES[k]), strict=True):
                total += chance * (REWARDS[k] - b) * score
                plain += chance * REWARDS[k] * score
    np.testing.assert_allclose(total, plain, atol=1e-12)


def test_what_it_does_not_go_with_is_refused() -> None:
    settings = ["--algorithm", "otb", "--advantage.whiten", "tokens"]
    with pytest.raises(ConfigError, match=r'set advantage\.whiten = "none", advantage\.per_reward = false'):
        load(settings, env={})
