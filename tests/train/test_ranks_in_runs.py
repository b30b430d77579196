"""Runs with several learner ranks: those of one rank up to rounding, and their own to the bit when resumed."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from coterie import launch
from coterie.callbacks import Callback
from coterie.cluster.hosts import ChildService, Service
from coterie.cluster.rank_services import RankServices
from coterie.config.schema import RunConfig
from coterie.errors import LearnerError
from coterie.policy.ranks import Ranks
from runs_for_tests import Watch, fingerprint, make_config, stop_at

RANKS: dict[str, Any] = {"cluster": {"host": "processes", "learners": 2, "threads": 1, "timeout_s": 60.0}}
CHANGED: dict[str, Any] = {"steps": 4, "checkpoint": {"every": 2}, "eval": {"every": 2}}


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns_and_go_on_after_a_loss(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    alone, together = Watch(), Watch()
    launch.train(make_config(tmp_path, name="alone", **CHANGED), alone)
    whole = launch.train(make_config(tmp_path, name="whole", **CHANGED, **RANKS), together)
    first, second = alone.steps[0], together.steps[0]
    assert {name for name in first.keys() ^ second.keys() if not name.startswith("time/")} == set()
    for name in ("grad_norm", "entropy", "loss", "tokens/trained", "reward/mean"):
        assert second[name] == pytest.approx(first[name], rel=1e-5, abs=1e-6), name
    cut = launch.train(make_config(tmp_path, name="cut", **CHANGED, **RANKS), stop_at(3, signal.SIGINT))
    launch.resume(cut)
    assert fingerprint(cut) == fingerprint(whole)

    lost = make_config(tmp_path, name="lost", **CHANGED, **RANKS)
    with pytest.raises(LearnerError, match=r"learner rank 1 ended by SIGKILL.*coterie resume"):
        launch.train(lost, KillsRank(monkeypatch, step=3))
    launch.resume(Path(lost.runs) / "lost")
    assert fingerprint(Path(lost.runs) / "lost") == fingerprint(whole)
    assert not subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "engine_service"], capture_output=True).stdout


class KillsRank(Callback):
    """Kills learner rank 1 when this step has been reported."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
        self.step, meet = step, RankServices.meet
        self.members: list[Service] = []
        members = self.members

        def met(services: RankServices) -> Ranks:
            members.extend(services.members)
            return meet(services)

        monkeypatch.setattr(RankServices, "meet", met)

    def on_step(self, step: int, metrics: Any, sample: Any) -> None:
        if step == self.step:
            (member,) = self.members
            assert isinstance(member, ChildService)
            os.kill(member.process.pid, signal.SIGKILL)


def test_ranks_need_a_host_of_processes() -> None:
    with pytest.raises(
        ValueError, match=r'cluster.learners = 2 are processes of their own, and cluster.host = "local"'
    ):
        RunConfig.model_validate({"cluster": {"learners": 2}})
