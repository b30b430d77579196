"""The protocol, the turns that the sides take, and what is reported when a worker fails; with fake workers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import measure
from benchmarks.peers.cases import Case
from benchmarks.peers.measure import Bench
from benchmarks.peers.summary import circumstances, lines
from benchmarks.peers.worker import PeerError, Worker, command_for, surroundings

FAKE = Path(__file__).with_name("fake_worker.py")
PATH = {"PYTHONPATH": str(Path(__file__).parents[2])}
CASE = Case(name="tiny", prompts=2, group_size=4, prompt_tokens=3, max_tokens=4)
PROMPTS = [(1, 2, 3), (4, 5, 6)]


@pytest.fixture
def diary(tmp_path) -> Path:
    return tmp_path / "diary.jsonl"


@pytest.fixture
def bench(tmp_path, diary, monkeypatch) -> Bench:
    monkeypatch.setattr(measure, "compare_gradients", lambda *_: {"cosine": 1.0, "relative_error": 0.0, "rollouts": 8})

    def start(side: str, purpose: str) -> Worker:
        command = [sys.executable, str(FAKE), side, str(diary)]
        return Worker(side, command, env=surroundings(1, PATH), log=tmp_path / f"{purpose}.log", timeout_s=30)

    return Bench(
        model="m",
        threads=1,
        dtype="float32",
        sides=("trl", "coterie", "vllm"),
        rounds=2,
        tuned=False,
        draft=False,
        gradient_prompts=2,
        start=start,
        say=lambda message: None,
    )


def worker(tmp_path: Path, **kw: Any) -> Worker:
    process = Worker(
        "coterie", [sys.executable, str(FAKE), "coterie"], env=surroundings(1, PATH), log=tmp_path / "log", **kw
    )
    process.ask("setup", case={"prompts": 1, "group_size": 2})
    return process


def test_sides_take_turns_and_update_on_the_same_rollouts(bench, diary):
    result = measure.measure(bench, CASE, PROMPTS)
    assert result["errors"] == []
    asked = [json.loads(line) for line in diary.read_text().splitlines()]
    order = [(side, do) for side, do, _ in asked]
    probe = [("vllm", "generate")]
    warm = [("trl", "step"), ("coterie", "step"), ("vllm", "generate")]
    even = [("trl", "step"), ("coterie", "update"), ("coterie", "step"), ("vllm", "generate")]
    odd = [("vllm", "generate"), ("coterie", "step"), ("coterie", "update"), ("trl", "update"), ("trl", "step")]
    assert order == probe + warm + even + odd
    given = [rollouts for _, do, rollouts in asked if do == "update"]
    assert given[0] == given[1] == given[2]
    assert len(given[0]) == CASE.rollouts


def test_numbers_come_out_as_they_went_in(bench):
    result = measure.measure(bench, CASE, PROMPTS)
    by_name = {(line.what, line.unit): line for line in lines(result)}
    generation = by_name["generation", "tok/s"]
    assert generation.sides["coterie"].median == 20 / 2.0
    assert generation.better["trl"].median == 4.0
    assert generation.better["vllm"].median == 2.0
    assert by_name["update, same rollouts", "s"].sides["trl"].median == 12.0
    assert by_name["update, same rollouts", "tok/s"].sides["coterie"].median == 20 / 3.0
    assert by_name["whole step", "s"].better == {"trl": by_name["update, same rollouts", "s"].better["trl"]}
    assert by_name["peak memory", "GB"].sides["trl"].median == 8.0
    facts = circumstances(result)
    assert facts["lengths"]["trl"] == {"mean": 2.5, "min": 1, "max": 4}
    assert facts["trained"] == 0.25
    assert result["gradient"]["cosine"] == 1.0


def test_a_dead_worker_ends_its_case_only_and_says_where_to_look(bench, monkeypatch):
    monkeypatch.setattr(measure._Turns, "round", lambda self, number: self.workers["trl"].ask("crash"))
    result = measure.measure(bench, CASE, PROMPTS)
    assert len(result["errors"]) == 1
    assert "trl worker ended with exit code 3 while asked to crash" in result["errors"][0]
    assert "tiny.log" in result["errors"][0]
    assert lines(result) == []


def test_without_vllm_where_it_does_not_start(bench, monkeypatch):
    ask = Worker.ask

    def refuse(self: Worker, do: str, **details: Any) -> dict[str, Any]:
        if self.name == "vllm":
            assert do == "setup"
            raise PeerError(f"no compiler, eager={details['eager']}")
        return ask(self, do, **details)

    monkeypatch.setattr(Worker, "ask", refuse)
    result = measure.measure(bench, CASE, PROMPTS)
    assert result["errors"] == ["no compiler, eager=True"]
    assert len(result["rounds"]) == 2
    assert set(lines(result)[0].better) == {"trl"}


def test_other_advantages_are_refused():
    with pytest.raises(PeerError, match="did not train the same thing"):
        measure._check_advantages([1.0, 0.0], measure.rewards.draw(1, 2, seed=0))


def test_a_worker_reports_its_error_and_goes_on(tmp_path):
    with worker(tmp_path) as peer:
        with pytest.raises(PeerError, match="failed to fail: ValueError: no such thing"):
            peer.ask("fail")
        assert peer.ask("generate")["generate_s"] == 2.0
    assert "must not reach the wire" in (tmp_path / "log").read_text()


def test_a_worker_that_does_not_answer_is_killed(tmp_path):
    with worker(tmp_path, timeout_s=5.0) as peer:
        peer.timeout_s = 0.2
        with pytest.raises(PeerError, match="gave no answer within"):
            peer.ask("sleep")


def test_the_launcher_needs_no_installed_coterie(tmp_path):
    """The peers' environments have no coterie; `-S` hides ours the same way."""
    command = command_for(sys.executable, "benchmarks.peers.wire")
    command.insert(1, "-S")
    import subprocess

    assert subprocess.run(command, capture_output=True).returncode == 0
