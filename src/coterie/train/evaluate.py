"""Held-out evaluation with intervals: mean reward, pass@1 and pass@k per task; per-prompt values for paired tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from coterie.config.schema import EvalConfig
from coterie.engines.base import Sampling
from coterie.errors import DataError
from coterie.rng import generator
from coterie.rollout.collector import Collector, Experience
from coterie.runs.metrics import EvalItem
from coterie.stats import bootstrap_interval, pass_at_k
from coterie.types import POOLED, EvalResult, Interval, Prompt, Rollout

EVALUATING = "evaluating on the held-out prompts"
"""The activity, as callbacks are told it."""
TOLERANCE = 1e-6
CORRECT = 1 - TOLERANCE
"""A completion is correct when the evaluated reward part reaches this, where `eval.correct_threshold` is not set."""


class Scale:
    """Kinds of evaluated rewards that a run has given so far: a reward that was graded once stays graded.

    Args:
        binary: the reward function is known to be binary, also while every value is 0.
        by_task: each task has a scorer of its own, which may be binary or graded.
    """

    def __init__(self, *, binary: bool = False, by_task: bool = False) -> None:
        self.binary = binary
        self.by_task = by_task
        self.kinds: dict[str, set[str]] = {}

    def add(self, task: str, kinds: Iterable[str]) -> None:
        """Remember kinds of values: `right` (1), `wrong` (0), `minus` (-1), `graded` (any other)."""
        self.kinds.setdefault(task if self.by_task else "", set()).update(kinds)

    def of(self, task: str | None = None) -> set[str]:
        """The kinds of one task, or of all tasks."""
        if task is not None:
            return self.kinds.get(task if self.by_task else "", set())
        return set().union(*self.kinds.values())

    def state(self) -> dict[str, list[str]]:
        """JSON-able, for a checkpoint."""
        return {task: sorted(kinds) for task, kinds in self.kinds.items()}

    def restore(self, state: Mapping[str, Sequence[str]]) -> None:
        """Continue from a checkpoint's state."""
        self.kinds = {task: set(kinds) for task, kinds in state.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Criterion:
    """Criterion of correctness of a completion, where it can be said at all."""

    part: str = ""
    """Label of the evaluated reward part; empty evaluates the whole reward."""
    threshold: float | None = None
    """A completion is correct when the evaluated reward is at least this; None: when it reaches 1, if the reward is
    binary."""
    wrong: float = 0.0
    """Largest reward of a wrong answer where the reward is binary: reasoning-gym's scorers give 0.01 or 0.05 to a wrong
    answer in the right layout."""
    scale: Scale = field(default_factory=Scale, compare=False)
    """Kinds of rewards so far; shared by all that evaluate the run's rollouts."""

    def observe(self, rollouts: Iterable[Rollout]) -> None:
        """Add the kinds of these rollouts' evaluated rewards to the scale."""
        values: dict[str, list[float]] = {}
        for rollout in rollouts:
            if (value := self.value(rollout)) is not None:
                values.setdefault(rollout.context.task, []).append(value)
        for task, rewards in values.items():
            self.scale.add(task, self._kinds(rewards))

    def is_graded(self, task: str | None = None) -> bool:
        """True if any reward so far, of one task or of all, was graded and no threshold says what is correct."""
        return self.threshold is None and _graded(self.scale.of(task))

    def is_undecided(self, task: str | None = None) -> bool:
        """True if every reward so far is 0, of a function that is not known to be binary."""
        return self.threshold is None and not self.scale.binary and self.scale.of(task) <= {"wrong"}

    def _kinds(self, values: Iterable[float]) -> set[str]:
        rewards = np.asarray(list(values), dtype=np.float64)
        right, minus = np.abs(rewards - 1) <= TOLERANCE, np.abs(rewards + 1) <= TOLERANCE
        wrong = (rewards >= -TOLERANCE) & (rewards <= self.wrong + TOLERANCE)
        shares = {"right": right, "wrong": wrong, "minus": minus, "graded": ~(right | wrong | minus)}
        return {kind for kind, which in shares.items() if which.any()}

    def value(self, rollout: Rollout) -> float | None:
        """Evaluated reward of a rollout; None where it ended in an error or the part does not apply."""
        if not rollout.outcome.usable:
            return None
        return rollout.reward_parts.get(self.part) if self.part else rollout.reward

    def is_correct(self, rollout: Rollout) -> bool:
        """True if the rollout is correct; one that ended in an error is not."""
        value = self.value(rollout)
        return value is not None and self.reached(value)

    def reached(self, value: float) -> bool:
        """True if an evaluated reward counts as correct."""
        return value >= (CORRECT if self.threshold is None else self.threshold)

    def applies(self, values: Iterable[float]) -> bool:
        """True if correct and wrong are defined for these evaluated rewards: by a threshold, or as they are binary.

        Binary: every value is 0 or 1, or every value is -1 or 1. Neither a graded reward nor one that counts is.
        """
        if self.threshold is not None:
            return True
        return not _graded(self._kinds(values))

    def of_group(self, rollouts: Sequence[Rollout]) -> list[float]:
        """[G] evaluated rewards of the usable attempts at one prompt, whose variance dynamic sampling reads: 0
        where the part does not apply to an attempt, and the whole reward where it applies to none of them."""
        values = [self.value(rollout) for rollout in rollouts]
        if all(value is None for value in values):
            return [rollout.reward or 0.0 for rollout in rollouts]
        return [0.0 if value is None else value for value in values]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One pass over the held-out prompts."""

    results: tuple[EvalResult, ...]
    """One per task in order of appearance, then `all` where there are several."""
    items: tuple[EvalItem, ...]
    experience: Experience | None
    """The rollouts themselves; None when there are no held-out prompts."""


class Evaluator:
    """Samples `config.samples` attempts per held-out prompt, averages their rewards and counts the correct ones.

    Args:
        criterion: says which are correct.
        seed: of the bootstrap.
    """

    def __init__(
        self,
        collector: Collector,
        prompts: Sequence[Prompt],
        *,
        config: EvalConfig,
        sampling: Sampling,
        criterion: Criterion,
        seed: int,
    ) -> None:
        self.collector = collector
        self.prompts = list(prompts)
        self.config = config
        self.sampling = sampling
        self.criterion = criterion
        self.seed = seed

    def evaluate(self, step: int, progress: Callable[[int, int], None] | None = None) -> Evaluation:
        """Evaluate the weights as they are.

        Args:
            progress: told (finished, all) completions while they are sampled; what it raises ends the evaluation.

        Raises:
            EngineError, RewardError: as collecting does.
            DataError: the evaluated reward part applies to no held-out prompt.
        """
        if not self.prompts:
            return Evaluation(results=(), items=(), experience=None)
        sampling = replace(self.sampling, progress=progress)
        experience = self.collector.collect(self.prompts, samples=self.config.samples, sampling=sampling)
        self.criterion.observe(experience.rollouts)
        by_task: dict[str, list[Rollout]] = {}
        for rollout in experience.rollouts:
            by_task.setdefault(rollout.context.task, []).append(rollout)
        items = {task: self._items(task, rollouts) for task, rollouts in by_task.items()}
        judged = {task: rollouts for task, rollouts in by_task.items() if items[task]}
        if not any(item.samples for task in judged for item in items[task]):
            raise DataError(
                f"the reward part {self.criterion.part!r} applies to none of the {len(self.prompts)} held-out prompts; "
                "name another in eval.reward"
            )
        results = [self._result(step, task, items[task], rollouts) for task, rollouts in judged.items()]
        everything = [item for task in judged for item in items[task]]
        if len(results) > 1:
            pooled = [rollout for rollouts in judged.values() for rollout in rollouts]
            results.append(self._result(step, POOLED, everything, pooled))
        return Evaluation(results=tuple(results), items=tuple(everything), experience=experience)

    def _items(self, task: str, rollouts: Sequence[Rollout]) -> list[EvalItem]:
        """Correct attempts and mean reward per prompt. An attempt that ended in an error counts as wrong, and has no
        reward; one that the evaluated part does not apply to does not count at all, unless that part applies to nothing
        of the task: then there is no pass@1, and the reward is that of the other parts."""
        usable = [rollout for rollout in rollouts if rollout.outcome.usable]
        judged = not usable or any(self.criterion.value(rollout) is not None for rollout in usable)
        counted: dict[str, list[Rollout]] = {}
        for rollout in rollouts:
            if not judged or self.criterion.value(rollout) is not None or not rollout.outcome.usable:
                counted.setdefault(rollout.context.prompt_id, []).append(rollout)
        items = [
            EvalItem(
                task=task,
                prompt_id=name,
                correct=sum(map(self.criterion.is_correct, attempts)),
                samples=len(attempts) if judged else 0,
                reward=_mean_reward(attempts),
            )
            for name, attempts in counted.items()
        ]
        return [item for item in items if item.samples or item.reward is not None]

    def _result(self, step: int, task: str, items: Sequence[EvalItem], rollouts: Sequence[Rollout]) -> EvalResult:
        k = self.config.k
        judged = [item for item in items if item.samples]
        name = None if task == POOLED else task
        undefined = self.criterion.is_graded(name) or self.criterion.is_undecided(name)
        correctness = not undefined and len(judged) == len(items)
        ones = [item.correct / item.samples for item in judged]
        several = [pass_at_k(item.samples, item.correct, min(k, item.samples)) for item in judged]
        rewards = [item.reward for item in items if item.reward is not None]
        return EvalResult(
            step=step,
            task=task,
            prompts=len(items),
            samples=self.config.samples,
            k=k,
            pass_at_1=self._interval(task, "pass@1", ones) if correctness else None,
            pass_at_k=self._interval(task, "pass@k", several) if correctness else None,
            mean_length=float(np.mean([rollout.context.completion_length for rollout in rollouts])),
            truncated=float(np.mean([rollout.stop_reason.truncated for rollout in rollouts])),
            # The draws of pass@1: of one binary part, the mean reward is pass@1, and so is its interval.
            reward=self._interval(task, "pass@1", rewards) if rewards else None,
            reward_parts=_part_means(rollouts),
        )

    def _interval(self, task: str, what: str, values: Sequence[float]) -> Interval:
        return interval_over_prompts(values, self.seed, task, what)


def _graded(kinds: set[str]) -> bool:
    return "graded" in kinds or {"wrong", "minus"} <= kinds


def _mean_reward(rollouts: Sequence[Rollout]) -> float | None:
    rewards = [rollout.reward for rollout in rollouts if rollout.outcome.usable and rollout.reward is not None]
    return float(np.mean(rewards)) if rewards else None


def _part_means(rollouts: Sequence[Rollout]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for rollout in rollouts:
        for label, value in rollout.reward_parts.items():
            if value is not None and rollout.outcome.usable:
                values.setdefault(label, []).append(value)
    return {label: float(np.mean(numbers)) for label, numbers in values.items()}


def interval_over_prompts(values: Sequence[float], seed: int, task: str, what: str) -> Interval:
    """Mean of one value a prompt with its 95 % bootstrap interval; the counters name the resampling."""
    draws = int(generator("bootstrap", seed, task, what).integers(2**31))
    value, low, high = bootstrap_interval(values, seed=draws)
    return Interval(value=value, low=low, high=high)
