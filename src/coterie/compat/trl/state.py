"""The state and the logs of a trainer in TRL's names, and the callbacks of transformers."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from coterie.callbacks import Callback
from coterie.compat.trl.config import GRPOConfig, Length, batch_of
from coterie.errors import ConfigError, RunError
from coterie.types import POOLED, EvalResult

LOGS = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "lr",
    "reward": "reward/mean",
    "reward_std": "reward/std",
    "frac_reward_zero_std": "groups/zero_variance",
    "completions/mean_length": "length/mean",
    "completions/max_length": "length/max",
    "completions/mean_terminated_length": "length/terminated",
    "completions/clipped_ratio": "truncated",
    "kl": "kl/ref",
    "entropy": "entropy",
    "clip_ratio/low_mean": "clip/low",
    "clip_ratio/high_mean": "clip/high",
    "step_time": "time/step",
}
"""Name in TRL's logs → metric here."""
PART = "reward/part/"
"""Metrics that are `rewards/NAME/mean` in TRL's logs."""
CALLED = (
    "on_init_end",
    "on_train_begin",
    "on_step_begin",
    "on_step_end",
    "on_log",
    "on_evaluate",
    "on_save",
    "on_train_end",
)
"""Methods of a TrainerCallback that are called."""


@dataclass(slots=True, kw_only=True)
class TrainerState:
    """What scripts read of transformers' TrainerState."""

    global_step: int = 0
    """Optimizer steps done."""
    max_steps: int = 0
    epoch: float = 0.0
    num_train_epochs: float = 0.0
    log_history: list[dict[str, Any]] = field(default_factory=list)
    """One entry every `logging_steps` optimizer steps, one an evaluation, and one at the end."""
    is_world_process_zero: bool = True
    is_local_process_zero: bool = True


