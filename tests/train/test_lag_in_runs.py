"""Runs with a lag: those of a loop that samples by earlier weights in turn, also when killed, resumed or evaluated."""

from __future__ import annotations

import json
import os
import signal
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster_hosts import ThreadHost
from coterie import launch
from coterie.build import run as build
from coterie.build import services
from coterie.cluster.engine_pool import EnginePool
from coterie.cluster.hosts import ChildService
from coterie.config.schema import RunConfig
from coterie.errors import CheckpointError, RewardError
from coterie.rollout import lagged_batches
from coterie.rollout.collector import Collector
from coterie.rollout.lagged_sampler import LaggedSampler
from coterie.rollout.sampler import SequentialSampler, StepBatch
from coterie.runs import rollouts
from coterie.train.grpo import Trainer
from runs_for_tests import Watch, fingerprint, killed, make_config, stop_at

EARLIER: dict[str, Any] = {"eval": {"every": 2}, "checkpoint": {"every": 2}}


def lagged(lag: int, **changed: Any) -> dict[str, Any]:
    """Changed settings of a run with a lag."""
    return {**EARLIER, "engine": {"lag": lag}, "cluster": {"host": "processes", "timeout_s": 60.0}, **changed}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    return tmp_path


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Services in threads of this process, which start at once."""
    monkeypatch.setattr(services, "host_for", lambda *args, **options: ThreadHost())


class InTurn:
    """The reference: a sampler that puts the weights of `lag` versions before into the learner's own model, samples,
    and puts the present ones back."""

    def __init__(self, inner: SequentialSampler, trainer: Trainer, lag: int) -> None:
        self.inner, self.trainer, self.lag = inner, trainer, lag
        self.versions: deque[dict[str, torch.Tensor]] = deque(maxlen=lag + 1)

    def collect(self, cursor: int, pending: Sequence[str] = ()) -> StepBatch:
        engine, step = self.trainer.engine, self.trainer.progress.step
        parameters = self.trainer.learner.policy.parameters()
        self.versions.append({name: tensor.detach().clone() for name, tensor in parameters.items()})
        self._put(parameters, self.versions[0])
        engine.commit(max(0, step - self.lag))
        batch = self.inner.collect(cursor, pending, repeat=min(step, self.lag) if step <= self.lag else 0)
        self._put(parameters, self.versions[-1])
        engine.commit(step)
        return batch

    def _put(self, parameters: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in parameters.items():
                tensor.copy_(weights[name])


def in_turn(config: RunConfig, lag: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run of the reference, in one process."""
    inner = build.trainer_for

    def trainer_for(*args: Any) -> Trainer:
        trainer = inner(*args)
        assert isinstance(trainer.sampler, SequentialSampler)
        trainer.sampler = InTurn(trainer.sampler, trainer, lag)
        return trainer

    with monkeypatch.context() as patched:
        patched.setattr(launch, "trainer_for", trainer_for)
        return launch.train(config)


