"""Samplers of a step: prompts drawn, attempted and grouped.

Every decision depends on the cursor and on what was sampled, so a resumed run repeats it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from coterie.algo.advantages import by_prompt
from coterie.config.schema import CollectConfig
from coterie.data.order import PromptOrder
from coterie.engines.base import Quorum, Sampling
from coterie.grouping.allocation import Allocation
from coterie.rollout.collector import Collector, Experience
from coterie.stats import has_variance
from coterie.types import Group, Prompt, Rollout

Metric = Callable[[Sequence[Rollout]], Sequence[float]]
"""[G] rollouts of one group → [G] the reward whose variance decides whether the group is kept."""


class Allocate(Protocol):
    """Chooses, before sampling, the prompts of a step and the number of rollouts of each."""

    def __call__(self, candidates: Sequence[Prompt], *, rollouts: int) -> Allocation: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """One step's experience, with the groups that it is trained on."""

    experience: Experience
    groups: list[Group]
    cursor: int
    """Training prompts consumed, these included."""
    pending: tuple[str, ...]
    """Prompts that were drawn and not waited for; they come first in the next step."""
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def rollouts(self) -> dict[str, Rollout]:
        """All rollouts of the step by id, those without a group among them."""
        return {rollout.id: rollout for rollout in self.experience.rollouts}


class PromptSampler(Protocol):
    """The prompts of a step and their rollouts."""

    def collect(self, cursor: int, pending: Sequence[str] = ()) -> StepBatch:
        """One step from this cursor on.

        Args:
            pending: prompts that an earlier step drew and did not wait for.

        Raises:
            EngineError, RewardError: as collecting does.
        """
        ...


class _OrderedPrompts:
    """The part of a sampler that draws prompts in their order and keeps whole groups."""

    def __init__(self, collector: Collector, order: PromptOrder, *, config: CollectConfig, sampling: Sampling) -> None:
        self.collector = collector
        self.order = order
        self.config = config
        self.sampling = sampling

    def _draw(
        self, cursor: int, count: int, first: Sequence[Prompt] = (), drawn: set[str] | frozenset[str] = frozenset()
    ) -> tuple[list[Prompt], int]:
        """Those in `first`, then the next of the order; in a later round none that was drawn in this step before, whose
        random draws would be the same again."""
        chosen = list(first)
        names = {prompt.id for prompt in first} | drawn
        size = self.order.available(cursor)
        for _ in range(2 * size):  # an epoch's end and the next one's start may hold the same prompts
            if len(chosen) >= min(count, size):
                break
            (prompt,) = self.order.draw(cursor, 1)
            cursor += 1
            if prompt.id not in names:
                chosen.append(prompt)
                names.add(prompt.id)
        return chosen, cursor

    def _whole(self, experience: Experience, min_rollouts: int) -> list[Group]:
        """Groups of which no member ended in an error: failures correlate with length and task, so leaving out only
        the failed members would bias the baseline. A group is whole or takes no part."""
        broken = {f"{rollout.context.prompt_id}@{rollout.context.version}" for rollout in experience.errors}
        groups = by_prompt(experience.rollouts)
        return [group for group in groups if group.key not in broken and len(group.members) >= min_rollouts]

    def _stage(self, cursor: int) -> dict[str, float]:
        """Stage of the curriculum after this step; nothing where there is none."""
        return {"stage": float(self.order.stage(cursor))} if len(self.order.stages) > 1 else {}


