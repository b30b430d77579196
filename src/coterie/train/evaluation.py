"""Held-out accuracy with intervals: pass@1 and pass@k per task, and per-prompt counts for paired tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from coterie.algo.statistics import bootstrap_interval, pass_at_k
from coterie.algo.streams import generator
from coterie.collect import Collector, Experience
from coterie.config.schema import EvalConfig
from coterie.engines.base import Sampling
from coterie.errors import DataError
from coterie.observer import POOLED, EvalResult, Interval
from coterie.runs.metrics import EvalItem
from coterie.types import Prompt, Rollout

EVALUATING = "evaluating on the held-out prompts"
"""The activity, as observers are told it."""
CORRECT = 1 - 1e-6
"""A completion is correct when the evaluated reward part reaches this."""


def is_correct(rollout: Rollout, part: str) -> bool:
    """Whether this part of the reward calls the rollout right; one that ended in an error is not."""
    value = rollout.reward_parts.get(part)
    return rollout.outcome.usable and value is not None and value >= CORRECT


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One pass over the held-out prompts."""

    results: tuple[EvalResult, ...]
    """One per task in order of appearance, then `all` where there are several."""
    items: tuple[EvalItem, ...]
    experience: Experience | None
    """The rollouts themselves; None when there are no held-out prompts."""


class Evaluator:
    """Samples `config.samples` attempts per held-out prompt and counts the correct ones.

    Args:
        part: label of the reward part that says what is correct.
        seed: of the bootstrap.
    """

    def __init__(
        self,
        collector: Collector,
        prompts: Sequence[Prompt],
        *,
        config: EvalConfig,
        sampling: Sampling,
        part: str,
        seed: int,
    ) -> None:
        self.collector = collector
        self.prompts = list(prompts)
        self.config = config
        self.sampling = sampling
        self.part = part
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
        found = self.collector.collect(self.prompts, samples=self.config.samples, sampling=sampling)
        by_task: dict[str, list[Rollout]] = {}
        for rollout in found.rollouts:
            by_task.setdefault(rollout.context.task, []).append(rollout)
        items = {task: self._items(task, rollouts) for task, rollouts in by_task.items()}
        judged = {task: rollouts for task, rollouts in by_task.items() if items[task]}
        if not judged:
            raise DataError(
                f"the reward part {self.part!r} applies to none of the {len(self.prompts)} held-out prompts; name "
                "another in eval.part"
            )
        results = [self._result(step, task, items[task], rollouts) for task, rollouts in judged.items()]
        everything = [item for task in judged for item in items[task]]
        if len(results) > 1:
            pooled = [rollout for rollouts in judged.values() for rollout in rollouts]
            results.append(self._result(step, POOLED, everything, pooled))
        return Evaluation(results=tuple(results), items=tuple(everything), experience=found)

    def _items(self, task: str, rollouts: Sequence[Rollout]) -> list[EvalItem]:
        """Correct attempts per prompt. An attempt that ended in an error counts as wrong; one that the part does not
        apply to does not count at all."""
        counts: dict[str, list[int]] = {}
        for rollout in rollouts:
            value = rollout.reward_parts.get(self.part)
            if value is not None or not rollout.outcome.usable:
                counts.setdefault(rollout.context.prompt_id, []).append(int(is_correct(rollout, self.part)))
        return [
            EvalItem(task=task, prompt_id=name, correct=sum(hits), samples=len(hits)) for name, hits in counts.items()
        ]

    def _result(self, step: int, task: str, items: Sequence[EvalItem], rollouts: Sequence[Rollout]) -> EvalResult:
        k = self.config.k
        ones = [item.correct / item.samples for item in items]
        several = [pass_at_k(item.samples, item.correct, min(k, item.samples)) for item in items]
        return EvalResult(
            step=step,
            task=task,
            prompts=len(items),
            samples=self.config.samples,
            k=k,
            pass_at_1=self._interval(task, "pass@1", ones),
            pass_at_k=self._interval(task, "pass@k", several),
            mean_length=float(np.mean([rollout.context.completion_length for rollout in rollouts])),
            truncated=float(np.mean([rollout.stop_reason.truncated for rollout in rollouts])),
        )

    def _interval(self, task: str, what: str, values: Sequence[float]) -> Interval:
        return interval_over_prompts(values, self.seed, task, what)


def interval_over_prompts(values: Sequence[float], seed: int, task: str, what: str) -> Interval:
    """Mean of one value a prompt with its 95 % bootstrap interval; the counters name the resampling."""
    draws = int(generator("bootstrap", seed, task, what).integers(2**31))
    value, low, high = bootstrap_interval(values, seed=draws)
    return Interval(value=value, low=low, high=high)
