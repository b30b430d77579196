"""What one step learns from: prompts drawn, sampled, grouped; drawn again where a group says nothing.

Every decision depends on the cursor and on what was sampled, so a resumed run repeats it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from coterie.algo.groups import by_prompt
from coterie.collect import Collector, Experience
from coterie.config.schema import CollectConfig
from coterie.data.order import PromptOrder
from coterie.engines.base import Sampling
from coterie.engines.quorum import Quorum
from coterie.types import Group, Prompt, Rollout

Correct = Callable[[Rollout], bool]


class Chooser(Protocol):
    """Decides before sampling which prompts of a step to try, and how often."""

    def choose(
        self, candidates: Sequence[Prompt], *, prompts: int, rollouts: int
    ) -> tuple[list[Prompt], list[int]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """One step's experience, and the groups of it that are learned from."""

    experience: Experience
    groups: list[Group]
    cursor: int
    """Training prompts consumed, these included."""
    waiting: tuple[str, ...]
    """Prompts that were drawn and not waited for; they come first in the next step."""
    metrics: Mapping[str, float] = field(default_factory=dict)


class Gatherer:
    """Fills a step.

    Args:
        correct: says of a rollout whether it is right: a group of which all or none are is one without variance.
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
        correct: Correct,
        chooser: Chooser | None = None,
        candidates: int = 1,
    ) -> None:
        self.collector = collector
        self.order = order
        self.config = config
        self.sampling = sampling
        self.correct = correct
        self.chooser, self.candidates = chooser, candidates
        self.by_id = {prompt.id: prompt for prompt in order.prompts}

    def gather(self, cursor: int, waiting: Sequence[str] = ()) -> Gathered:
        """One step from this cursor on.

        Raises:
            EngineError, RewardError: as collecting does.
        """
        if self.chooser is not None:
            return self._chosen(self.chooser, cursor)
        first = [self.by_id[name] for name in waiting]
        found: list[Experience] = []
        groups: list[Group] = []
        drawn: set[str] = set()
        rounds = dropped = 0
        while len(groups) < self.config.prompts and rounds < (self.config.refill_limit if self.config.refill else 1):
            missing = self.config.prompts - len(groups)
            prompts, cursor = self._draw(cursor, missing, first, drawn)
            if not prompts:
                break
            experience = self._collect(prompts, missing, first)
            whole = self._whole(experience)
            kept = [group for group in whole if not self.config.refill or self._mixed(group, experience)]
            dropped += len(whole) - len(kept)
            groups += kept
            drawn |= {prompt.id for prompt in prompts}
            found.append(experience)
            first, rounds = list(experience.abandoned), rounds + 1
        experience = _joined(found)
        return Gathered(
            experience=experience,
            groups=groups,
            cursor=cursor,
            waiting=tuple(prompt.id for prompt in first),
            metrics=self._metrics(rounds, dropped, experience),
        )

    def _chosen(self, chooser: Chooser, cursor: int) -> Gathered:
        """A step of the prompts that teach most, of those that come next; the others come again in the next epoch."""
        count = self.config.prompts
        wanted = min(count * self.candidates, len(self.order.prompts))
        offered = list({prompt.id: prompt for prompt in self.order.draw(cursor, wanted)}.values())
        chosen, counts = chooser.choose(
            offered, prompts=min(count, len(offered)), rollouts=count * self.config.group_size
        )
        repeated = [prompt for prompt, times in zip(chosen, counts, strict=True) for _ in range(times)]
        experience = self.collector.collect(repeated, samples=1, sampling=self.sampling)
        return Gathered(
            experience=experience,
            groups=self._whole(experience, least=1),
            cursor=cursor + wanted,
            waiting=(),
            metrics={"allocation/most": float(max(counts)), "allocation/prompts": float(len(chosen))},
        )

    def _draw(self, cursor: int, missing: int, first: Sequence[Prompt], drawn: set[str]) -> tuple[list[Prompt], int]:
        """Those that wait, then the next of the order; in a later round none that was drawn in this step before,
        whose random draws would be the same again."""
        wanted = math.ceil(missing * self.config.oversample)
        chosen = list(first)
        names = {prompt.id for prompt in first}
        for _ in range(len(self.order.prompts)):
            if len(chosen) >= wanted:
                break
            (prompt,) = self.order.draw(cursor, 1)
            cursor += 1
            if prompt.id in names and (first or self.config.oversample > 1):
                continue
            if prompt.id not in drawn:
                chosen.append(prompt)
                names.add(prompt.id)
        return chosen, cursor

    def _collect(self, prompts: Sequence[Prompt], missing: int, first: Sequence[Prompt]) -> Experience:
        quorum = None
        if self.config.oversample > 1:
            quorum = Quorum(prompts=max(missing, len(first)), required=frozenset(prompt.id for prompt in first))
        return self.collector.collect(prompts, samples=self.config.group_size, sampling=self.sampling, quorum=quorum)

    def _whole(self, experience: Experience, *, least: int = 2) -> list[Group]:
        """Groups of which no member ended in an error: failures correlate with length and task, so leaving out only
        the failed members would bias the baseline. A group is whole or takes no part."""
        broken = {f"{rollout.context.prompt_id}@{rollout.context.version}" for rollout in experience.errors}
        least = min(least, self.config.group_size)
        groups = by_prompt(experience.rollouts)
        return [group for group in groups if group.key not in broken and len(group.members) >= least]

    def _mixed(self, group: Group, experience: Experience) -> bool:
        members = set(group.members)
        hits = [self.correct(rollout) for rollout in experience.rollouts if rollout.id in members]
        return any(hits) and not all(hits)

    def _metrics(self, rounds: int, dropped: int, experience: Experience) -> dict[str, float]:
        found: dict[str, float] = {}
        if self.config.refill:
            found |= {"refill/rounds": float(rounds), "refill/dropped": float(dropped)}
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
