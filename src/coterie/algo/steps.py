"""Process supervision: a reward at the end of each step of reasoning (DeepSeekMath §4.1.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from coterie.types import StepReward

SMALLEST = 1e-6
"""Step scores that spread less than this are equal."""


def step_advantages(
    steps: Sequence[Sequence[StepReward]],
    lengths: Sequence[int],
    *,
    weights: Mapping[str, float] | None = None,
    per_step: bool = False,
) -> list[np.ndarray]:
    """What each token of a group's rollouts earned by the steps that end at it or later.

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

    Raises:
        ValueError: a step ends outside its rollout.

    >>> one = [StepReward(end=1, value=0.2), StepReward(end=2, value=0.8)]
    >>> two = [StepReward(end=0, value=0.6), StepReward(end=1, value=0.4), StepReward(end=3, value=1.0)]
    >>> [a.round(4).tolist() for a in step_advantages([one, two], [4, 4])]
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
            own = [step for step in rollout if step.label == label]
            share = weight / len(own) if per_step and own else weight
            for step in own:
                scores[step.end] += share * (step.value - mean) / deviation
    return [np.cumsum(scores[::-1])[::-1] for scores in ends]
