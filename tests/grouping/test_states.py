"""The scale of single states: exact weights, and an expected gradient that is the true one, by enumeration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from coterie.algo.turns import Episode, Prior, anchor_advantages, anchor_corrections, state_peers

NEXT = {0: "start", 1: "x", 2: "x"}  # one action comes back, two others meet
FIRST = np.array([0.1, 0.4, 0.0])
SECOND = {"start": np.array([0.3, 0.0, 0.2]), "x": np.array([0.0, 0.9, 0.5])}
ATTEMPTS = 3

Credit = Callable[[Sequence[Episode]], list[np.ndarray]]
"""Episodes of a step → advantage of each turn of each."""


def policy(logits: dict[str, np.ndarray], state: str) -> np.ndarray:
    weights = np.exp(logits[state] - logits[state].max())
    return weights / weights.sum()


def episodes_of(actions: tuple[int, int]) -> Episode:
    first, second = actions
    state = NEXT[first]
    rewards = np.array([FIRST[first], SECOND[state][second]])
    return Episode(prompt="q", states=("start", state), rewards=rewards)


def score(logits: dict[str, np.ndarray], state: str, action: int) -> dict[str, np.ndarray]:
    """Gradient of log p(action) by the logits of its state."""
    return {state: np.eye(3)[action] - policy(logits, state)}


def expected_gradient(credit: Credit) -> np.ndarray:
    """Over all outcomes of three attempts of two turns, exactly; the true one where credit is the whole return."""
    rng = np.random.default_rng(0)
    logits = {state: rng.normal(size=3) for state in ("start", "x")}
    paths = list(product(range(3), range(3)))
    total = {state: np.zeros(3) for state in logits}
    for chosen in product(paths, repeat=ATTEMPTS):
        chance = 1.0
        for first, second in chosen:
            chance *= policy(logits, "start")[first] * policy(logits, NEXT[first])[second]
        advantages_of = credit([episodes_of(path) for path in chosen])
        for path, advantages in zip(chosen, advantages_of, strict=True):
            states = ("start", NEXT[path[0]])
            for state, action, advantage in zip(states, path, advantages, strict=True):
                total[state] += chance * advantage / ATTEMPTS * score(logits, state, action)[state]
    return np.concatenate([total[state] for state in sorted(total)])


def siblings(episodes: Sequence[Episode]) -> np.ndarray:
    totals = np.array([episode.rewards.sum() for episode in episodes])
    return (totals.sum() - totals) / (len(totals) - 1)


def beliefs(count: int, *, mean: float = 0.5, variance: float = 0.1, noise: float = 0.2) -> Prior:
    return Prior(mean=np.full(count, mean), variance=np.full(count, variance), noise=np.full(count, noise))


def by_state(episodes: Sequence[Episode]) -> list[np.ndarray]:
    """[K] advantages of each episode's turns, as group-aware credit computes them."""
    baselines = siblings(episodes)
    corrections = anchor_corrections(episodes, baselines, beliefs(len(episodes)), 0.25)
    return [
        episode.rewards.sum() - base - delta
        for episode, base, delta in zip(episodes, baselines, corrections, strict=True)
    ]


def group_in_group(episodes: Sequence[Episode]) -> list[np.ndarray]:
    """GiGPO without a discount, its own attempt left out of both means: twice the gradient."""
    outcome = [episode.rewards.sum() - base for episode, base in zip(episodes, siblings(episodes), strict=True)]
    # Where nobody else came, GiGPO says nothing, and what is missing there is no baseline but the return itself.
    returns = [np.cumsum(episode.rewards[::-1])[::-1] for episode in episodes]
    anchored = [
        np.where(peers.episodes > 0, advantages, gained)
        for advantages, peers, gained in zip(
            anchor_advantages(episodes, 1.0), state_peers(episodes), returns, strict=True
        )
    ]
    return [total + of_states for total, of_states in zip(outcome, anchored, strict=True)]


def with_itself(episodes: Sequence[Episode]) -> list[np.ndarray]:
    """The mean of a state over all its visits, own ones included."""
    returns = [np.cumsum(episode.rewards[::-1])[::-1] for episode in episodes]
    visits = [
        (state, value)
        for episode, gained in zip(episodes, returns, strict=True)
        for state, value in zip(episode.states, gained, strict=True)
    ]
    return [
        np.array(
            [g - np.mean([v for s, v in visits if s == state]) for state, g in zip(episode.states, gained, strict=True)]
        )
        for episode, gained in zip(episodes, returns, strict=True)
    ]


def without_the_visit(episodes: Sequence[Episode]) -> list[np.ndarray]:
    """Only the visit itself is left out: where an attempt came back, its own future is still in its baseline."""
    returns = [np.cumsum(episode.rewards[::-1])[::-1] for episode in episodes]
    visits = [
        (number, turn, state, returns[number][turn])
        for number, episode in enumerate(episodes)
        for turn, state in enumerate(episode.states)
    ]

    def advantage(number: int, turn: int, state: object) -> float:
        others = [value for who, when, where, value in visits if where == state and (who, when) != (number, turn)]
        return returns[number][turn] - (np.mean(others) if others else 0.0)

    return [
        np.array([advantage(number, turn, state) for turn, state in enumerate(episode.states)])
        for number, episode in enumerate(episodes)
    ]


@pytest.fixture(scope="module")
def true() -> np.ndarray:
    return expected_gradient(lambda episodes: [np.full(2, episode.rewards.sum()) for episode in episodes])


def test_the_expected_gradient_is_the_true_one(true: np.ndarray) -> None:
    assert np.abs(true).max() > 0.01
    np.testing.assert_allclose(expected_gradient(by_state), true, atol=1e-15)
    np.testing.assert_allclose(expected_gradient(group_in_group), 2 * true, atol=1e-15)


