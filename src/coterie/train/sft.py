"""The loop of supervised fine-tuning: draw conversations, imitate the assistant's turns, measure the held-out loss."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from coterie.algo.objective import Objective, TokenView
from coterie.batches.batch import Batch
from coterie.batches.pack import pack, plan_scoring
from coterie.config.objective import ObjectiveConfig, RolloutCorrectionConfig
from coterie.data.order import PromptOrder
from coterie.engines.base import check_version
from coterie.policy.memory import peak
from coterie.policy.update_report import UpdateReport
from coterie.runs.models import HELDOUT_LOSS, best_step
from coterie.train.demonstrations import Demonstration
from coterie.train.loop import Loop
from coterie.types import Credit, Rollout

UPDATE = {"loss": "loss", "entropy": "entropy/data"} | {name: name for name in ("grad_norm", "lr", "tokens/trained")}
"""Metrics of an update that mean something without a sampler, and their names here: the loss is the mean negative
log-likelihood of the assistant's tokens, nats, and the entropy is that at the data's tokens, not at sampled ones."""


def log_likelihood(view: TokenView) -> Tensor:
    """log π of each token: what imitation maximises."""
    return view.logprobs


IMITATION = Objective(
    settings=ObjectiveConfig(loss="coterie.train.sft:log_likelihood", loss_agg_mode="token-mean"),
    correction=RolloutCorrectionConfig(kind="none"),
    function=log_likelihood,
)
"""Mean log-likelihood over all trained tokens of an optimizer step: one global denominator, however rows are packed."""


def imitation(rollouts: Sequence[Rollout]) -> list[Credit]:
    """Credit of demonstrations: every token counts alike."""
    return [Credit(rollout_id=rollout.id, advantage=1.0, clip_low=1.0, clip_high=1.0) for rollout in rollouts]


@dataclass(slots=True, kw_only=True)
class SftTrainer(Loop):
    """Supervised fine-tuning over the parts of a run."""

    order: PromptOrder
    """Of the prompts of the demonstrations."""
    demonstrations: Mapping[str, Demonstration]
    """By the id of their prompt."""
    heldout: Sequence[Demonstration]
    batch_size: int
    keep_best: Literal["loss", "accuracy", "last"] = "loss"

    def advance(self) -> None:
        """One step: conversations, packed rows, an update, and the held-out loss where it is due."""
        started = time.perf_counter()
        check_version(self.engine.version, self.progress.step)
        if self.progress.step == 0 and self.heldout:
            self.recorder.measured(0, {HELDOUT_LOSS: self.heldout_loss()})
        batch = self.batch(self.progress.cursor)
        report = self.learner.update(self.packed(batch), IMITATION)
        step = self.progress.step + 1
        self.progress = replace(self.progress, step=step, cursor=self.progress.cursor + self.batch_size)
        self.engine.commit(step)
        metrics = {
            **{name: report.metrics[key] for key, name in UPDATE.items() if key in report.metrics},
            **_step_losses(batch, report),
            "epoch": self.progress.cursor / len(self.demonstrations),
            "update/nonfinite": float(report.skipped),
            "time/step": time.perf_counter() - started,
            "speed/update": report.metrics.get("tokens/trained", 0.0) / max(time.perf_counter() - started, 1e-9),
            "memory/peak": float(peak(self.learner.policy.device)),
        }
        if self.heldout and self.settings.evaluates(self.progress):
            metrics[HELDOUT_LOSS] = self.heldout_loss()
        self.recorder.measured(step, metrics)
        if report.skipped:
            self.recorder.note(step, "skipped_update", "the gradient was not finite; the weights stay as they were")

    def batch(self, cursor: int) -> list[Rollout]:
        """The conversations of a step; one that is drawn again at the turn of an epoch counts twice."""
        drawn = self.order.draw(cursor, self.batch_size)
        return [
            replace(self.demonstrations[prompt.id].rollout, id=f"{prompt.id}#{place}")
            for place, prompt in enumerate(drawn)
        ]

    def packed(self, batch: Sequence[Rollout]) -> list[list[Batch]]:
        """The packed rows of each optimizer step."""
        by_id = {rollout.id: rollout for rollout in batch}
        return pack(by_id, imitation(batch), self.settings.packing, self.progress.step)

    def heldout_loss(self) -> float:
        """Mean negative log-likelihood of the assistant's tokens in the held-out conversations, nats a token."""
        rollouts = [replace(demo.rollout, id=f"{k}") for k, demo in enumerate(self.heldout)]
        limit = self.settings.packing.max_tokens_per_microbatch
        scores = self.learner.score(plan_scoring(rollouts, max_tokens_per_microbatch=limit), with_reference=False)
        logprobs = [scores[rollout.id].logprobs for rollout in rollouts]
        return -float(np.concatenate(logprobs).mean())

    def saves(self) -> bool:
        """Also where this step is the best so far: its checkpoint is the one to go on with."""
        return Loop.saves(self) or self.best() == self.progress.step

    def best(self) -> int | None:
        """The evaluated step of the smallest held-out loss, or of the highest held-out result."""
        return None if self.keep_best == "last" else best_step(self.recorder.db, self.keep_best)

    def writers(self) -> Sequence[Callable[[Path], None]]:
        return ()

    def state(self) -> dict[str, Any]:
        return {"schedules": {}}

    def load(self, folder: Path) -> str:
        return ""


def _step_losses(batch: Sequence[Rollout], report: UpdateReport) -> dict[str, float]:
    """Loss of the annotated steps and of what follows them, where conversations have any."""
    inside: list[np.ndarray] = []
    behind: list[np.ndarray] = []
    for rollout in batch:
        if rollout.step_rewards and rollout.id in report.logprobs:
            end = rollout.step_rewards[-1].end + 1
            inside.append(report.logprobs[rollout.id][:end])
            behind.append(report.logprobs[rollout.id][end:])
    parts = {"loss/steps": inside, "loss/answer": behind}
    return {name: -float(np.concatenate(x).mean()) for name, x in parts.items() if sum(map(len, x))}
