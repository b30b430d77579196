"""Threads: the environment that is set and left alone, what is recommended, and the programs of the measurement."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from benchmarks.peers import thread_study as bench
from benchmarks.peers.thread_study import QUIET, Cell, Load
from coterie import machine
from coterie.errors import CoterieError
from coterie.machine import Default

PROBE = {"layers": 1, "vocabulary": 97, "hidden": 64, "prompts": 1, "group_size": 2, "prompt": 4, "completion": 2}
SPINS = {"GOMP_SPINCOUNT": "1000"}
KEPT = dict.fromkeys(machine.KERNEL_CACHES, str(machine.KERNELS))


@pytest.fixture
def fresh(monkeypatch):
    """As in a process that has not loaded torch, on Linux with four cores, where little spinning was measured best."""
    monkeypatch.setattr(machine, "_done", False)
    monkeypatch.setattr(machine, "_set", {})
    monkeypatch.setattr(machine, "_gnu_openmp", lambda: True)
    monkeypatch.setattr(machine, "cores", lambda: 4)
    monkeypatch.setattr(
        machine,
        "DEFAULTS",
        (
            Default(cores=2, spare=0, waiting="passive", because="of two"),
            Default(cores=64, spare=1, waiting="spin-1000", because="it was measured"),
        ),
    )
    monkeypatch.delitem(sys.modules, "torch", raising=False)


def test_prepare_sets_the_measured_policy_once(fresh):
    environ = {"HOME": "/"}
    machine.prepare(environ)
    assert environ == {"HOME": "/"} | SPINS | KEPT
    chosen = machine.choice(0, environ)
    assert (chosen.count, chosen.cores, chosen.source) == (3, 4, "measured")
    assert chosen.line() == (
        "3 of 4 physical cores, wait policy spin-1000 (GOMP_SPINCOUNT=1000), because it was measured"
    )
    machine.prepare(environ)
    assert environ == {"HOME": "/"} | SPINS | KEPT
    assert machine.choice(0, environ) == chosen
    assert machine.clean_environment(environ) == {"HOME": "/"}


@pytest.mark.parametrize("mine", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}, {"KMP_BLOCKTIME": "0"}])
def test_prepare_never_overrides_the_user(fresh, mine):
    mine = mine | {"LRU_CACHE_CAPACITY": "3"}
    environ = dict(mine)
    machine.prepare(environ)
    assert environ == KEPT | mine
    chosen = machine.choice(0, environ)
    assert chosen.source == "environment"
    assert "=".join(next(iter(mine.items()))) in chosen.line()
    assert machine.clean_environment(environ) == mine


def test_prepare_after_torch_changes_nothing_and_says_so(fresh, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", object())
    environ: dict[str, str] = {}
    machine.prepare(environ)
    assert environ == {}
    chosen = machine.choice(0, environ)
    assert (chosen.source, chosen.waiting) == ("late", "default")
    assert "coterie.machine.prepare() was not called before" in chosen.line()


def test_another_openmp_is_left_alone(fresh, monkeypatch):
    monkeypatch.setattr(machine, "_gnu_openmp", lambda: False)
    environ: dict[str, str] = {}
    machine.prepare(environ)
    assert environ == KEPT
    assert machine.choice(0, environ).source == "runtime"


@pytest.mark.parametrize(
    ("configured", "environ", "number", "words"),
    [
        (0, {}, 3, "it was measured"),
        (2, {}, 2, "the setting `threads` gives the number"),
        (2, {"OMP_NUM_THREADS": "1"}, 2, "the setting `threads` gives the number"),
        (0, {"OMP_NUM_THREADS": "1"}, 1, "OMP_NUM_THREADS gives the number"),
        (0, {"OMP_NUM_THREADS": " 2,1"}, 2, "OMP_NUM_THREADS gives the number"),
        (0, {"OMP_NUM_THREADS": "many"}, 3, "it was measured"),
    ],
)
def test_who_decides_the_number(fresh, configured, environ, number, words):
    assert machine.count(configured, environ) == number
    machine.prepare(environ)
    assert machine.choice(configured, environ).line().endswith(words)


def test_one_core_is_never_spared(fresh, monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 1)
    monkeypatch.setattr(machine, "DEFAULTS", (Default(cores=8, spare=1, waiting="default", because="x"),))
    assert machine.count(0, {}) == 1


def test_the_shipped_defaults_fit_every_machine():
    assert all(default.waiting in machine.WAITING for default in machine.DEFAULTS)
    assert [default.cores for default in machine.DEFAULTS] == sorted(default.cores for default in machine.DEFAULTS)
    assert machine.DEFAULTS[-1].cores >= 1024


def test_openmp_hears_what_prepare_sets():
    """In a process of its own: libgomp prints what it was told when torch loads it."""
    if sys.platform != "linux":
        pytest.skip("GNU OpenMP is what torch brings on Linux")
    code = (
        "from coterie import machine; from coterie.machine import Default; "
        "machine.DEFAULTS = (Default(cores=1 << 16, spare=0, waiting='spin-1000', because='x'),); "
        "machine.prepare(); import torch; assert machine.choice().source == 'measured'"
    )
    env = machine.clean_environment() | {"OMP_DISPLAY_ENV": "verbose"}
    env = {name: value for name, value in env.items() if name not in machine.VARIABLES}
    completed = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    assert "GOMP_SPINCOUNT = '1000'" in completed.stderr


GROWS = """
import sys
from coterie import machine
machine.KERNELS = int(sys.argv[1])
machine.prepare()
import torch
torch.set_num_threads(1)
weight = torch.randn(1536, 576).bfloat16().requires_grad_()
for length in range(200, 290):
    if length == 240:
        before = machine.resident()
    torch.nn.functional.linear(torch.ones(length, 576, dtype=torch.bfloat16), weight).sum().backward()
