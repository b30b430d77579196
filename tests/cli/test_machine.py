"""What is read off the machine, from texts of machines that are not here."""

from __future__ import annotations

import pytest

from coterie import machine
from coterie.cli import doctor
from coterie.machine import GIB, Facts, Gpu

TWO_SOCKETS = "\n\n".join(
    f"processor\t: {number}\nmodel name\t: Xeon 6\nphysical id\t: {socket}\ncore id\t\t: {core}\n"
    "flags\t\t: fpu avx2 avx512f amx_bf16"
    for number, (socket, core) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1), (0, 0), (0, 1), (1, 0), (1, 1)])
)


def facts(**changes: object) -> Facts:
    defaults: dict[str, object] = {
        "system": "Linux x86_64",
        "python": "3.11.7",
        "cpu": "EPYC",
        "flags": ("avx2",),
        "cores": 2,
        "memory": 24 * GIB,
        "memory_free": 20 * GIB,
        "disk_free": 80 * GIB,
    }
    return Facts(**(defaults | changes))  # ty: ignore[invalid-argument-type]


def test_this_machine():
    system = machine.facts("not/yet/there")
    assert system.cores >= 1
    assert system.memory >= system.memory_free > 0
    assert system.disk_free > 0
    assert f"{system.cores} cores" in system.line()


def test_physical_cores_of_the_allowed_processors():
    assert machine._physical(TWO_SOCKETS, set(range(8))) == 4
    assert machine._physical(TWO_SOCKETS, {0, 4}) == 1
    assert machine._physical("processor : 0\n", {0}) == 0


def test_container_limits_count(monkeypatch):
    monkeypatch.setattr(machine, "_read", {"/sys/fs/cgroup/cpu.max": "100000 100000"}.get)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert machine.cores(TWO_SOCKETS) == 1


def test_flags_and_name():
    assert machine._flags(TWO_SOCKETS) == ("avx2", "avx512f", "amx_bf16")
    assert machine._cpu_name(TWO_SOCKETS) == "Xeon 6"
    assert machine._flags("") == ()


@pytest.mark.parametrize(
    ("flags", "words"),
    [(("avx2",), "float32 (no native bfloat16)"), (("avx512_bf16",), "bfloat16 (this CPU")],
)
def test_plan_for_a_cpu(flags, words):
    first, threads, *_ = machine.plan(facts(flags=flags), [], "2 of 2, because")
    assert words in first
    assert threads == "threads: 2 of 2, because"


def test_plan_for_a_gpu_and_for_little_room():
    lines = machine.plan(facts(memory_free=GIB, disk_free=GIB), [Gpu(name="H100", memory=80 * GIB)], "3")
    assert lines[0].startswith("device: cuda:0, H100")
    assert lines[1] == "threads: 3"
    assert any(line.startswith("memory: under 4 GiB") for line in lines)
    assert any(line.startswith("disk: under 5 GiB") for line in lines)


def test_extras_come_from_the_package():
    extras = machine.extras()
    assert {"train", "dev", "gpu", "hub"} <= set(extras)
    assert extras["dev"]["pytest"]


def test_the_doctor_says_how_many_threads_and_why(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setattr(machine, "gpus", list)
    system = doctor.examine()
    assert system["threads"]["count"] == 1
    (line,) = [text for _, text in doctor.lines(system) if text.startswith("threads: ")]
    assert line.startswith("threads: 1 of ")
    assert "wait policy OMP_WAIT_POLICY=passive, because the environment says so" in line
