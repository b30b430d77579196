"""Runs whose learner ranks hold shards: their numbers, their resumes by any other strategy, and their memory."""

from __future__ import annotations

import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from test_ranks_in_runs import KillsRank

from coterie import launch, preflight
from coterie.errors import LearnerError
from coterie.policy import memory
from coterie.policy.memory import MemoryReport
from runs_for_tests import Watch, fingerprint, make_config, stop_at
from tiny_models import tiny_policy

SHARDS: dict[str, Any] = {"host": "processes", "learners": 2, "strategy": "fsdp", "threads": 1, "timeout_s": 60.0}
CHANGED: dict[str, Any] = {"steps": 4, "checkpoint": {"every": 2}, "eval": {"every": 4}}
COMPARED = ("grad_norm", "entropy", "loss", "tokens/trained", "reward/mean")


@pytest.fixture(autouse=True)
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers of rewards find their module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)


@pytest.mark.slow
def test_shards_learn_what_one_process_learns_and_go_on_after_a_loss(tmp_path: Path, monkeypatch: Any) -> None:
    alone, together = Watch(), Watch()
    launch.train(make_config(tmp_path, name="alone", **CHANGED), alone)
    whole = launch.train(make_config(tmp_path, name="whole", **CHANGED, cluster=SHARDS), together)
    first, second = alone.steps[0], together.steps[0]
    assert {name for name in first.keys() ^ second.keys() if not name.startswith("time/")} == set()
    for name in COMPARED:
        assert second[name] == pytest.approx(first[name], rel=1e-5, abs=1e-6), name
    lost = make_config(tmp_path, name="lost", **CHANGED, cluster=SHARDS)
    with pytest.raises(LearnerError, match=r"learner rank 1 ended by SIGKILL.*coterie resume"):
        launch.train(lost, KillsRank(monkeypatch, step=3))
    launch.resume(Path(lost.runs) / "lost")
    assert fingerprint(Path(lost.runs) / "lost") == fingerprint(whole)


@pytest.mark.slow
def test_any_strategy_resumes_any_other(tmp_path: Path) -> None:
    """A step each: with shards, with whole weights on two ranks, in one process, with shards."""
    alone = launch.train(make_config(tmp_path, name="alone", **CHANGED))
    run = launch.train(make_config(tmp_path, name="mixed", **CHANGED, cluster=SHARDS), stop_at(1, signal.SIGINT))
    config = run / "config.toml"
    text = config.read_text()
    for step, changes in ((2, {'"fsdp"': '"replicate"'}), (3, {'"processes"': '"local"', "learners = 2": ""}), (4, {})):
        changed = text
        for old, new in changes.items() if step < 4 else ():
            assert old in changed
            changed = changed.replace(old, new)
        config.write_text(changed.replace('strategy = "fsdp"', "") if step == 3 else changed)
        launch.resume(run, stop_at(step, signal.SIGINT))
    ours, theirs = by_step(run), by_step(alone)
    assert set(ours) == set(theirs)
    for key in theirs:
        if key[1] in COMPARED:
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-5), key


def by_step(run: Path) -> dict[tuple[int, str], float]:
    with sqlite3.connect(run / "metrics.sqlite") as database:
        rows = database.execute("SELECT step, name, value FROM metrics").fetchall()
    database.close()
    return {(step, name): value for step, name, value in rows if name in COMPARED}


def usage(gradient: int = 2_000) -> MemoryReport:
    return MemoryReport(
        total=11_000,
        weights=2_000,
        optimizer=4_000,
        gradient=gradient,
        sampling=500,
        activations=1_500,
        tokens=64,
        limit=None,
    )


def test_memory_of_a_rank_by_hand() -> None:
    """Shards are (2000 + 4000 + 2000) / 4; what is not accounted for is the interpreter's."""
    policy = tiny_policy("smollm")
    layers = [sum(p.numel() for p in layer.parameters()) for layer in policy.decoder.layers]
    together = (policy.size() - sum(layers) + layers[0]) * 8  # float64
    rank = memory.rank_memory(usage(), policy, 4, reference=False)
    assert (rank.shards, rank.start, rank.activations) == (2_000, 2_000, 1_500)
    assert rank.base == 11_000 - 500 - 1_500 - 2_000 - 4_000 - 2_000
    assert rank.gathered == 2 * together  # weights, and a copy of their gradient
    assert rank.total == rank.base + 2_000 + 2 * together + 1_500
    assert memory.rank_memory(usage(), policy, 4, reference=True).shards == 2_500
    assert memory.rank_memory(usage(gradient=0), policy, 4, reference=False).gathered == together


def test_a_dry_run_refuses_ranks_that_do_not_fit(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(preflight, "_time_line", lambda *_: None)
    for strategy, remedy in (("fsdp", "lower cluster.learners or"), ("replicate", 'set cluster.strategy = "fsdp"')):
        config = make_config(tmp_path, cluster=SHARDS | {"strategy": strategy})
        monkeypatch.setattr(preflight, "free_bytes", lambda device: 1 << 50)
        assert preflight.dry_run(config).ok
        monkeypatch.setattr(preflight, "free_bytes", lambda device: 1 << 20)
        report = preflight.dry_run(config)
        (line,) = [text for level, subject, text in report.lines if (level, subject) == ("fail", "memory")]
        assert remedy in line
        assert ("each of 2 learner ranks has about" in line) == (strategy == "fsdp")