@pytest.mark.parametrize("lag", [1, 2, 4])
def test_a_lag_is_a_loop_that_samples_by_earlier_weights(
    lag: int, root: Path, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a lag of 4 the 5 batches of the first version draw some of the 12 prompts twice."""
    reference = in_turn(make_config(root, name="reference", **EARLIER), lag, monkeypatch)
    run = launch.train(make_config(root, name="lagged", **lagged(lag)))
    assert fingerprint(run) == fingerprint(reference)
    for step in range(1, 7):
        versions = {record.rollout.context.version for record in rollouts.read_step(run / "rollouts", step)}
        assert versions == {max(0, step - 1 - lag)}
    names = [r.rollout.id for step in range(1, 7) for r in rollouts.read_step(run / "rollouts", step)]
    assert len(names) == len(set(names))


def test_a_run_with_a_lag_has_other_rollouts_and_says_so(root: Path, threads: None) -> None:
    watch = Watch()
    run = launch.train(make_config(root, name="lagged", **lagged(1)), watch)
    assert [step["staleness/max"] for step in watch.steps] == [0, 1, 1, 1, 1, 1]
    assert not [note for note in watch.notes if note[0] == "warning"]
    alone = launch.train(make_config(root, name="alone", **EARLIER))
    ours, theirs = fingerprint(run), fingerprint(alone)
    assert ours["rollouts"]["rollouts", 1] == theirs["rollouts"]["rollouts", 1]
    assert ours["rollouts"]["rollouts", 2] != theirs["rollouts"]["rollouts", 2]


@pytest.mark.parametrize(("lag", "at"), [(1, 3), (3, 1), (3, 5)])
def test_a_resumed_run_is_that_of_one_that_was_left_alone(lag: int, at: int, root: Path, threads: None) -> None:
    whole = launch.train(make_config(root, name="whole", **lagged(lag)))
    cut = launch.train(make_config(root, name="cut", **lagged(lag)), stop_at(at, signal.SIGINT))
    assert (cut / "checkpoints" / f"step_{at:06d}" / lagged_batches.FILES.facts).exists()
    launch.resume(cut)
    assert fingerprint(cut) == fingerprint(whole)


def test_group_aware_evidence_ages_by_the_version_that_sampled(
    root: Path, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed: dict[str, Any] = {"grouping": {"preset": "mixture"}}
    watch = Watch()
    run = launch.train(make_config(root, name="lagged", **lagged(2), **changed), watch)
    assert [step["grouping/time"] for step in watch.steps] == [0, 0, 0, 1, 2, 3]
    cut = launch.train(make_config(root, name="cut", **lagged(2), **changed), stop_at(3, signal.SIGINT))
    launch.resume(cut)
    assert fingerprint(cut) == fingerprint(run)


def test_prompts_that_were_not_waited_for_come_first_in_the_next_batch(
    root: Path, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cursor and pending prompts go from batch to batch, also over a resume."""
    changed: dict[str, Any] = {"collect": {"prompts_per_step": 2, "group_size": 4, "oversample": 2.0}}
    reference = in_turn(make_config(root, name="reference", **EARLIER, **changed), 1, monkeypatch)
    cut = launch.train(make_config(root, name="cut", **lagged(1), **changed), stop_at(3, signal.SIGINT))
    launch.resume(cut)
    assert fingerprint(cut) == fingerprint(reference)


def test_a_run_that_goes_on_beyond_its_end_says_that_it_samples_anew(root: Path, threads: None) -> None:
    run = launch.train(make_config(root, name="short", steps=4, **lagged(2)))
    watch = Watch()
    launch.resume(run, watch, steps=7)
    (text,) = [text for kind, text in watch.notes if kind == "warning" and "sampled ahead" in text]
    assert text.startswith("the run was to end sooner, so the next 2 batches were not sampled ahead")
    assert [step["staleness/max"] for step in watch.steps] == [0, 1, 2]


def test_an_error_of_the_other_thread_ends_the_run_at_its_step(
    root: Path, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, calls = Collector.collect, 0

    def collect(self: Collector, *args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += options["sampling"].progress is not None and options["samples"] == 4
        if calls == 4:
            raise RewardError("the judge is gone", function="rewards")
        return inner(self, *args, **options)

    watch = Watch()
    with monkeypatch.context() as patched:
        patched.setattr(Collector, "collect", collect)
        with pytest.raises(RewardError, match="the judge is gone"):
            launch.train(make_config(root, name="one", **lagged(1)), watch)
    assert len(watch.steps) == 3
    launch.resume(root / "runs" / "one")
    assert fingerprint(root / "runs" / "one") == fingerprint(launch.train(make_config(root, name="whole", **lagged(1))))


@pytest.mark.slow
def test_a_killed_service_or_run_changes_no_bit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With real processes: the service dies while the learner updates, then the whole run does."""
    whole = launch.train(make_config(root, name="whole", **lagged(1, steps=4)))
    posted, passes = EnginePool._post, 0

    def post(self: EnginePool, member: Any, *args: Any, **options: Any) -> None:
        nonlocal passes
        posted(self, member, *args, **options)
        passes += 1
        if passes in (8, 25) and isinstance(member.service, ChildService):
            os.kill(member.service.process.pid, signal.SIGKILL)

    watch = Watch()
    with monkeypatch.context() as patched:
        patched.setattr(EnginePool, "_post", post)
        lost = launch.train(make_config(root, name="lost", **lagged(1, steps=4)), watch)
    assert sum("a new one makes its" in text for _, text in watch.notes) == 2
    assert fingerprint(lost) == fingerprint(whole)
    changed = json.dumps(lagged(1, steps=4, name="one"))
    assert killed(root, "optimizer", 3, changed=changed) == -signal.SIGKILL
    launch.resume(root / "runs" / "one")
    assert fingerprint(root / "runs" / "one") == fingerprint(whole)


def test_batches_are_read_back_equal_and_damage_is_named(
    root: Path, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[tuple[Path, list[StepBatch]]] = []
    inner = lagged_batches.write

    def write(folder: Path, step: int, batches: Sequence[StepBatch]) -> None:
        inner(folder, step, batches)
        _, read = lagged_batches.read(folder, prompts)
        saved.append((folder, list(batches)))
        assert read == list(batches)
        text = (folder / lagged_batches.FILES.facts).read_text()
        for damaged, message in (
            (text.replace('"format":1', '"format":7').replace('"format": 1', '"format": 7'), "its format is 7"),
            ("{}", "format"),
            (text[:-4], "cannot read the batches sampled ahead"),
        ):
            (folder / lagged_batches.FILES.facts).write_text(damaged)
            with pytest.raises(CheckpointError, match=message):
                lagged_batches.read(folder, prompts)
        (folder / lagged_batches.FILES.facts).write_text(text)

    prompts: dict[str, Any] = {}
    init = LaggedSampler.__init__

    def made(self: LaggedSampler, sampler: SequentialSampler, *args: Any, **options: Any) -> None:
        init(self, sampler, *args, **options)
        prompts.update(sampler.by_id)

    monkeypatch.setattr(lagged_batches, "write", write)
    monkeypatch.setattr(LaggedSampler, "__init__", made)
    launch.train(make_config(root, **lagged(2)))
    assert [len(batches) for _, batches in saved] == [2, 2, 0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"engine": {"lag": 1}}, 'set cluster.host = "processes"'),
        (
            {
                "engine": {"lag": 1},
                "cluster": {"host": "processes"},
                "rollout_correction": {"kind": "none"},
            },
            "rollout_correction.bypass_mode = true",
        ),
        (
            {
                "engine": {"lag": 1},
                "cluster": {"host": "processes"},
                "grouping": {"preset": "mixture", "allocate": True},
            },
            "leave out grouping.allocate",
        ),
        (
            {"engine": {"lag": 4}, "cluster": {"host": "processes"}, "replay": {"groups": 1}},
            "raise replay.max_age",
        ),
    ],
)
def test_settings_that_do_not_fit_a_lag_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunConfig.model_validate(changed)
