"""Token rewards, their sums, and whitening: the arithmetic of REINFORCE++ (arXiv 2501.03262).

Token arrays are compact: [C] holds the tokens that the policy sampled, those of all turns end to end. Environment
tokens in between are absent, so no mask can be forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from coterie.algo.scales import EPSILON, SMALLEST
from coterie.types import StepReward


def kl_in_reward(old: np.ndarray, reference: np.ndarray, beta: float) -> np.ndarray:
    """[C] token rewards -beta · k1, k1 = old - reference log-prob of the sampled token.

    >>> kl_in_reward(np.array([-1.0, -2.0]), np.array([-1.5, -1.0]), 0.1).tolist()
    [-0.05, 0.1]
    """
    return -beta * (np.asarray(old, dtype=np.float64) - np.asarray(reference, dtype=np.float64))


def returns_to_go(token_rewards: np.ndarray, gamma: float = 1.0) -> np.ndarray:
    """[C] → [C]: G_t = r_t + gamma G_(t+1).

    >>> returns_to_go(np.array([0.0, 0.5, 1.0])).tolist()
    [1.5, 1.5, 1.0]
    """
    rewards = np.asarray(token_rewards, dtype=np.float64)
    if gamma == 1:
        return np.cumsum(rewards[::-1])[::-1]
    out, running = np.empty_like(rewards), 0.0
    for t in range(len(rewards) - 1, -1, -1):
        running = rewards[t] + gamma * running
        out[t] = running
    return out


def whiten(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(x - mean) / (std + 1e-6) under weights that count: [n], [n] → [n].

    The variance divides by the sum of the weights less 1, so weights of 1 give the sample standard deviation, and the
    number of tokens as weight that over tokens. Where there is no spread, nothing is divided; where the mean is only
    rounding, nothing is subtracted, so that an advantage of 0 stays one.
    """
    total = float(weights.sum())
    if not total > 0:
        return values
    mean = float((weights * values).sum()) / total
    if abs(mean) <= 1e-12 * float(np.abs(values).max()):
        mean = 0.0
    centred = values - mean
    variance = float((weights * centred**2).sum()) / (total - 1) if total > 1 else 0.0
    deviation = float(np.sqrt(variance))
    return centred / (deviation + EPSILON) if deviation > SMALLEST else centred


def step_advantages(
    steps: Sequence[Sequence[StepReward]],
    lengths: Sequence[int],
    *,
    weights: Mapping[str, float] | None = None,
    per_step: bool = False,
) -> list[np.ndarray]:
    """Advantage of each token of a group's rollouts from the steps that end at it or later (DeepSeekMath §4.1.3).

    All step scores of the group are pooled and normalised with their own mean and population standard deviation (ddof
    0, unlike that of outcome rewards);
    a token's advantage is the sum of the normalised scores from there to the end. Tokens after the last step get 0.
    Scores of different step functions are pooled apart, since they mean different things, and added with their
    weights. The sum lets a rollout earn more by more good steps; `per_step` takes that away.

    Args:
        steps: of each rollout of one group, in any order.
        lengths: trained tokens of each rollout.
        weights: by the step function's label; 1 for those not named.
        per_step: divide by the rollout's number of steps of that function.

    Returns:
        [C] float64 per rollout; exactly 0 where all scores of the group are equal.

    >>> first = [StepReward(end=1, value=0.2), StepReward(end=2, value=0.8)]
    >>> second = [StepReward(end=0, value=0.6), StepReward(end=1, value=0.4), StepReward(end=3, value=1.0)]
    >>> [a.round(4).tolist() for a in step_advantages([first, second], [4, 4])]
    [[-0.7071, -0.7071, 0.7071, 0.0], [0.7071, 0.7071, 1.4142, 1.4142]]
    """
    ends = [np.zeros(length) for length in lengths]
    for rollout, length in zip(steps, lengths, strict=True):
        for step in rollout:
            if not 0 <= step.end < length:
                raise ValueError(
                    f"a step ends at token {step.end} of a rollout with {length}; expected 0 … {length - 1}"
                )
    for label in dict.fromkeys(step.label for rollout in steps for step in rollout):
        weight = 1.0 if weights is None else weights.get(label, 1.0)
        pool = np.array([step.value for rollout in steps for step in rollout if step.label == label])
        deviation = float(pool.std())
        if weight == 0 or deviation < SMALLEST:
            continue
        mean = float(pool.mean())
        for rollout, scores in zip(steps, ends, strict=True):
            labelled = [step for step in rollout if step.label == label]
            share = weight / len(labelled) if per_step and labelled else weight
            for step in labelled:
                scores[step.end] += share * (step.value - mean) / deviation
    return [np.cumsum(scores[::-1])[::-1] for scores in ends]
