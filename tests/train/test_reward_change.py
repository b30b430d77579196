"""A reward function that was edited between two attempts: refused, or recorded and never compared across."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from coterie import launch
from coterie.callbacks import NullObserver
from coterie.doctor.health import diagnose
from coterie.errors import CheckpointError
from coterie.rewards.check import sources
from coterie.runs import inspect
from coterie.runs.metrics import MetricsDB
from runs_for_tests import make_config


class Notes(NullObserver):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def noted(self, kind: str, message: str) -> None:
        self.lines.append((kind, message))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edit(root: Path, old: str, new: str) -> None:
    file = root / "tiny_rewards.py"
    file.write_text(file.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


def changes(run: Path) -> Sequence[tuple[int | None, str]]:
    with MetricsDB.reader(run / "metrics.sqlite") as database:
        return [(event.step, event.message) for event in database.events(inspect.REWARD_CHANGED)]


def test_an_edited_reward_is_refused_then_accepted_and_never_compared_across(root: Path) -> None:
    run = launch.train(make_config(root, steps=2, eval={"every": 2}))
    assert inspect.summary(run).paired
    edit(root, 'text.count("a")', 'text.count("b")')

    with pytest.raises(CheckpointError) as refusal:
        launch.resume(run, steps=4)
    for part in ("tiny_rewards:likes_a", "--model.name", "--accept-reward-change", "restore it", "step_000002"):
        assert part in str(refusal.value)
    assert changes(run) == []

    notes = Notes()
    launch.resume(run, notes, steps=4, accept_reward_change=True)
    (change,) = changes(run)
    assert change[0] == 2
    assert "tiny_rewards:likes_a" in change[1]
    assert ("warning", change[1]) in notes.lines

    summary = inspect.summary(run)
    assert (summary.before, summary.paired, summary.state) == ((), {}, "finished")
    assert {result.step for result in summary.after} == {4}
    (line,) = inspect.list_runs(root / "runs")
    assert line.before is None
    assert line.after is not None
    readme = (run / "README.md").read_text(encoding="utf-8")
    assert "changed at step 2: evaluations up to step 2 are of another reward" in readme
    assert "difference" not in readme
    assert "## The same questions" not in readme
    assert {"heldout_flat", "heldout_gain"} & {finding.rule for finding in diagnose(run).findings} == set()

    launch.resume(run)  # the last checkpoint holds the new source: nothing to accept
    assert len(changes(run)) == 1
    edit(root, 'text.count("b")', 'text.count("a")')
    with pytest.raises(CheckpointError, match="has changed since"):
        launch.resume(run, steps=5)


def test_an_accepted_change_is_not_asked_about_again_before_the_next_checkpoint(root: Path) -> None:
    run = launch.train(make_config(root, steps=2))
    edit(root, 'text.count("a")', 'text.count("b")')
    launch.resume(run, accept_reward_change=True)
    launch.resume(run)
    assert len(changes(run)) == 1
    assert inspect.summary(run).paired, "all evaluations are of the reward before the change"


def test_a_checkpoint_that_names_no_sources_resumes_as_before(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("coterie.launch.sources", lambda *_: {})
        run = launch.train(make_config(root, steps=2))
    edit(root, 'text.count("a")', 'text.count("b")')
    assert launch.resume(run) == run
    assert changes(run) == []


def test_sources_are_those_of_the_files_content_wherever_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = []
    for name in ("first", "moved"):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        named.append(sources(make_config(folder).rewards))
    assert named[0] == named[1] == json.loads(json.dumps(named[0]))
    assert len(named[0]["tiny_rewards:likes_a"]) == 64
