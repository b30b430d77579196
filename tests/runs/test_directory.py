from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from coterie.errors import RunError
from coterie.runs.directory import RunDirectory, check_name
from coterie.runs.lock import Lock, lock_holder
from coterie.runs.metrics import MetricsDB


def test_layout(tmp_path):
    with RunDirectory.create(tmp_path / "runs", "first", "x") as run:
        assert (run.name, run.path) == ("first", tmp_path / "runs" / "first")
        assert sorted(os.listdir(run.path)) == [".lock", "checkpoints", "logs", "rollouts"]
        run.write_config({"steps": 3, "model": {"name": "tiny", "lora": None}})
        assert run.read_config() == {"steps": 3, "model": {"name": "tiny"}}
        with pytest.raises(RunError, match="a run's settings never change"):
            run.write_config({})


def test_numbers_count_up(tmp_path):
    names = [RunDirectory.create(tmp_path, "", "smol lm/legs").name for _ in range(3)]
    assert names == ["smol-lm-legs-001", "smol-lm-legs-002", "smol-lm-legs-003"]
    (tmp_path / "smol-lm-legs-041").mkdir()
    assert RunDirectory.create(tmp_path, "", "smol lm/legs").name == "smol-lm-legs-042"
    assert RunDirectory.create(tmp_path, "", "../..").name == "run-001"


def test_never_overwritten(tmp_path):
    RunDirectory.create(tmp_path, "mine", "x").close()
    (tmp_path / "mine" / "precious").write_text("42")
    with pytest.raises(RunError, match=r"mine exists, and a run is never overwritten.*coterie resume"):
        RunDirectory.create(tmp_path, "mine", "x")
    assert (tmp_path / "mine" / "precious").read_text() == "42"


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "a b", "x" * 101, "語" * 100, "a\n", "n\u0308é/", "\ud800"])
def test_bad_names(tmp_path, name):
    with pytest.raises(RunError, match="is not a folder name"):
        RunDirectory.create(tmp_path, name, "x")
    assert os.listdir(tmp_path) == []


def ended_early(tmp_path, name="mine"):
    """A run that ended in an error before its first step: settings, a log, an evaluation, metrics without a step."""
    with RunDirectory.create(tmp_path, name, "x") as run:
        run.write_config({"steps": 3})
        run.open_log().close()
        (run.path / "evals").mkdir()
        (run.path / "evals/step_000000.parquet").touch()
        with MetricsDB(run.metrics) as database:
            database.event("error", "RewardError")
    return run


def test_the_name_of_a_run_without_a_step_is_free(tmp_path):
    ended_early(tmp_path)
    check_name(tmp_path, "mine")
    with RunDirectory.create(tmp_path, "mine", "x") as run:
        assert sorted(os.listdir(run.path)) == [".lock", "checkpoints", "logs", "rollouts"]
        assert os.listdir(run.logs) == []


@pytest.mark.parametrize("kept", ["rollouts/step_000001.parquet", "checkpoints/step_000001", "notes.txt", "metrics"])
def test_what_holds_a_step_or_something_else_is_never_touched(tmp_path, kept):
    run = ended_early(tmp_path)
    if kept == "metrics":
        with MetricsDB(run.metrics) as database:
            database.record(1, {"reward/mean": 0.5})
    else:
        (run.path / kept).touch()
    before = sorted(path.relative_to(tmp_path) for path in run.path.rglob("*"))
    for refuse in (lambda: check_name(tmp_path, "mine"), lambda: RunDirectory.create(tmp_path, "mine", "x")):
        with pytest.raises(RunError, match="never overwritten"):
            refuse()
    assert {*before} <= {path.relative_to(tmp_path) for path in run.path.rglob("*")}


def test_the_name_of_a_run_that_is_just_beginning_is_taken(tmp_path):
    run = RunDirectory.create(tmp_path, "mine", "x")
    run.write_config({"steps": 3})
    code = f"from coterie.runs.directory import RunDirectory as R, Path; R.create(Path({str(tmp_path)!r}), 'mine', 'x')"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"in use by process {os.getpid()}" in other.stderr
    assert run.read_config() == {"steps": 3}


def test_a_run_can_be_given_more_steps(tmp_path):
    with RunDirectory.create(tmp_path, "mine", "x") as run:
        run.write_config({"steps": 3, "model": {"name": "tiny"}})
        run.write_steps(5)
        assert run.read_config() == {"steps": 5, "model": {"name": "tiny"}}


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(RunError, match=r"cannot create a run in .*runs"):
        RunDirectory.create(tmp_path / "runs", "a", "x")


def test_open_by_name_and_by_path(tmp_path):
    RunDirectory.create(tmp_path, "a", "x").write_config({"steps": 1})
    assert RunDirectory.open("a", tmp_path).path == tmp_path / "a"
    assert RunDirectory.open(tmp_path / "a").path == tmp_path / "a"
    with pytest.raises(RunError, match=r"no run 'b': .* holds a"):
        RunDirectory.open("b", tmp_path)
    with pytest.raises(RunError, match="holds no runs"):
        RunDirectory.at("b", tmp_path / "empty")


