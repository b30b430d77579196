"""Step-level groups: hand-worked numbers, and no episode in its own baseline."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from coterie.algo.turns import Episode, anchor_advantages, state_peers

# The first comes back to s0; the last is of another prompt and shares nothing, whatever its states are called.
EPISODES = [
    Episode(prompt="q", states=("s0", "s1", "s0"), rewards=np.array([0.0, 0.0, 1.0])),
    Episode(prompt="q", states=("s0", "s2"), rewards=np.array([0.0, 0.0])),
    Episode(prompt="q", states=("s0", "s1"), rewards=np.array([0.0, 1.0])),
    Episode(prompt="other", states=("s0",), rewards=np.array([1.0])),
]


def test_the_hand_worked_example():
    """Returns at gamma 1/2: (1/4, 1/2, 1), (0, 0), (1/2, 1), (1)."""
    baselines = [peers.mean for peers in state_peers(EPISODES, 0.5)]
    np.testing.assert_allclose(baselines[0], [1 / 4, 1.0, 1 / 4])
    np.testing.assert_allclose(baselines[1], [7 / 12, np.nan])
    np.testing.assert_allclose(baselines[2], [5 / 12, 1 / 2])
    np.testing.assert_allclose(baselines[3], [np.nan])
    advantages = anchor_advantages(EPISODES, 0.5)
    np.testing.assert_allclose(advantages[0], [0.0, -1 / 2, 3 / 4])
    np.testing.assert_allclose(advantages[1], [-7 / 12, 0.0])
    np.testing.assert_allclose(advantages[2], [1 / 12, 1 / 2], rtol=1e-12)
    np.testing.assert_allclose(advantages[3], [0.0])


@pytest.mark.parametrize("gamma", [0.0, 0.95, 1.0])
def test_no_reward_of_an_episode_moves_its_own_baselines(gamma):
    rng = np.random.default_rng(0)
    episodes = [
        Episode(prompt=f"p{rng.integers(2)}", states=tuple(rng.integers(0, 3, size).tolist()), rewards=rng.random(size))
        for size in rng.integers(1, 6, 10)
    ]
    before, moved = [peers.mean for peers in state_peers(episodes, gamma)], False
    for k, episode in enumerate(episodes):
        changed = [*episodes[:k], replace(episode, rewards=episode.rewards + 3.0), *episodes[k + 1 :]]
        after = [peers.mean for peers in state_peers(changed, gamma)]
        assert after[k].tobytes() == before[k].tobytes()
        moved |= any(not np.array_equal(a, b, equal_nan=True) for a, b in zip(before, after, strict=True))
    assert moved


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"2 states came with rewards \(1,\)"):
        Episode(prompt="q", states=("a", "b"), rewards=np.zeros(1))
    with pytest.raises(ValueError, match=r"gamma is 1\.5"):
        anchor_advantages(EPISODES, 1.5)