print((machine.resident() - before) >> 20, weight.grad.double().sum().item().hex())
"""


@pytest.mark.slow
def test_kernels_of_other_shapes_take_no_more_memory():
    """Fifty lengths, two matrix products each; what is kept of them is what is left of the memory. The same bits."""
    if sys.platform != "linux" or not machine.facts().native_bf16:
        pytest.skip("oneDNN multiplies bfloat16 on a processor that does so natively")
    env = {name: value for name, value in os.environ.items() if name not in machine.KERNEL_CACHES}
    results = []
    for kept in (1024, 16):
        command = [sys.executable, "-c", GROWS, str(kept)]
        results.append(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.split())
    (many, gradient), (few, same) = results
    assert gradient == same
    assert int(few) < 15
    assert int(many) > 40, "or torch keeps kernels otherwise now, and the setting may go"


def cell(number, waiting, load, decode, update=1.0):
    return Cell(threads=number, waiting=waiting, load=load, decode=decode, update=update, others=None)


def test_the_fastest_when_quiet_wins_unless_another_is_as_fast_and_better_beside_others():
    cells = [
        cell(2, "default", QUIET, 100.0),
        cell(2, "default", "busy", 20.0),
        cell(2, "passive", QUIET, 98.0),
        cell(2, "passive", "busy", 50.0),
        cell(1, "passive", QUIET, 60.0),
        cell(1, "passive", "busy", 60.0),
    ]
    assert bench.recommend(cells) == (2, "passive")
    assert bench.recommend([*cells, cell(2, "spin-1000", QUIET, 200.0), cell(2, "spin-1000", "busy", 1.0)]) == (
        2,
        "spin-1000",
    )
    assert bench.slowed(cells[3], cells) == pytest.approx(1 - 50 / 98)


def test_numbers_of_threads_to_try():
    assert bench.counts(1) == [1]
    assert bench.counts(2) == [1, 2]
    assert bench.counts(12) == [1, 2, 3, 4, 8, 11, 12]


def test_a_measurement_beside_each_kind_of_program():
    situations = {
        QUIET: None,
        "busy": Load(kind="busy", count=2, nice=19),
        "mixed": Load(kind="mixed", count=2),
        "workers": Load(kind="workers", count=1),
    }
    cells = bench.measure(1, "passive", situations, 1, PROBE)
    assert [cell.load for cell in cells] == list(situations)
    assert all(cell.decode > 0 < cell.update for cell in cells)
    assert cells[0].others is None
    assert all(cell.others is not None and cell.others >= 0 for cell in cells[1:])


def test_a_program_that_cannot_start():
    with (
        pytest.raises(CoterieError, match="ended with code 1"),
        bench._program(["benchmarks.peers.absent"], os.environ),
    ):
        pytest.fail("there is no such program")


def test_run_writes_table_and_record(tmp_path, monkeypatch, capsys):
    def measured(number, waiting, situations, rounds):
        worse = {name: 100.0 - 5 * index for index, name in enumerate(situations)}
        return [cell(number, waiting, name, number * decode) for name, decode in worse.items()]

    monkeypatch.setattr(machine, "cores", lambda *_: 2)
    monkeypatch.setattr(bench, "measure", measured)
    bench.run(tmp_path / "out", True)
    printed = capsys.readouterr().out
    assert "| 2 | adaptive |" in printed
    assert "Best here: 2 of 2 threads, wait policy adaptive" in printed
    assert "2 reward workers, all busy, slow decoding by 40%; aim at most 10%: missed." in printed
    assert (tmp_path / "out" / "threads.md").read_text() in printed
    record = json.loads((tmp_path / "out" / "threads.json").read_text())
    assert record["cores"] == 2
    assert len(record["cells"]) == 2 * 3 * len(bench.loads(2))


def test_the_environment_of_this_process_is_left_alone():
    before = dict(os.environ)
    machine.choice()
    machine.clean_environment()
    assert dict(os.environ) == before