class SequentialSampler(_OrderedPrompts):
    """Prompts in their order, `group_size` rollouts each, with dynamic sampling and oversampling where set.

    Args:
        metric: the evaluated rewards of a group; with `config.dynamic_sampling` a group without variance in them is
            replaced.
    """

    def __init__(
        self, collector: Collector, order: PromptOrder, *, config: CollectConfig, sampling: Sampling, metric: Metric
    ) -> None:
        super().__init__(collector, order, config=config, sampling=sampling)
        self.metric = metric
        self.by_id = {prompt.id: prompt for prompt in order.prompts}

    def collect(self, cursor: int, pending: Sequence[str] = (), *, repeat: int = 0) -> StepBatch:
        """One step from this cursor on; see `PromptSampler.collect`.

        Args:
            repeat: batches that this policy version has sampled before; the rollouts of each are numbered on.
        """
        first = [self.by_id[name] for name in pending]
        parts: list[Experience] = []
        groups: list[Group] = []
        drawn: set[str] = set()
        rounds = dropped = 0
        while len(groups) < self.config.prompts_per_step and rounds < (
            self.config.dynamic_sampling_limit if self.config.dynamic_sampling else 1
        ):
            missing = self.config.prompts_per_step - len(groups)
            due, later = first[:missing], first[missing:]
            prompts, cursor = self._draw(cursor, math.ceil(missing * self.config.oversample), due, drawn)
            if not prompts:
                break
            experience = self._attempt(prompts, missing, due, repeat)
            whole = self._whole(experience, min(2, self.config.group_size))
            kept = self._mixed(whole, experience) if self.config.dynamic_sampling else whole
            dropped += len(whole) - len(kept)
            groups += kept
            drawn |= {prompt.id for prompt in prompts}
            parts.append(experience)
            first, rounds = [*experience.abandoned, *later], rounds + 1
        experience = _joined(parts)
        return StepBatch(
            experience=experience,
            groups=groups,
            cursor=cursor,
            pending=tuple(prompt.id for prompt in first),
            metrics=self._metrics(cursor, rounds, dropped, len(groups), experience),
        )

    def _attempt(self, prompts: Sequence[Prompt], missing: int, first: Sequence[Prompt], repeat: int) -> Experience:
        quorum = None
        if self.config.oversample > 1:
            quorum = Quorum(prompts=missing, required=frozenset(prompt.id for prompt in first))
        size = self.config.group_size
        return self.collector.collect(
            prompts, samples=size, sampling=self.sampling, quorum=quorum, first_sample=repeat * size
        )

    def _mixed(self, groups: Sequence[Group], experience: Experience) -> list[Group]:
        """Those whose evaluated rewards differ: the condition of verl's `filter_groups`, std(metric) > 0. Of a binary
        reward these are the groups with correct and wrong attempts."""
        by_id = {rollout.id: rollout for rollout in experience.rollouts}
        return [group for group in groups if has_variance(self.metric([by_id[name] for name in group.members]))]

    def _metrics(self, cursor: int, rounds: int, dropped: int, groups: int, experience: Experience) -> dict[str, float]:
        metrics = self._stage(cursor)
        if self.config.dynamic_sampling:
            metrics |= {"dynamic_sampling/rounds": float(rounds), "dynamic_sampling/dropped": float(dropped)}
            metrics["dynamic_sampling/missing"] = float(max(0, self.config.prompts_per_step - groups))
        if self.config.oversample > 1:
            metrics["oversample/abandoned"] = float(len(experience.abandoned))
            metrics["oversample/tokens"] = float(experience.abandoned_tokens)
        return metrics


class AllocatedSampler(_OrderedPrompts):
    """The prompts that teach most among those that come next, each with its own number of rollouts; the others come
    again in the next epoch.

    Args:
        allocate: chooses among the candidates.
        candidates: prompts offered for each one that may be chosen.
    """

    def __init__(
        self,
        collector: Collector,
        order: PromptOrder,
        *,
        config: CollectConfig,
        sampling: Sampling,
        allocate: Allocate,
        candidates: int,
    ) -> None:
        super().__init__(collector, order, config=config, sampling=sampling)
        self.allocate, self.candidates = allocate, candidates

    def collect(self, cursor: int, pending: Sequence[str] = ()) -> StepBatch:
        """One step from this cursor on; nothing is ever pending. See `PromptSampler.collect`."""
        count, size = self.config.prompts_per_step, self.config.group_size
        candidates, cursor = self._draw(cursor, min(count * self.candidates, self.order.available(cursor)))
        allocation = self.allocate(candidates, rollouts=count * size)
        chosen = [candidates[index] for index in allocation.chosen]
        counts = [int(number) for number in allocation.rollouts]
        repeated = [prompt for prompt, number in zip(chosen, counts, strict=True) for _ in range(number)]
        experience = self.collector.collect(repeated, samples=1, sampling=self.sampling)
        return StepBatch(
            experience=experience,
            groups=self._weighted(experience, chosen, allocation),
            cursor=cursor,
            pending=(),
            metrics={
                **self._stage(cursor),
                "allocation/most": float(max(counts)),
                "allocation/prompts": float(len(chosen)),
                "allocation/skipped": allocation.skipped / len(candidates),
            },
        )

    def _weighted(self, experience: Experience, chosen: Sequence[Prompt], allocation: Allocation) -> list[Group]:
        """Whole groups with the importance weights of their prompts."""
        weights = {prompt.id: float(weight) for prompt, weight in zip(chosen, allocation.weights, strict=True)}
        prompts = {rollout.id: rollout.context.prompt_id for rollout in experience.rollouts}
        groups = self._whole(experience, min_rollouts=1)
        return [replace(group, weight=weights[prompts[group.members[0]]]) for group in groups]


def _joined(parts: Sequence[Experience]) -> Experience:
    if len(parts) == 1:
        return parts[0]
    return Experience(
        prompts=tuple({prompt.id: prompt for part in parts for prompt in part.prompts}.values()),
        rollouts=tuple(rollout for part in parts for rollout in part.rollouts),
        generate_seconds=sum(part.generate_seconds for part in parts),
        reward_seconds=sum(part.reward_seconds for part in parts),
        abandoned=parts[-1].abandoned,
        abandoned_tokens=sum(part.abandoned_tokens for part in parts),
        environment_seconds=sum(part.environment_seconds for part in parts),
        waited_seconds=sum(part.waited_seconds for part in parts),
    )