def logs_of(window: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of some steps' metrics in TRL's names."""
    parts = dict.fromkeys(name for metrics in window for name in metrics if name.startswith(PART))
    metric_names = LOGS | {f"rewards/{part.removeprefix(PART)}/mean": part for part in parts}
    values = {name: [m[metric] for m in window if metric in m] for name, metric in metric_names.items()}
    return {name: sum(column) / len(column) for name, column in values.items() if column}


def eval_logs(results: Iterable[EvalResult], prefix: str = "eval") -> dict[str, float]:
    """Held-out results in TRL's names; those of several data sets, by task, have its name behind the prefix."""
    results = [result for result in results if result.task != POOLED]
    logs: dict[str, float] = {}
    for result in results:
        start = f"{prefix}_{result.task}" if len(results) > 1 else prefix
        logs |= {} if result.reward is None else {f"{start}_reward": result.reward.value}
        logs |= {f"{start}_rewards/{label}/mean": value for label, value in result.reward_parts.items()}
        logs |= {f"{start}_completions/mean_length": result.mean_length}
        logs |= {f"{start}_completions/clipped_ratio": result.truncated}
    return logs


def callbacks_of(callbacks: Sequence[Any]) -> list[Any]:
    """Callbacks of transformers, or of coterie, as objects.

    Raises:
        ConfigError: one has a method that nothing here would call.
    """
    objects = [callback() if isinstance(callback, type) else callback for callback in callbacks]
    for callback in objects:
        if isinstance(callback, Callback):
            continue
        kinds = [kind for kind in type(callback).__mro__ if kind.__name__ not in ("TrainerCallback", "object")]
        methods = {name for kind in kinds for name in vars(kind) if name.startswith("on_")}
        unknown = sorted(methods - set(CALLED))
        if unknown or not methods:
            what = f"has the method {unknown[0]}" if unknown else "has no method on_…"
            raise ConfigError(
                f"callback {type(callback).__name__} {what}, which cannot be honoured; a TrainerCallback is called at "
                f"{', '.join(CALLED)}, a coterie.Callback at its own methods"
            )
    return objects


def control() -> SimpleNamespace:
    """What a TrainerCallback may set: transformers' TrainerControl."""
    wishes = ("training_stop", "epoch_stop", "save", "evaluate", "log")
    return SimpleNamespace(**{f"should_{wish}": False for wish in wishes})


class TrainerEvents(Callback):
    """Keeps a trainer's state while a run goes on, and calls the callbacks of transformers.

    Args:
        args: the trainer's.
        length: of the run.
        state: to keep.
        callbacks: of transformers.
        extra: keyword arguments that they get.
    """

    def __init__(
        self,
        args: GRPOConfig,
        length: Length,
        state: TrainerState,
        callbacks: Sequence[Any],
        extra: Mapping[str, Any],
    ) -> None:
        self.args, self.length, self.state = args, length, state
        self.callbacks, self.extra = callbacks, extra
        self.updates = batch_of(args).updates
        self.window: list[Mapping[str, float]] = []
        self.losses: list[float] = []
        state.max_steps = length.updates
        state.num_train_epochs = length.updates / length.updates_per_epoch

    def call(self, method: str, **extra: Any) -> None:
        """Call a method of all callbacks that have it, and obey `control.should_training_stop`.

        Raises:
            RunError: a callback asks for something else.
        """
        asked = control()
        for callback in self.callbacks:
            answer = getattr(callback, method, lambda *_, **__: None)(
                self.args, self.state, asked, **self.extra, **extra
            )
            asked = asked if answer is None else answer
        for wish in ("should_epoch_stop", "should_save", "should_evaluate"):
            if getattr(asked, wish, False):
                raise RunError(
                    f"a callback set control.{wish} in {method}, which cannot be honoured: it is set by the arguments "
                    "of GRPOConfig; only should_training_stop is obeyed"
                )
        if getattr(asked, "should_training_stop", False):
            self._stop()

    def _stop(self) -> None:
        """The same as Ctrl-C: the step is over, a checkpoint is saved, the run returns."""
        if threading.current_thread() is not threading.main_thread():
            raise RunError("control.should_training_stop is obeyed in the main thread only; train there")
        signal.raise_signal(signal.SIGINT)

    def on_start(self, info: Any) -> None:
        self.call("on_train_begin")
        self.call("on_step_begin")

    def on_step(self, step: int, metrics: Mapping[str, float], sample: Any) -> None:
        state, before = self.state, self.state.global_step
        state.global_step = min(step * self.updates, self.length.updates)
        state.epoch = state.global_step / self.length.updates_per_epoch
        self.window.append(metrics)
        self.losses += [metrics["loss"]] if "loss" in metrics else []
        self.call("on_step_end")
        every = self.args.logging_steps
        every = max(1, round(every if every >= 1 else every * self.length.updates))
        if state.global_step // every > before // every or (self.args.logging_first_step and before == 0):
            self._log(logs_of(self.window))
            self.window = []
        if state.global_step < self.length.updates:
            self.call("on_step_begin")

    def on_evaluate(self, results: Sequence[EvalResult]) -> None:
        logs = eval_logs(results)
        self._log(logs)
        self.call("on_evaluate", metrics=logs)

    def on_event(self, kind: str, message: str) -> None:
        if kind == "checkpoint":
            self.call("on_save")

    def on_end(self, run: Path, message: str) -> None:
        self.call("on_train_end")

    def finish(self, seconds: float) -> dict[str, float]:
        """The last entry of the log: how long the run took, and its mean loss."""
        loss = sum(self.losses) / len(self.losses) if self.losses else 0.0
        logs = {"train_runtime": seconds, "train_loss": loss}
        self._log(logs)
        return logs

    def _log(self, logs: Mapping[str, float]) -> None:
        entry = {**logs, "epoch": self.state.epoch, "step": self.state.global_step}
        self.state.log_history.append(entry)
        self.call("on_log", logs=entry)
