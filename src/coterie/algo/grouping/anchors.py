"""Groups of single steps in episodes of several turns: attempts that came to the same state are compared there.

GiGPO (2505.10978) compares the discounted return of a step with that of all steps taken from the same state. Its
group holds the step itself, and every other visit of the same episode, which shares its future; here the whole episode
is left out of its own baseline, so that the gradient stays unbiased. Environments of one turn have no use for it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from coterie.algo.grouping.state import Floats
from coterie.algo.returns import returns_to_go


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Episode:
    """One attempt at a prompt, turn by turn; K turns."""

    prompt: str
    """Prompt id: states are only shared within a prompt."""
    states: tuple[Hashable, ...]
    """[K] what names the state before each turn, e.g. a hash of what was shown."""
    rewards: Floats
    """[K] given after each turn; an outcome's reward stands at the last."""

    def __post_init__(self) -> None:
        if self.rewards.shape != (len(self.states),):
            raise ValueError(f"{len(self.states)} states came with rewards {self.rewards.shape}; expected one a turn")


def anchor_baselines(episodes: Sequence[Episode], gamma: float = 0.95) -> list[Floats]:
    """[K] of each episode: the mean discounted return that the *other* episodes of its prompt had from each turn's
    state, over all their visits of it; NaN where no other came there.

    Args:
        episodes: of one step, in any order.
        gamma: discount per turn.
    """
    returns = _returns(episodes, gamma)
    visits: dict[tuple[str, Hashable], list[tuple[int, float]]] = {}
    for number, (episode, gained) in enumerate(zip(episodes, returns, strict=True)):
        for state, value in zip(episode.states, gained.tolist(), strict=True):
            visits.setdefault((episode.prompt, state), []).append((number, value))

    def others(number: int, state: Hashable) -> float:
        found = [value for own, value in visits[episodes[number].prompt, state] if own != number]
        return float(np.mean(found)) if found else float("nan")

    return [
        np.array([others(number, state) for state in episode.states], dtype=np.float64)
        for number, episode in enumerate(episodes)
    ]


def anchor_advantages(episodes: Sequence[Episode], gamma: float = 0.95) -> list[Floats]:
    """[K] of each episode: the discounted return of each turn less its baseline; 0 where no other episode came to its
    state. To be added to the episode's own advantage (GiGPO: with weight 1), for all tokens of the turn.

    >>> one = Episode(prompt="q", states=("a", "b"), rewards=np.array([0.0, 1.0]))
    >>> two = Episode(prompt="q", states=("a", "c"), rewards=np.array([0.0, 0.0]))
    >>> [found.tolist() for found in anchor_advantages([one, two], gamma=0.5)]
    [[0.5, 0.0], [-0.5, 0.0]]
    """
    pairs = zip(_returns(episodes, gamma), anchor_baselines(episodes, gamma), strict=True)
    return [np.nan_to_num(gained - baseline, nan=0.0) for gained, baseline in pairs]


def _returns(episodes: Sequence[Episode], gamma: float) -> list[Floats]:
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma is {gamma}; expected 0 to 1")
    return [returns_to_go(episode.rewards, gamma) for episode in episodes]
