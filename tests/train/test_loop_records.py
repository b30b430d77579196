"""Records of the loop: progress, settings, schedules, and the events of a step."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from coterie.algo.entropy import AdaptiveEntropy
from coterie.algo.estimators import Advantages
from coterie.algo.kl import AdaptiveBeta
from coterie.algo.objective import Objective
from coterie.batches.pack import Packing
from coterie.config.objective import ObjectiveConfig
from coterie.rollout.collector import Experience
from coterie.rollout.replay import Replayed
from coterie.rollout.sampler import StepBatch
from coterie.runs.directory import RunDirectory
from coterie.train.recorder import Recorder
from coterie.train.schedules import Schedules
from coterie.train.step import LoopSettings, Progress, StepResult
from coterie.train.warnings import StepEvent, step_events
from runs_for_tests import Watch, step_result

NOTHING = Experience(prompts=(), rollouts=(), generate_seconds=0.0, reward_seconds=0.0)


def settings(*, eval_every: int = 0, checkpoint_every: int = 0) -> LoopSettings:
    packing = Packing(loss_agg_mode="token-mean", max_tokens_per_microbatch=100, skip_zero=True)
    return LoopSettings(steps=10, eval_every=eval_every, checkpoint_every=checkpoint_every, packing=packing)


def test_progress_after_a_step_survives_a_checkpoint() -> None:
    batch = StepBatch(experience=NOTHING, groups=[], cursor=7, pending=("p1", "p3"))
    progress = replace(Progress(step=4, cursor=3), evaluated=3, saved=2).after(batch)
    assert (progress.step, progress.cursor, progress.pending) == (5, 7, ("p1", "p3"))
    state = json.loads(json.dumps(progress.state()))
    assert Progress.restored(state, evaluated=True) == replace(progress, evaluated=5, saved=5)
    assert Progress.restored(state, evaluated=False).evaluated == -1


def test_evaluations_and_checkpoints_are_due_at_both_ends_and_in_between() -> None:
    steps = [Progress(step=step) for step in range(11)]
    assert [p.step for p in steps if settings(eval_every=4).evaluates(p)] == [0, 4, 8, 10]
    assert [p.step for p in steps if settings().evaluates(p)] == [0, 10]
    assert [p.step for p in steps if settings(checkpoint_every=5).saves(p)] == [0, 5, 10]
    assert not settings().evaluates(Progress(step=10, evaluated=10))


def test_schedules_adapt_the_objective_and_resume() -> None:
    def schedules() -> Schedules:
        return Schedules(
            objective=Objective(settings=ObjectiveConfig(kl_beta=0.1)),
            beta=AdaptiveBeta(target=0.1, horizon=10),
            entropy=AdaptiveEntropy(target=1.0, delta=0.25),
        )

    whole, half = schedules(), schedules()
    start = whole.objective
    assert whole.advance(1, {"kl/ref": 0.5, "entropy": 0.5}, 10) == {
        "kl/beta": pytest.approx(0.12),
        "entropy/bonus": 0.25,
    }
    assert (start.kl_beta, whole.objective.entropy_bonus) == (0.1, 0.25)
    half.restore(json.loads(json.dumps(whole.state())))
    assert half.advance(2, {"kl/ref": 0.0, "entropy": 2.0}, 5) == whole.advance(2, {"kl/ref": 0.0, "entropy": 2.0}, 5)
    assert half.objective == whole.objective
    assert half.objective.entropy_bonus == 0.0
    assert whole.advance(3, {}, 5) == {}


def eventful() -> StepResult:
    result = step_result(NOTHING, skipped=1)
    shortage = {"dynamic_sampling/missing": 3.0, "dynamic_sampling/rounds": 2.0, "dynamic_sampling/dropped": 4.0}
    return replace(
        result,
        batch=replace(result.batch, metrics=shortage),
        advantages=Advantages(events=("split: digits > 2",), warnings=("the baseline is biased",)),
        replayed=Replayed(event="q@0 of 3"),
        update=replace(result.update, splits=2),
        seconds={**result.seconds, "step": 4.0, "processor_wait": 2.5},
        threads_slept=True,
    )


def test_the_events_of_a_step_come_in_the_order_of_the_table() -> None:
    metrics = {"mismatch/kl": 0.5, "staleness/max": 0.0}
    events = step_events(eventful(), metrics, dtype=torch.float32, eval_part="exact")
    assert [(event.kind, event.quiet, event.lasting) for event in events] == [
        ("warning", False, False),
        ("biased_baseline", False, False),
        ("groups", True, False),
        ("replay", True, False),
        ("warning", False, True),
        ("memory", False, False),
        ("machine", False, True),
        ("skipped_update", False, False),
    ]
    assert events[6].message == (
        "other programs keep the processors busy: in this step of 4.0 s the threads of this process waited 2.5 s for "
        "one; idle compute threads sleep instead of spinning meanwhile. The results do not change"
    )
    assert events[0].message == (
        "collect.dynamic_sampling found 0 of 3 groups with variance after 2 rounds and dropped 4, in each of which all "
        "attempts have the same 'exact' (eval.reward); this step trains on nothing"
    )
    assert step_events(step_result(NOTHING), {}, dtype=torch.float32, eval_part="exact") == []


def test_an_event_that_lasts_is_told_once_and_a_quiet_one_never(tmp_path: Path) -> None:
    watch = Watch()
    with RunDirectory.create(tmp_path, "one", "x") as run:
        recorder = Recorder(
            run, callback=watch, save_model=lambda _: None, keep=1, size=0, config_hash="c", data_hash="d"
        )
        lasting, quiet = (
            StepEvent(kind="warning", message="off", lasting=True),
            StepEvent(kind="groups", message="q", quiet=True),
        )
        for step, events in enumerate([[lasting, quiet], [lasting], [], [lasting]], start=1):
            recorder.step_events(step, events)
        recorded = [(event.step, event.kind) for kind in ("warning", "groups") for event in recorder.db.events(kind)]
        recorder.close()
    assert watch.notes == [("warning", "off")] * 2
    assert recorded == [(1, "warning"), (4, "warning"), (1, "groups")]


def test_parts_of_the_reward_that_part_are_told_once(tmp_path: Path) -> None:
    watch = Watch()
    with RunDirectory.create(tmp_path, "one", "x") as run:
        recorder = Recorder(
            run, callback=watch, save_model=lambda _: None, keep=1, size=0, config_hash="c", data_hash="d"
        )
        for step in range(1, 41):
            share = step / 40
            recorder.db.record(step, {"reward/part/short": share, "reward/part/right": 1 - share, "reward/mean": 1.0})
            recorder.diverging_parts(step)
        recorder.close()
    assert [kind for kind, _ in watch.notes] == ["warning"]
    assert "'short' rises while 'right' falls" in watch.notes[0][1]