def test_open_removes_leftovers(tmp_path):
    RunDirectory.create(tmp_path, "a", "x").write_config({})
    for name in (".tmp-config", "checkpoints/.tmp-step", "rollouts/.tmp-y", "checkpoints/step_000001"):
        (tmp_path / "a" / name).mkdir()
    RunDirectory.at("a", tmp_path)
    assert (tmp_path / "a" / ".tmp-config").exists()
    RunDirectory.open("a", tmp_path).close()
    assert [p.name for p in (tmp_path / "a").rglob("*step*")] == ["step_000001"]
    assert not list((tmp_path / "a").rglob(".tmp-*"))


def test_second_process_is_refused(tmp_path):
    run = RunDirectory.create(tmp_path, "a", "x")
    run.write_config({})
    code = f"from coterie.runs.directory import RunDirectory; RunDirectory.open({str(run.path)!r})"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"in use by process {os.getpid()}; wait for it" in other.stderr
    with pytest.raises(RunError, match=f"in use by process {os.getpid()}"):
        RunDirectory.open(run.path)
    run.close()
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_killed_holder_leaves_no_lock(tmp_path):
    code = f"import os; from coterie.runs.lock import Lock; from pathlib import Path; x = Lock(Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", code + "; os.kill(os.getpid(), 9)"])
    assert (tmp_path / ".lock").read_text().strip().isdigit()
    assert lock_holder(tmp_path) is None
    Lock(tmp_path).release()


def test_a_forked_worker_does_not_keep_the_lock(tmp_path):
    lock = Lock(tmp_path)
    reader, writer = os.pipe()
    started, begin = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.write(begin, b"!")
        os.read(reader, 1)  # lives until the parent closes its end
        os._exit(0)
    os.close(reader)
    os.read(started, 1)
    assert lock_holder(tmp_path) == os.getpid()
    lock.release()
    assert lock_holder(tmp_path) is None
    Lock(tmp_path).release()
    os.close(writer)
    os.close(started)
    os.close(begin)
    os.waitpid(pid, 0)


def test_quarantine(tmp_path):
    run = RunDirectory.create(tmp_path, "a", "x")
    run.write_quarantine([])
    assert not run.quarantine.exists()
    run.write_quarantine([{"row": 3, "reason": "empty\n\ud800"}, {"row": 4, "reason": "long"}])
    assert [json.loads(line)["row"] for line in run.quarantine.read_text().splitlines()] == [3, 4]
    with pytest.raises(RunError, match="not strict JSON"):
        run.write_quarantine([{"row": float("nan")}])


def test_logs(tmp_path):
    run = RunDirectory.create(tmp_path, "a", "x")
    log = run.open_log()
    log.line("warning", "two\nlines \ud800")
    log.close()
    second_log = run.open_log()
    second_log.close()
    assert second_log.path.name == "attempt_2.log"
    first, second = log.path.read_text().splitlines()
    assert first.endswith("Z warning    two")
    assert second == "    lines \\ud800"


def test_a_full_disk_does_not_stop_the_log(tmp_path):
    run = RunDirectory.create(tmp_path, "a", "x")
    log = run.open_log()
    log.close()
    log._file = open("/dev/full", "w", buffering=1)  # noqa: SIM115
    log.line("step", "text")
    log.close()
    assert log.lost >= 1


def test_an_unreadable_config(tmp_path):
    run = RunDirectory.create(tmp_path, "a", "x")
    run.config.write_text("steps = = 3")
    with pytest.raises(RunError, match=r"config.toml cannot be read"):
        run.read_config()


def test_a_run_that_died_before_its_settings_were_written_is_taken_over(tmp_path):
    for depth in range(3):
        run = RunDirectory.create(tmp_path / str(depth), "mine", "x")
        run.close()
        if depth == 0:
            (run.path / ".tmp-config.toml-7").write_text("half")
        else:
            for folder in (run.rollouts, run.checkpoints, run.logs)[: depth + 1]:
                folder.rmdir()
        with RunDirectory.create(tmp_path / str(depth), "mine", "x") as again:
            assert again.path == run.path
            assert sorted(child.name for child in again.path.iterdir()) == [".lock", "checkpoints", "logs", "rollouts"]


def test_a_run_that_is_being_made_is_not_taken_over(tmp_path):
    run = RunDirectory.create(tmp_path, "mine", "x")
    with pytest.raises(RunError, match="is in use by process"):
        RunDirectory.create(tmp_path, "mine", "x")
    run.close()
    (run.rollouts / "step_000001.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunError, match="is never overwritten"):
        RunDirectory.create(tmp_path, "mine", "x")


def test_checkpoints_are_set_aside_and_never_twice_to_the_same_place(tmp_path):
    with RunDirectory.create(tmp_path, "mine", "x") as run:
        assert run.set_checkpoints_aside() is None
        for number in (1, 2):
            (run.checkpoints / "step_000001").mkdir()
            assert run.set_checkpoints_aside() == run.path / f"checkpoints-aside-{number}"
        assert list(run.checkpoints.iterdir()) == []
