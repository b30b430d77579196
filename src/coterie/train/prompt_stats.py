"""Statistics of each prompt and task over a run, which every rollout is stamped with as they were when it was sent
out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from coterie.algo.estimators import Advantages
from coterie.grouping.features import text_embedding
from coterie.rollout.collector import Experience
from coterie.runs.prompts import StoredPrompt
from coterie.runs.state_files import StateFiles
from coterie.train.evaluate import Criterion
from coterie.types import Prompt, Rollout, SamplingSnapshot

FILES = StateFiles("history", "the history")
MEMORY = 40.0
"""Steps in which an attempt fades to 1/e: the policy moves, and old attempts say less of it."""


@dataclass(slots=True)
class PromptStats:
    """Fading sums over the usable attempts at one prompt, or at all of one task."""

    tries: float = 0.0
    """Not fading."""
    weight: float = 0.0
    passed: float = 0.0
    reward: float = 0.0
    length: float = 0.0
    step: float = 0.0
    """Of the last attempt: the sums are as of then."""

    def add(self, step: int, rollout: Rollout, right: bool) -> None:
        if step != self.step:
            fade = float(np.exp((self.step - step) / MEMORY))
            self.weight, self.passed = fade * self.weight, fade * self.passed
            self.reward, self.length = fade * self.reward, fade * self.length
        self.tries, self.weight, self.step = self.tries + 1, self.weight + 1, float(step)
        self.passed += right
        self.reward += rollout.reward or 0.0
        self.length += rollout.context.completion_length

    def mean(self, total: float) -> float | None:
        return total / self.weight if self.weight else None


class PromptStatsTable:
    """Pass rates, rewards and lengths so far, and which prompts have been stored.

    Args:
        criterion: says which rollouts are correct.
    """

    def __init__(self, criterion: Criterion | None = None) -> None:
        self.criterion = criterion or Criterion()
        self.prompts: dict[str, PromptStats] = {}
        self.tasks: dict[str, PromptStats] = {}
        self.stored: dict[str, int] = {}
        """Step whose file holds the prompt."""

    def stamp(self, step: int, experience: Experience, advantages: Advantages) -> tuple[Experience, list[StoredPrompt]]:
        """The step's rollouts with what was known when they were sent out, and the prompts that are new.

        Args:
            advantages: their predictions were made before the step's rewards were seen.
        """
        new_prompts = self._new_prompts(step, experience.prompts, advantages)
        rollouts = tuple(self._stamped(rollout, advantages) for rollout in experience.rollouts)
        return replace(experience, rollouts=rollouts), new_prompts

    def _new_prompts(self, step: int, prompts: Sequence[Prompt], advantages: Advantages) -> list[StoredPrompt]:
        embedded = {prompt.id: (prompt, vector) for prompt, vector in advantages.embedded}
        by_policy = [StoredPrompt(prompt=prompt, kind="policy", embedding=vec) for prompt, vec in embedded.values()]
        others = (prompt for prompt in prompts if prompt.id not in embedded)
        by_text = (
            StoredPrompt(prompt=prompt, kind="text", embedding=text_embedding(prompt.messages[-1]["content"]))
            for prompt in others
            if prompt.id not in self.stored
        )
        new_prompts = [*(row for row in by_policy if row.prompt.id not in self.stored), *by_text]
        self.stored |= {row.prompt.id: step for row in new_prompts}
        return new_prompts

    def _stamped(self, rollout: Rollout, advantages: Advantages) -> Rollout:
        context = rollout.context
        stats, task = self.prompts.get(context.prompt_id, PromptStats()), self.tasks.get(context.task, PromptStats())
        prediction = advantages.predictions.get(context.prompt_id)
        snapshot = SamplingSnapshot(
            time=float(context.version) if advantages.time is None else advantages.time,
            attempts=int(stats.tries),
            pass_rate=stats.mean(stats.passed),
            reward=stats.mean(stats.reward),
            length=stats.mean(stats.length),
            task_attempts=int(task.tries),
            task_pass_rate=task.mean(task.passed),
            task_reward=task.mean(task.reward),
            expected=None if prediction is None else prediction.reward,
            expected_std=None if prediction is None else prediction.std,
            region=None if prediction is None else prediction.region,
        )
        reference = f"step_{self.stored[context.prompt_id]:06d}#{context.prompt_id}"
        return replace(rollout, context=replace(context, dispatch=snapshot, embedding=reference))

    def learn(self, step: int, rollouts: Iterable[Rollout]) -> None:
        """Add a step's rollouts, but for those that ended in an error."""
        for rollout in rollouts:
            if not rollout.outcome.usable or rollout.reward is None:
                continue
            right = self.criterion.is_correct(rollout)
            context = rollout.context
            self.prompts.setdefault(context.prompt_id, PromptStats()).add(step, rollout, right)
            self.tasks.setdefault(context.task, PromptStats()).add(step, rollout, right)

    def save(self, folder: Path) -> None:
        """Write the table into a checkpoint's folder."""
        tables = {"prompts": self.prompts, "tasks": self.tasks}
        arrays = {name: _table(tallies.values()) for name, tallies in tables.items()}
        names = {name: list(tallies) for name, tallies in tables.items()}
        FILES.write(folder, arrays, {**names, "stored": self.stored})

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint; from nothing where it was made before this was kept."""
        if not (folder / FILES.facts).exists():
            return
        with FILES.reading(folder) as (arrays, names):
            tables = {
                table: {name: PromptStats(*row) for name, row in zip(names[table], arrays[table].tolist(), strict=True)}
                for table in ("prompts", "tasks")
            }
            stored = {str(name): int(step) for name, step in names["stored"].items()}
        self.prompts, self.tasks, self.stored = tables["prompts"], tables["tasks"], stored


def _table(tallies: Iterable[PromptStats]) -> np.ndarray:
    """[n, 6]"""
    rows = [(stats.tries, stats.weight, stats.passed, stats.reward, stats.length, stats.step) for stats in tallies]
    return np.array(rows, dtype=np.float64).reshape(-1, 6)
