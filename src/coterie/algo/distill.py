"""On-policy distillation: a teacher's log-probs of the student's own tokens as their advantages.

The student samples from π; a token x after the context s gets A = log π_teacher(x|s) - log π(x|s). The expectation of
A·∇log π over x is the negative gradient of the reverse KL(π(·|s) ‖ π_teacher(·|s)), because E[∇log π] = 0. As in
Thinking Machines' "On-Policy Distillation" (2025) and verl's and rLLM's estimators of that name; GKD (arXiv 2306.13649)
takes the same divergence over the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from coterie.algo.estimators import Advantages, Estimator, Rollouts, Score, Terms, members_of
from coterie.algo.returns import returns_to_go
from coterie.config.objective import DistillConfig
from coterie.types import Credit, Group, Rollout

Teach = Callable[[Sequence[Rollout]], Mapping[str, np.ndarray]]
"""The teacher's log-probs [C] of the sampled tokens of each rollout, by its id."""
TEACHER = "teacher"
"""Name of the teacher's share in `Credit.contributions`."""


def teacher_signal(
    teacher: np.ndarray, student: np.ndarray, *, discount: float = 0.0, clip: float | None = None
) -> np.ndarray:
    """[C] advantage of each token: r + discount · (that of the next), r = log π_teacher - log π_student, nats.

    Args:
        teacher: [C] its log-probs of the sampled tokens.
        student: [C] those of the policy that sampled them.
        clip: bound of |r|; None = none.

    >>> teacher_signal(np.log([0.5, 0.5]), np.log([0.75, 0.25])).round(4).tolist()
    [-0.4055, 0.6931]
    """
    signal = np.asarray(teacher, dtype=np.float64) - np.asarray(student, dtype=np.float64)
    if clip is not None:
        signal = np.clip(signal, -clip, clip)
    return returns_to_go(signal, discount) if discount else signal


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillEstimator:
    """Advantages of a teacher, alone or added to those of the rewards."""

    config: DistillConfig
    terms: Terms
    teach: Teach
    rewarded: Estimator
    """Estimator of the rewards' advantages; asked only where `reward_weight` is not 0."""

    def __call__(self, groups: Sequence[Group], rollouts: Rollouts, score: Score) -> Advantages:
        """The step's advantages: reward_weight · (the rewards') + weight · (the teacher's)."""
        members = members_of(groups, rollouts)
        base = self.rewarded(groups, rollouts, score) if self.config.reward_weight else Advantages(
            credits=tuple(self._no_credit(rollout) for rollout in members)
        )  # fmt: skip
        teacher = self.teach(members)
        student = {rollout.id: sampled_logprobs(rollout) for rollout in members}
        credits = [
            credit if credit.rollout_id not in teacher
            else self._taught(credit, teacher[credit.rollout_id], student[credit.rollout_id])
            for credit in base.credits
        ]  # fmt: skip
        gaps = [student[name] - logprobs for name, logprobs in teacher.items()]
        metrics = {"distill/reverse_kl": float(np.concatenate(gaps).mean())} if sum(map(len, gaps)) else {}
        return replace(base, credits=tuple(credits), metrics={**base.metrics, **metrics})

    def _no_credit(self, rollout: Rollout) -> Credit:
        return Credit(
            rollout_id=rollout.id, advantage=0.0, clip_low=self.terms.clip_low, clip_high=self.terms.clip_high
        )

    def _taught(self, credit: Credit, teacher: np.ndarray, student: np.ndarray) -> Credit:
        signal = teacher_signal(teacher, student, discount=self.config.discount, clip=self.config.clip)
        share = self.config.weight * signal
        total = share + self.config.reward_weight * np.asarray(credit.advantage, dtype=np.float64)
        rewarded = {name: self.config.reward_weight * value for name, value in credit.contributions.items()}
        return replace(
            credit,
            advantage=tuple(total.tolist()),
            contributions={**rewarded, TEACHER: float(share.mean())},
        )

    def save(self, folder: Path) -> None:
        """Write what the estimator of the rewards keeps."""
        self.rewarded.save(folder)

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote."""
        self.rewarded.load(folder)


def sampled_logprobs(rollout: Rollout) -> np.ndarray:
    """[C] log-probs of a rollout's tokens under the policy that sampled them, all turns end to end."""
    return np.array([value for turn in rollout.turns for value in turn.sampler_logprobs], dtype=np.float64)
