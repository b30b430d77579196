"""Turn-level rewards and advantages: episodes compared at equal states, as in GiGPO (2505.10978).

GiGPO compares the discounted return of a step with that of all steps taken from the same state. Its group holds the
step itself, and every other visit of the same episode, which shares its future; here the whole episode is left out of
its own baseline, so that the gradient stays unbiased. `anchor_advantages` are GiGPO's, beside those of whole episodes.
`anchor_corrections` weigh the same comparison by evidence against an existing baseline: the scale `state` of
group-aware credit.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from coterie.algo.returns import returns_to_go
from coterie.algo.scales import EPSILON, SMALLEST
from coterie.stats import Floats
from coterie.types import Rollout


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Episode:
    """An attempt at a prompt, turn by turn; K turns."""

    prompt: str
    """Prompt id: states are only shared within a prompt."""
    states: tuple[Hashable, ...]
    """[K] key of the state before each turn, e.g. a hash of the messages."""
    rewards: Floats
    """[K] given after each turn; an outcome's reward stands at the last."""

    def __post_init__(self) -> None:
        if self.rewards.shape != (len(self.states),):
            raise ValueError(f"{len(self.states)} states came with rewards {self.rewards.shape}; expected one a turn")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StatePeers:
    """Statistics of the *other* episodes of the prompt in the states of an episode, over all their visits; K turns."""

    mean: Floats
    """[K] of the discounted returns from there; NaN where no other came there."""
    spread: Floats
    """[K] standard deviation of the returns from there, own visits included."""
    episodes: Floats
    """[K] number of others that came there."""
    elsewhere: Floats
    """[K] number of others that never did."""
    total: Floats
    """[K] mean total reward of these; NaN where there are none."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prior:
    """Prior of the reward of each of B episodes' prompts, without the attempts of this step, in reward units."""

    mean: Floats
    """[B]; NaN of an episode without a reward."""
    variance: Floats
    """[B] of that mean."""
    noise: Floats
    """[B] variance of one attempt's reward."""


def state_peers(episodes: Sequence[Episode], gamma: float = 1.0) -> list[StatePeers]:
    """State peers of each episode. An episode whose rewards are not finite is no peer of any other.

    Args:
        episodes: of one step, in any order.
        gamma: discount per turn.
    """
    returns = _returns(episodes, gamma)
    visits: dict[tuple[str, Hashable], list[tuple[int, float]]] = {}
    totals: dict[str, dict[int, float]] = {}
    for number, (episode, to_go) in enumerate(zip(episodes, returns, strict=True)):
        if not np.isfinite(to_go).all():
            continue
        totals.setdefault(episode.prompt, {})[number] = float(episode.rewards.sum())
        for state, value in zip(episode.states, to_go.tolist(), strict=True):
            visits.setdefault((episode.prompt, state), []).append((number, value))

    def peers_of(number: int, episode: Episode) -> StatePeers:
        rows = np.full((5, len(episode.states)), np.nan)
        for turn, state in enumerate(episode.states):
            visitors = visits.get((episode.prompt, state), [])
            visiting = {index for index, _ in visitors} - {number}
            absent = [
                value for index, value in totals.get(episode.prompt, {}).items() if index not in visiting | {number}
            ]
            rows[0, turn] = _mean([value for index, value in visitors if index != number])
            rows[1, turn] = np.std([value for _, value in visitors]) if visitors else 0.0
            rows[2, turn], rows[3, turn], rows[4, turn] = len(visiting), len(absent), _mean(absent)
        return StatePeers(mean=rows[0], spread=rows[1], episodes=rows[2], elsewhere=rows[3], total=rows[4])

    return [peers_of(number, episode) for number, episode in enumerate(episodes)]


def anchor_advantages(episodes: Sequence[Episode], gamma: float = 0.95, *, normalise: bool = False) -> list[Floats]:
    """[K] of each episode: the discounted return of each turn less its baseline; 0 where no other episode came to its
    state. To be added to the episode's own advantage (GiGPO: with weight 1), for all tokens of the turn.

    Args:
        normalise: divide by the standard deviation of all returns from the state (GiGPO's F = std); biased, as the
            group's own deviation is in GRPO.

    >>> first = Episode(prompt="q", states=("a", "b"), rewards=np.array([0.0, 1.0]))
    >>> second = Episode(prompt="q", states=("a", "c"), rewards=np.array([0.0, 0.0]))
    >>> [advantages.tolist() for advantages in anchor_advantages([first, second], gamma=0.5)]
    [[0.5, 0.0], [-0.5, 0.0]]
    """
    advantages = []
    for returns, peers in zip(_returns(episodes, gamma), state_peers(episodes, gamma), strict=True):
        divisor = np.where(peers.spread > SMALLEST, peers.spread + EPSILON, 1.0) if normalise else 1.0
        advantages.append(np.nan_to_num((returns - peers.mean) / divisor, nan=0.0))
    return advantages


