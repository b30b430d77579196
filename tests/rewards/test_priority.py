"""Reward workers stand back: lowest priority, one thread, and no deadline runs while they wait for a processor."""

from __future__ import annotations

import contextlib
import os
import sys
import time

import pytest

from coterie.config.rewards import RewardConfig, RewardsConfig
from coterie.rewards.pool import Scorer
from coterie.rewards.process import PATIENCE, Worker, WorkerDiedError, _ProcessorUsage
from coterie.rewards.worker import LOWEST
from coterie.types import Prompt

MODULE = """
import os, subprocess, sys

def own(completions):
    return [float(os.getpriority(os.PRIO_PROCESS, 0)) for _ in completions]

def child(completions):
    code = "import os; print(os.getpriority(os.PRIO_PROCESS, 0))"
    return [float(subprocess.check_output([sys.executable, "-c", code])) for _ in completions]

def math_threads(completions):
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "RAYON_NUM_THREADS")
    return [float(max(int(os.environ[name]) for name in names)) for _ in completions]
"""


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modest")
    (folder / "modest.py").write_text(MODULE)
    parts = [RewardConfig(name=f"modest:{name}") for name in ("own", "child", "math_threads")]
    with contextlib.chdir(folder):
        scorer = Scorer(RewardsConfig(functions=parts, workers=2, timeout_s=60))
    with scorer:
        scorer.start()
        yield scorer


def test_functions_and_their_children_have_the_lowest_priority_and_one_thread(pool):
    prompt = Prompt(id="p", messages=({"role": "user", "content": "?"},), answer=None, task="t")
    (score,) = pool.score([prompt], ["a"])
    assert score.parts == {"own": LOWEST, "child": LOWEST, "math_threads": 1}


def test_the_system_says_so_too(pool):
    for pid in pool.pids:
        assert os.getpriority(os.PRIO_PROCESS, pid) == LOWEST
        if sys.platform == "linux":
            assert os.sched_getscheduler(pid) == os.SCHED_BATCH


def test_a_worker_shares_the_session_of_who_started_it(pool):
    """Else its priority would count for nothing where sessions are scheduled as groups."""
    for pid in pool.pids:
        assert os.getsid(pid) == os.getsid(0)
        assert os.getpgid(pid) == pid


@pytest.fixture
def worker(monkeypatch):
    """Asked for an answer within 100 s, of which it never hears."""
    made = Worker(os.getcwd())
    monkeypatch.setattr(made, "_send", lambda: None)
    monkeypatch.setattr(made, "_usage", lambda: _ProcessorUsage(ran=5.0, waited=3.0))
    made.send_request("question", seconds=100.0)
    yield made
    made.kill()


def look(worker, monkeypatch, after, **processor):
    """Deadline that `advance` sets `after` seconds, given this processor usage of the worker."""
    monkeypatch.setattr(worker, "_usage", lambda: _ProcessorUsage(**processor))
    monkeypatch.setattr(time, "monotonic", lambda: worker._asked + after)
    assert worker.advance() is None
    return worker.deadline - worker._asked


def test_waiting_for_a_processor_is_not_counted(worker, monkeypatch):
    assert look(worker, monkeypatch, 120.0, ran=9.0, waited=53.0) == pytest.approx(150)
    with pytest.raises(WorkerDiedError, match="did not return within 100 s"):
        look(worker, monkeypatch, 150.5, ran=9.0, waited=53.0)


def test_a_wait_that_still_lasts_is_not_counted(worker, monkeypatch):
    assert look(worker, monkeypatch, 100.0, ran=9.0, waited=3.0, ready=True) == pytest.approx(110)
    assert look(worker, monkeypatch, 110.0, ran=9.0, waited=3.0, ready=True) == pytest.approx(120)
    with pytest.raises(WorkerDiedError):
        look(worker, monkeypatch, 120.0, ran=19.0, waited=3.0, ready=True)  # it had the processor, and is not done


def test_patience_ends(worker, monkeypatch):
    with pytest.raises(WorkerDiedError, match="did not return within 100 s"):
        look(worker, monkeypatch, 100.0 * (1 + PATIENCE), ran=9.0, waited=1e9, ready=True)


def test_what_the_system_tells():
    made = Worker(os.getcwd())
    try:
        late = time.monotonic() + 30  # a process that was just started may not have had its turn yet
        while sys.platform == "linux" and not made._usage().ran and time.monotonic() < late:
            time.sleep(0.01)
        assert sys.platform != "linux" or made._usage().ran > 0
    finally:
        made.kill()
    assert made._usage() == _ProcessorUsage()
