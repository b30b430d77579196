"""Named moments at which an attempt can be made to die, and the arming of them."""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Point:
    """Before or after one function of coterie's, or of the library it calls there."""

    name: str
    target: str
    """`module:attribute`"""
    when: Literal["before", "after"]
    always: bool = False
    """Also in the short set: a kill at this very place once found a defect."""


def _both(name: str, target: str) -> list[Point]:
    return [Point(f"before {name}", target, "before"), Point(f"after {name}", target, "after")]


_RUNS = "coterie.runs"
WHILE_TRAINING = [
    Point("the run's folder is made", f"{_RUNS}.directory:_make", "after"),
    Point("its lock is taken", f"{_RUNS}.directory:Lock", "after"),
    *_both("the settings are written", f"{_RUNS}.directory:RunDirectory.write_config"),
    Point("the database is opened", f"{_RUNS}.metrics:_connect", "after"),
    Point("before the database has its tables", f"{_RUNS}.metrics:MetricsDB._upgrade", "before", always=True),
    Point("after the database has its tables", f"{_RUNS}.metrics:MetricsDB._upgrade", "after"),
    Point("prompts are drawn", "coterie.data.order:PromptOrder.draw", "after"),
    Point("prompts are read", "coterie.engines.runner:PackedRunner._prefill", "after"),
    Point("one more token", "coterie.engines.runner:PackedRunner.decode", "before"),
    Point("all is sampled", "coterie.engines.base:Call.__exit__", "before"),
    Point("a reward is asked", "coterie.rewards.process:Worker.send_request", "after"),
    Point("all is scored", "coterie.rewards.pool:Scorer.score", "after"),
    Point("a backward pass", "coterie.policy.learner:Learner._backward", "after"),
    Point("one tensor is stepped", "coterie.policy.optim:MasterAdamW._step", "after"),
    Point("all tensors are stepped", "coterie.policy.optim:MasterAdamW.step", "after"),
    *_both("the engine gets its version", "coterie.engines.embedded:EmbeddedEngine.commit"),
    Point("the rollouts are in a file", f"{_RUNS}.parquet:pq.write_table", "after"),
    *_both("a file is flushed", f"{_RUNS}.durable:fsync"),
    *_both("a rename", "os:rename"),
    Point("the rollouts are stored", f"{_RUNS}.rollouts:write_step", "after"),
    *_both("the prompts are stored", f"{_RUNS}.prompts:write_step"),
    Point("inside a transaction", f"{_RUNS}.metrics:seal", "after"),
    *_both("the metrics are stored", f"{_RUNS}.metrics:MetricsDB.record"),
    Point("a line of the log", f"{_RUNS}.directory:RunLog.line", "after"),
    Point("the held-out prompts are answered", "coterie.train.evaluate:Evaluator.evaluate", "after"),
    *_both("an evaluation is stored", f"{_RUNS}.metrics:MetricsDB.record_evals"),
    Point("a checkpoint is asked for", f"{_RUNS}.checkpoint:save", "before"),
    Point("the optimizer is written", "coterie.policy.learner:Learner.save", "after"),
    Point("the model is written", "coterie.policy.model:Policy.save", "after"),
    Point("the manifest is sealed", f"{_RUNS}.durable:_sealed", "after"),
    *_both("a checkpoint is published", f"{_RUNS}.checkpoint:publish_directory"),
    Point("a checkpoint is read back", f"{_RUNS}.checkpoint:verify_directory", "after"),
    Point("an event is noted", "coterie.train.recorder:Recorder.note", "after"),
    *_both("old checkpoints are removed", f"{_RUNS}.checkpoint:prune"),
    *_both("a folder is deleted", f"{_RUNS}.checkpoint:shutil.rmtree"),
    Point("a file is deleted", "os:unlink", "after"),
    Point("the report is written", "coterie.launch:report_run", "before"),
]
WHILE_RESUMING = [
    *_both("leftovers are removed", f"{_RUNS}.directory:remove_leftovers"),
    Point("a checkpoint is found", f"{_RUNS}.checkpoint:newest", "after"),
    Point("the optimizer is loaded", "coterie.policy.learner:Learner.load", "after"),
    Point("the history is loaded", "coterie.train.prompt_stats:PromptStatsTable.load", "after"),
    *_both("the database forgets", f"{_RUNS}.metrics:MetricsDB.truncate_after"),
    *_both("rollouts are forgotten", f"{_RUNS}.parquet:truncate_after"),
    *_both("the state is restored", "coterie.train.grpo:Trainer.restore"),
    Point("the resume is noted", "coterie.train.recorder:Recorder.note", "after"),
    Point("the first step again", "coterie.train.recorder:Recorder.step", "after"),
    Point("the first checkpoint again", f"{_RUNS}.checkpoint:save", "after"),
]
_LAGGED = "coterie.rollout.lagged_sampler:LaggedSampler"
WITH_A_LAG = [
    *_both("the engine gets earlier weights", f"{_LAGGED}._serve"),
    *_both("weights are published", "coterie.cluster.engine_pool:EnginePool.publish"),
    *_both("a batch is sampled ahead", f"{_LAGGED}._sample"),
    Point("a batch is taken", f"{_LAGGED}.take", "after"),
    Point("a tensor is stepped while a batch is sampled", "coterie.policy.optim:MasterAdamW._step", "after"),
    *_both("batches that were begun are finished", f"{_LAGGED}.settle"),
    *_both("batches ahead are written", "coterie.rollout.lagged_batches:write"),
]
RESUMING_A_LAG = [
    *_both("batches ahead are read", "coterie.rollout.lagged_batches:read"),
    Point("the first batch again", f"{_LAGGED}.take", "after"),
]
RANK_LOST = [
    Point("a backward pass", "coterie.policy.learner:Learner._backward", "after"),
    Point("one tensor is stepped", "coterie.policy.optim:MasterAdamW._step", "after"),
    Point("an update is done", "coterie.cluster.learner_group:LearnerGroup.update", "after"),
    Point("the step is recorded", "coterie.train.recorder:Recorder.step", "after"),
    Point("a checkpoint is asked for", f"{_RUNS}.checkpoint:save", "before"),
]
"""Where another learner rank dies."""
INTERRUPTED = Point("the metrics are stored", f"{_RUNS}.metrics:MetricsDB.record", "after")
"""Where the first attempt dies, in its third step, before a resume is interrupted."""


def die_at(point: Point, nth: int) -> Callable[[], None]:
    """A trap for a child: SIGKILL at the nth pass of a point."""
    return do_at(point, nth, lambda: os.kill(os.getpid(), signal.SIGKILL))


def do_at(point: Point, nth: int, deed: Callable[[], object]) -> Callable[[], None]:
    """A trap for a child: a deed at the nth pass of a point."""

    def pass_(count: int) -> None:
        if count == nth:
            deed()

    return lambda: _wrap(point, pass_)


def count_all(points: list[Point], file: str) -> Callable[[], None]:
    """No trap: writes a line for every pass, so that all passes can be tried."""
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def arm() -> None:
        for index, point in enumerate(points):
            _wrap(point, lambda _, index=index: os.write(handle, b"%d\n" % index))

    return arm


def _wrap(point: Point, pass_: Callable[[int], object]) -> None:
    module, _, path = point.target.partition(":")
    *parents, name = path.split(".")
    owner: Any = reduce(getattr, parents, importlib.import_module(module))
    inner = getattr(owner, name)
    passes = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal passes
        passes += 1
        if point.when == "before":
            pass_(passes)
            return inner(*args, **kwargs)
        result = inner(*args, **kwargs)
        pass_(passes)
        return result

    setattr(owner, name, call)