def anchor_corrections(episodes: Sequence[Episode], baselines: Floats, prior: Prior, spread: float) -> list[Floats]:
    """[K] of each episode: correction of the baseline by the state of each turn after the first.

    A state is worth μ + δ to come: μ what the prompt is, believed to be N(m, v), and δ ~ N(0, τ) what is special to the
    state, τ = spread · σ². The other attempts that never came there, n' with the mean total t, speak of μ alone:

        v' = 1 / (1/v + n'/σ²)        m' = v' (m/v + n' t/σ²)

    and the n that came there, with the mean return r from there on, of the sum, with the weight w:

        b_k = (1 - w) (m' - received_k) + w r        w = (v' + τ) n / ((v' + τ) n + σ²)

    so that no attempt counts twice. The correction is what b_k is more than the episode's own baseline less what was
    received before, which holds where nobody else came. All of it is settled before the turn is sampled: the state and
    what was received are of earlier turns, all else of other episodes. So the gradient of the undiscounted return stays
    unbiased.

    Args:
        episodes: B of one step, in any order.
        baselines: [B] of the whole episodes, in reward units, none moved by its own rewards; NaN = none.
        prior: of the episodes' prompts.
        spread: τ / σ².

    >>> first = Episode(prompt="q", states=("a", "b"), rewards=np.array([0.0, 1.0]))
    >>> second = Episode(prompt="q", states=("a", "b"), rewards=np.array([0.5, 0.0]))
    >>> prior = Prior(mean=np.full(2, 0.5), variance=np.full(2, 0.05), noise=np.full(2, 0.1))
    >>> [values.tolist() for values in anchor_corrections([first, second], np.full(2, 0.5), prior, 0.5)]
    [[0.0, -0.25], [0.0, 0.5]]
    """
    corrections = []
    for row, (episode, peers) in enumerate(zip(episodes, state_peers(episodes), strict=True)):
        received = np.concatenate([[0.0], np.cumsum(episode.rewards)[:-1]])
        noise = float(prior.noise[row])
        precision, elsewhere = 1.0 / float(prior.variance[row]), peers.elsewhere / noise
        variance = 1.0 / (precision + elsewhere)
        mean = variance * (precision * prior.mean[row] + elsewhere * np.nan_to_num(peers.total))
        evidence = (variance + spread * noise) * peers.episodes
        weight = evidence / (evidence + noise)
        expected = (1.0 - weight) * (mean - received) + weight * peers.mean
        correction = np.nan_to_num(expected - (baselines[row] - received), nan=0.0)  # without peers the mean is NaN
        correction[:1] = 0.0
        corrections.append(correction)
    return corrections


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _returns(episodes: Sequence[Episode], gamma: float) -> list[Floats]:
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma is {gamma}; expected 0 to 1")
    return [returns_to_go(episode.rewards, gamma) for episode in episodes]


def turn_rewards(rollout: Rollout, total: float, given: float) -> np.ndarray:
    """[K] reward of each turn, adding up to `total`: the environment's reward, and at the last turn the rest.

    Args:
        total: reward of the rollout, or of one part of it; NaN where there is none.
        given: how much of it the environment's rewards count for, times: the weight of that part; 0 = not at all.
    """
    earned = given * np.array([turn.reward for turn in rollout.turns], dtype=np.float64)
    earned[-1] += total - float(earned.sum())
    return earned


def episode_of(rollout: Rollout, total: float, given: float) -> Episode:
    """Episode of a rollout, with `turn_rewards`. A turn whose state has no key is alone in its state."""
    states = [turn.state if turn.state is not None else (rollout.id, k) for k, turn in enumerate(rollout.turns)]
    return Episode(
        prompt=f"{rollout.context.prompt_id}@{rollout.context.version}",
        states=tuple(states),
        rewards=turn_rewards(rollout, total, given),
    )


def broadcast_to_tokens(values: np.ndarray, rollout: Rollout) -> np.ndarray:
    """[K] → [C]: values of turns, repeated for each of their tokens."""
    return np.repeat(values, [len(turn.tokens) for turn in rollout.turns])


def given_by_environment(weights: Mapping[str, float], label: str) -> float:
    """Weight of the environment's rewards in one part of the reward, or in the whole one, whose label is empty.

    Args:
        weights: of the parts that are the environment's, by label.
    """
    return sum(weights.values()) if not label else float(label in weights)


def has_states(rollout: Rollout) -> bool:
    """True for an episode of a multi-turn environment, whose turns carry the key of their state.

    The number of its turns does not decide it: that depends on what was sampled, and an advantage that only longer
    episodes get biases the gradient.
    """
    return any(turn.state is not None for turn in rollout.turns)