@pytest.mark.parametrize("credit", [with_itself, without_the_visit])
def test_a_mean_that_holds_its_own_attempt_has_another_gradient(credit: Credit, true: np.ndarray) -> None:
    assert np.abs(expected_gradient(credit) - true).max() > 1e-3


def test_the_hand_worked_example() -> None:
    """The second attempt meets the first and the third in `b`, where they had 1 and 0 still to come; the fourth, which
    earned nothing, says by its total alone what the prompt is."""
    episodes = [
        Episode(prompt="q", states=("a", "b"), rewards=np.array([0.0, 1.0])),
        Episode(prompt="q", states=("a", "b"), rewards=np.array([0.5, 0.0])),
        Episode(prompt="q", states=("a", "b"), rewards=np.array([0.25, 0.0])),
        Episode(prompt="q", states=("a", "c"), rewards=np.array([0.0, 0.0])),
    ]
    baselines = np.array([0.25, 0.5, 0.5, 0.6])
    moved = anchor_corrections(episodes, baselines, beliefs(4), 0.25)
    # v' = 1 / (10 + 5) = 1/15, m' = 1/15 · 10 · 0.5 = 1/3, τ = 0.05, w = (7/60 · 2) / (7/60 · 2 + 0.2) = 7/13.
    weight = 7 / 13
    np.testing.assert_allclose(moved[1], [0.0, (1 - weight) * (1 / 3 - 0.5) + weight * 0.5 - 0.0])
    np.testing.assert_allclose(moved[0], [0.0, (1 - weight) / 3 + weight * 0.0 - 0.25])
    assert moved[3].tolist() == [0.0, 0.0]  # nobody else came to c


def test_it_is_what_a_joint_gaussian_says() -> None:
    """Against the posterior mean of μ + δ by the full covariance of what was seen."""
    rewards = np.array([[0.0, 1.0], [0.0, 0.2], [0.0, 0.7], [0.0, 0.4], [0.0, 0.9]])
    states = ["b", "b", "b", "c", "d"]
    episodes = [Episode(prompt="q", states=("a", s), rewards=row) for s, row in zip(states, rewards, strict=True)]
    moved = anchor_corrections(episodes, np.full(5, 0.3), beliefs(5), 0.25)[0]
    mean, variance, noise, tau = 0.5, 0.1, 0.2, 0.05
    here = np.array([True, True, False, False])  # attempts 1 to 4 in the state of attempt 0
    # As in the model: those elsewhere say what the prompt is, whatever their own states add.
    covariance = variance + tau * np.outer(here, here) + noise * np.eye(4)
    with_it = variance + tau * here
    expected = mean + with_it @ np.linalg.solve(covariance, rewards[1:, 1] - mean)
    np.testing.assert_allclose(0.3 + moved[1], expected)


def test_much_evidence_is_the_others_mean_alone() -> None:
    others = [Episode(prompt="q", states=("a", "b"), rewards=np.array([0.0, 0.75]))] * 4
    episode = Episode(prompt="q", states=("a", "b"), rewards=np.array([0.5, 0.0]))
    (_, *_, correction) = anchor_corrections([*others, episode], np.full(5, 0.9), beliefs(5, noise=1e-12), 0.25)
    received = 0.5
    np.testing.assert_allclose(0.9 - received + correction[1], 0.75)


def test_nothing_of_its_own_future_moves_the_baseline_of_a_turn() -> None:
    rng = np.random.default_rng(1)
    episodes = [
        Episode(prompt=f"p{rng.integers(2)}", states=tuple(rng.integers(0, 3, size).tolist()), rewards=rng.random(size))
        for size in rng.integers(1, 6, 12)
    ]
    baselines = rng.random(12)
    prior = Prior(mean=rng.random(12), variance=rng.uniform(0.01, 0.1, 12), noise=rng.uniform(0.02, 0.25, 12))

    def corrections(changed: Sequence[Episode]) -> list[np.ndarray]:
        return anchor_corrections(changed, baselines, prior, 0.25)

    before = corrections(episodes)
    for number, episode in enumerate(episodes):
        for turn in range(len(episode.states)):
            rewards = episode.rewards.copy()
            rewards[turn:] = 5.0
            changed = [*episodes[:number], replace(episode, rewards=rewards), *episodes[number + 1 :]]
            moved = corrections(changed)[number][: turn + 1] - before[number][: turn + 1]
            assert np.abs(moved).max() < 1e-12


def test_an_attempt_without_a_reward_says_nothing_of_its_states() -> None:
    good = Episode(prompt="q", states=("a", "b"), rewards=np.array([0.0, 1.0]))
    lost = Episode(prompt="q", states=("a", "b"), rewards=np.array([0.0, np.nan]))
    corrections = anchor_corrections([good, lost], np.array([0.5, np.nan]), beliefs(2), 0.25)
    assert [correction.tolist() for correction in corrections] == [[0.0, 0.0], [0.0, 0.0]]


def test_deviations_of_a_state_divide_where_there_are_any() -> None:
    episodes = [Episode(prompt="q", states=("a",), rewards=np.array([value])) for value in (1.0, 0.0, 0.0, 1.0)]
    advantages = anchor_advantages(episodes, 1.0, normalise=True)
    np.testing.assert_allclose(
        [advantage[0] for advantage in advantages], np.array([2, -2, -2, 2]) / 3 / 0.5, rtol=1e-5
    )
    equal = [replace(episode, rewards=np.ones(1)) for episode in episodes]
    assert [advantage.tolist() for advantage in anchor_advantages(equal, 1.0, normalise=True)] == [[0.0]] * 4
