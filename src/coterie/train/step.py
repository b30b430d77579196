"""Records of the loop: its settings, its progress, and the result of one step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from coterie.algo.estimators import Advantages
from coterie.algo.subsample import Subsampled
from coterie.batches.pack import Packing
from coterie.policy.update_report import UpdateReport
from coterie.rollout.replay import Replayed
from coterie.rollout.sampler import StepBatch
from coterie.types import Credit


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Position of a run; replaced after each step."""

    step: int = 0
    """Steps done."""
    cursor: int = 0
    """Training prompts consumed."""
    pending: tuple[str, ...] = ()
    """Prompts that were drawn and come first in the next step."""
    evaluated: int = -1
    """The last step that was evaluated. This and the next follow from the run's folder: no checkpoint holds them."""
    saved: int = -1
    """The last step that has a checkpoint."""

    def after(self, batch: StepBatch) -> Progress:
        """Progress after one more step."""
        return replace(self, step=self.step + 1, cursor=batch.cursor, pending=batch.pending)

    def state(self) -> dict[str, Any]:
        """JSON-able, for a checkpoint."""
        return {"step": self.step, "cursor": self.cursor, "pending": list(self.pending)}

    @classmethod
    def restored(cls, state: Mapping[str, Any], *, evaluated: bool) -> Progress:
        """Progress at a checkpoint.

        Args:
            evaluated: the held-out prompts were measured at its step.
        """
        step = int(state["step"])
        return cls(
            step=step,
            cursor=int(state["cursor"]),
            pending=tuple(state["pending"]),
            evaluated=step if evaluated else -1,
            saved=step,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """Length of a run, its intervals, and the selection of the rollouts that an update trains on."""

    steps: int
    eval_every: int = 0
    """Steps between evaluations; 0 = at both ends only."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 = at the end only."""
    packing: Packing
    mask_truncated: bool = False
    """Rollouts that were cut off train nothing."""
    drop_zero_variance: bool = False
    """Groups without variance are left out of the denominator too."""
    subsample: float = 0.0
    """Threshold of `subsample_prompts`; 0 = off."""
    seed: int = 0

    def finished(self, progress: Progress) -> bool:
        """True if the last step is done."""
        return progress.step >= self.steps

    def evaluates(self, progress: Progress) -> bool:
        """True if the held-out prompts are to be measured now."""
        return progress.evaluated != progress.step and (progress.step == 0 or self._due(progress, self.eval_every))

    def saves(self, progress: Progress) -> bool:
        """True if a checkpoint is to be saved now."""
        return self._due(progress, self.checkpoint_every)

    def _due(self, progress: Progress, every: int) -> bool:
        return self.finished(progress) or (every > 0 and progress.step % every == 0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepResult:
    """Result of one step, of which metrics, messages and files are made."""

    step: int
    """Steps done, this one included."""
    batch: StepBatch
    advantages: Advantages
    credits: tuple[Credit, ...]
    """Of the fresh rollouts that may be trained on, before any is left out at random."""
    update: UpdateReport
    seconds: Mapping[str, float]
    """Of the `step`, of its parts `collect` and `update`, of the update's `advantage` (credit, replay and packing), and
    of the parts in `coterie.phases`; `processor_wait` is what the threads of this process, taken together, waited for a
    processor that another program had."""
    cpu_seconds: Mapping[str, float] = field(default_factory=dict)
    """Of the same parts, on the processors: all threads of this process together."""
    threads_slept: bool = False
    """Idle compute threads slept for a time instead of spinning: others wanted the processors."""
    replayed: Replayed = field(default_factory=Replayed)
    """Past groups that joined the update."""
    subsampled: Subsampled = field(default_factory=Subsampled)
    """All credits of the update."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Weights of the objective that were adapted after the update."""
    memory: int = 0
    """Bytes at the high-water mark."""
