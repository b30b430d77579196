"""The wait policy of compute threads: when it is switched, that a switch changes no result, and what a run tells."""

from __future__ import annotations

import os
import time

import pytest
import torch

from coterie import machine
from coterie.policy import waiting
from coterie.policy.waiting import BUSY, PATIENCE, QUIET, Contention, IdleThreads, WaitPolicy, teams_needed

linux = pytest.mark.skipif(waiting.processor_wait() is None, reason="the system keeps no schedstat")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_busy_at_once_and_quiet_after_a_while():
    contention = Contention()
    assert [contention.look(share) for share in (0.0, QUIET, 0.29, BUSY + 0.01)] == [False, False, False, True]
    between = (QUIET + BUSY) / 2
    assert contention.look(between)
    assert [contention.look(0.0) for _ in range(PATIENCE - 1)] == [True] * (PATIENCE - 1)
    assert contention.look(between), "a gap between two short programs is not quiet"
    assert [contention.look(0.0) for _ in range(PATIENCE)] == [True] * (PATIENCE - 1) + [False]


@pytest.mark.parametrize(
    ("count", "processors", "teams"), [(2, 2, 1), (2, 4, 3), (8, 16, 2), (16, 16, 1), (1, 2, 0), (4, 2, 1)]
)
def test_idle_teams_outnumber_the_processors(count, processors, teams):
    assert teams_needed(count, processors) == teams
    if teams:
        assert count + teams * (count - 1) > processors
        assert teams == 1 or count + (teams - 1) * (count - 1) <= processors


@linux
def test_a_switch_changes_threads_and_no_sum(two_threads):
    torch.manual_seed(0)
    left, right = torch.randn(65, 1536, dtype=torch.bfloat16), torch.randn(1536, 576, dtype=torch.bfloat16)
    policy, alone = WaitPolicy(), left @ right
    threads = len(os.listdir("/proc/self/task"))
    policy.switch(True)
    assert policy.sleeps
    assert policy.switches == 1
    assert len(os.listdir("/proc/self/task")) > threads
    assert torch.equal(left @ right, alone)
    assert torch.get_num_threads() == 2
    policy.switch(True)
    assert policy.switches == 1
    policy.switch(False)
    assert not policy.sleeps
    assert policy.switches == 2
    assert torch.equal(left @ right, alone)
    deadline = time.monotonic() + 10
    while len(os.listdir("/proc/self/task")) > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(os.listdir("/proc/self/task")) == threads


@linux
def test_it_follows_what_the_system_says(two_threads, monkeypatch):
    monkeypatch.setattr(machine, "adapts", lambda: True)
    monkeypatch.setattr(waiting, "PERIOD", 0.005)
    begun = time.monotonic()
    monkeypatch.setattr(waiting, "processor_wait", lambda: min(time.monotonic() - begun, 0.2))
    policy = WaitPolicy()
    policy.start()
    deadline = time.monotonic() + 10
    while policy.switches < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert policy.switches == 2
    assert not policy.sleeps


@pytest.mark.parametrize("environ", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}])
def test_the_users_wait_policy_stays(environ):
    assert not machine.adapts(environ)


def test_one_thread_waits_for_nobody(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    policy = WaitPolicy()
    policy.start()
    assert policy._watch is None


def test_where_the_system_says_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(waiting, "_TASKS", tmp_path / "none")
    assert waiting.processor_wait() is None
    assert waiting.waited_since(None) == 0.0
    (tmp_path / "none" / "1").mkdir(parents=True)
    assert waiting.processor_wait() is None
    (tmp_path / "none" / "1" / "schedstat").write_text("5000000000 250000000 7\n")
    assert waiting.processor_wait() == 0.25
    assert waiting.waited_since(0.05) == pytest.approx(0.2)


def test_idle_threads_end():
    idle = IdleThreads(2)
    idle.end()
    assert not any(thread.is_alive() for thread in idle._threads)
