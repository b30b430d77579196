"""What one step learns from: prompts drawn, sampled, grouped; drawn again where a group has no signal.

Every decision depends on the cursor and on what was sampled, so a resumed run repeats it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from coterie.algo.advantages import by_prompt
from coterie.config.schema import CollectConfig
from coterie.data.order import PromptOrder
from coterie.engines.base import Quorum, Sampling
from coterie.rollout.collector import Collector, Experience
from coterie.stats import has_variance
from coterie.types import Group, Prompt, Rollout

Metric = Callable[[Sequence[Rollout]], Sequence[float]]
"""[G] rollouts of one group → [G] the reward whose variance decides whether the group is kept."""


class Allocator(Protocol):
    """Decides before sampling which prompts of a step to try, and how often."""

    def choose(
        self, candidates: Sequence[Prompt], *, prompts: int, rollouts: int
    ) -> tuple[list[Prompt], list[int]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """One step's experience, and the groups of it that are learned from."""

    experience: Experience
    groups: list[Group]
    cursor: int
    """Training prompts consumed, these included."""
    waiting: tuple[str, ...]
    """Prompts that were drawn and not waited for; they come first in the next step."""
    metrics: Mapping[str, float] = field(default_factory=dict)


class PromptSampler:
    """Fills a step.

    Args:
        metric: the evaluated rewards of a group; with `config.dynamic_sampling` a group without variance in them is
            replaced.
        chooser: None takes the prompts as they come, `group_size` rollouts each.
        candidates: prompts that the chooser is offered for each one that it may take.
    """

    def __init__(
        self,
        collector: Collector,
        order: PromptOrder,
        *,
        config: CollectConfig,
        sampling: Sampling,
        metric: Metric,
        allocator: Allocator | None = None,
        candidates: int = 1,
    ) -> None:
        self.collector = collector
        self.order = order
        self.config = config
        self.sampling = sampling
        self.metric = metric
        self.allocator, self.candidates = allocator, candidates
        self.by_id = {prompt.id: prompt for prompt in order.prompts}

    def gather(self, cursor: int, waiting: Sequence[str] = ()) -> StepBatch:
        """One step from this cursor on.

        Raises:
            EngineError, RewardError: as collecting does.
        """
        if self.allocator is not None:
            return self._chosen(self.allocator, cursor)
        first = [self.by_id[name] for name in waiting]
        found: list[Experience] = []
        groups: list[Group] = []
        drawn: set[str] = set()
        rounds = dropped = 0
        while len(groups) < self.config.prompts_per_step and rounds < (
            self.config.dynamic_sampling_limit if self.config.dynamic_sampling else 1
        ):
            missing = self.config.prompts_per_step - len(groups)
            due, late = first[:missing], first[missing:]
            prompts, cursor = self._draw(cursor, math.ceil(missing * self.config.oversample), due, drawn)
            if not prompts:
                break
            experience = self._collect(prompts, missing, due)
            whole = self._whole(experience)
            kept = self._mixed(whole, experience) if self.config.dynamic_sampling else whole
            dropped += len(whole) - len(kept)
            groups += kept
            drawn |= {prompt.id for prompt in prompts}
            found.append(experience)
            first, rounds = [*experience.abandoned, *late], rounds + 1
        experience = _joined(found)
        return StepBatch(
            experience=experience,
            groups=groups,
            cursor=cursor,
            waiting=tuple(prompt.id for prompt in first),
            metrics=self._metrics(cursor, rounds, dropped, len(groups), experience),
        )

    def _chosen(self, allocator: Allocator, cursor: int) -> StepBatch:
        """A step of the prompts that teach most, of those that come next; the others come again in the next epoch."""
        count, size = self.config.prompts_per_step, self.config.group_size
        wanted = min(count * self.candidates, self.order.available(cursor))
        offered, cursor = self._draw(cursor, wanted, (), set())
        chosen, counts = allocator.choose(offered, prompts=min(count, len(offered)), rollouts=count * size)
        repeated = [prompt for prompt, times in zip(chosen, counts, strict=True) for _ in range(times)]
        experience = self.collector.collect(repeated, samples=1, sampling=self.sampling)
        return StepBatch(
            experience=experience,
            groups=self._whole(experience, least=1),
            cursor=cursor,
            waiting=(),
            metrics={
                **self._stage(cursor),
                "allocation/most": float(max(counts)),
                "allocation/prompts": float(len(chosen)),
            },
        )

    def _draw(self, cursor: int, wanted: int, first: Sequence[Prompt], drawn: set[str]) -> tuple[list[Prompt], int]:
        """Those in `first`, then the next of the order; in a later round none that was drawn in this step before, whose
        random draws would be the same again."""
        chosen = list(first)
        names = {prompt.id for prompt in first} | drawn
        size = self.order.available(cursor)
        for _ in range(2 * size):  # an epoch's end and the next one's start may hold the same prompts
            if len(chosen) >= min(wanted, size):
                break
            (prompt,) = self.order.draw(cursor, 1)
            cursor += 1
            if prompt.id not in names:
                chosen.append(prompt)
                names.add(prompt.id)
        return chosen, cursor

    def _collect(self, prompts: Sequence[Prompt], missing: int, first: Sequence[Prompt]) -> Experience:
        quorum = None
        if self.config.oversample > 1:
            quorum = Quorum(prompts=missing, required=frozenset(prompt.id for prompt in first))
        return self.collector.collect(prompts, samples=self.config.group_size, sampling=self.sampling, quorum=quorum)

    def _whole(self, experience: Experience, *, least: int = 2) -> list[Group]:
        """Groups of which no member ended in an error: failures correlate with length and task, so leaving out only
        the failed members would bias the baseline. A group is whole or takes no part."""
        broken = {f"{rollout.context.prompt_id}@{rollout.context.version}" for rollout in experience.errors}
        least = min(least, self.config.group_size)
        groups = by_prompt(experience.rollouts)
        return [group for group in groups if group.key not in broken and len(group.members) >= least]

    def _mixed(self, groups: Sequence[Group], experience: Experience) -> list[Group]:
        """Those whose evaluated rewards differ: the condition of verl's `filter_groups`, std(metric) > 0. Of a binary
        reward these are the groups with correct and wrong attempts."""
        by_id = {rollout.id: rollout for rollout in experience.rollouts}
        return [group for group in groups if has_variance(self.metric([by_id[name] for name in group.members]))]

    def _stage(self, cursor: int) -> dict[str, float]:
        """Where the curriculum is after this step; nothing where there is none."""
        return {"stage": float(self.order.stage(cursor))} if len(self.order.stages) > 1 else {}

    def _metrics(self, cursor: int, rounds: int, dropped: int, groups: int, experience: Experience) -> dict[str, float]:
        found = self._stage(cursor)
        if self.config.dynamic_sampling:
            found |= {"dynamic_sampling/rounds": float(rounds), "dynamic_sampling/dropped": float(dropped)}
            found["dynamic_sampling/missing"] = float(self.config.prompts_per_step - groups)
        if self.config.oversample > 1:
            found["oversample/abandoned"] = float(len(experience.abandoned))
            found["oversample/tokens"] = float(experience.abandoned_tokens)
        return found


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
    )
