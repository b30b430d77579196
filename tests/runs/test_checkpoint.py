from __future__ import annotations

import errno
import os
import shutil

import pytest

from coterie.errors import CheckpointError
from coterie.runs import checkpoint, durable
from coterie.runs.durable import remove_leftovers, verify_directory


def save(root, step, *, keep=2, weights=b"w" * 50, state=None, run_id="run", config_hash="c"):
    def write(folder):
        (folder / "weights.safetensors").write_bytes(weights + b"%d" % step)

    return checkpoint.save(
        root, step, write, state or {"cursor": step}, keep=keep, run_id=run_id, config_hash=config_hash
    )


def flip(path, position=-1):
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(bytes(data))


def test_nothing_there(tmp_path):
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.newest(tmp_path / "absent") is None


def test_save_and_find(tmp_path):
    path = save(tmp_path / "checkpoints", 7, state={"cursor": [1, 2], "x": 0.1})
    newest = checkpoint.newest(tmp_path / "checkpoints")
    assert newest is not None
    assert (newest.path, newest.step, newest.state, newest.skipped) == (path, 7, {"cursor": [1, 2], "x": 0.1}, [])
    assert (newest.run_id, newest.config_hash) == ("run", "c")


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 3, 12, 1_000_000):
        save(tmp_path, step)
    assert checkpoint.steps(tmp_path) == [12, 1_000_000]
    assert not list(tmp_path.glob(".tmp-*"))


def test_walks_back_and_says_why(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, keep=3)
    flip(tmp_path / "step_000003" / "weights.safetensors")
    (tmp_path / "step_000002" / "state.json").unlink()
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert newest.step == 1
    assert [path.name for path, _ in newest.skipped] == ["step_000003", "step_000002"]
    assert "weights.safetensors is damaged" in newest.skipped[0][1]
    assert "state.json is missing" in newest.skipped[1][1]


def test_only_damaged_ones_never_start_over(tmp_path):
    for step in (1, 2):
        flip(save(tmp_path, step) / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"none of the 2 .*\n.*step_000002.*\n.*step_000001.*\n.*never restarts"):
        checkpoint.newest(tmp_path)


def test_a_renamed_checkpoint_is_noticed(tmp_path):
    save(tmp_path, 1)
    os.rename(tmp_path / "step_000001", tmp_path / "step_000009")
    with pytest.raises(CheckpointError, match="holds step 1: it was renamed"):
        checkpoint.newest(tmp_path)


def test_files_swapped_between_steps_are_noticed(tmp_path):
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    shutil.copy(first / "weights.safetensors", second / "weights.safetensors")
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert newest.step == 1


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, wrapped):
    class SafetensorError(Exception):
        pass

    def write(folder):
        (folder / "weights").write_bytes(b"x" * 1234)
        if wrapped:
            raise SafetensorError("No space left on device (os error 28)")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"step_000002: No space left .* 1,234 bytes far; older .* untouched"):
        checkpoint.save(tmp_path, 2, write, {}, keep=1, run_id="run", config_hash="c")
    assert os.listdir(tmp_path) == ["step_000001"]
    verify_directory(tmp_path / "step_000001")


@pytest.mark.parametrize("call", ["fsync", "rename", "open", "mkdir"])
def test_the_disk_refuses_at_every_call(tmp_path, monkeypatch, call):
    """ENOSPC or EIO at the k-th call, k = 1, 2, 3 … until a save passes untouched: one checkpoint always verifies."""
    real, refusals = getattr(os, call), 0
    for k in range(1, 60):
        root = tmp_path / str(k)
        save(root, 1, keep=1)
        calls = 0

        def counted(*args, k=k, **kwargs):
            nonlocal calls
            calls += 1
            if calls == k:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, counted)
            try:
                save(root, 2, keep=1)
            except CheckpointError:
                refusals += 1
        newest = checkpoint.newest(root)
        assert newest is not None
        if calls < k:
            assert newest.step == 2
            break
    else:
        pytest.fail("never got through")
    assert refusals


def test_killed_at_every_call(tmp_path):
    """A child dies at its k-th fsync, rename or unlink. What is left holds a checkpoint that verifies, and goes on."""
    steps = set()
    for k in range(1, 80):
        root = tmp_path / str(k)
        save(root, 1, keep=1)
        pid = os.fork()
        if pid == 0:
            die_at(k)
            save(root, 2, keep=1)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        newest = checkpoint.newest(root)
        assert newest is not None
        assert not newest.skipped
        steps.add(newest.step)
        remove_leftovers(root)
        save(root, 2, keep=1)
        assert os.listdir(root) == ["step_000002"]
        if code == 0:
            break
    else:
        pytest.fail("never got through")
    assert steps == {1, 2}


def die_at(k):
    calls = 0
    for name in ("fsync", "rename", "unlink", "rmdir"):
        real = getattr(os, name)

        def counted(*args, real=real, **kwargs):
            nonlocal calls
            calls += 1
            if calls == k:
                os._exit(9)
            return real(*args, **kwargs)

        setattr(os, name, counted)


def test_verified_before_pruning(tmp_path, monkeypatch):
    """What was written does not read back: the old checkpoint stays."""
    save(tmp_path, 1, keep=1)
    publish = durable.publish_directory

    def publish_and_damage(tmp, final, facts):
        publish(tmp, final, facts)
        flip(final / "weights.safetensors")

    monkeypatch.setattr(checkpoint, "publish_directory", publish_and_damage)
    with pytest.raises(CheckpointError, match=r"does not read back: .*weights.safetensors is damaged.*untouched"):
        save(tmp_path, 2, keep=1)
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert newest.step == 1


def test_the_new_one_is_never_pruned(tmp_path):
    """Later steps that do not verify are left from before a walk back; they do not crowd out the new one."""
    save(tmp_path, 10)
    flip(save(tmp_path, 20) / "weights.safetensors")
    save(tmp_path, 12, keep=1)
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert newest.step == 12


def test_saving_a_step_again(tmp_path):
    path = save(tmp_path, 3)
    before = path.stat().st_mtime_ns
    assert save(tmp_path, 3) == path
    assert path.stat().st_mtime_ns == before
    flip(path / "weights.safetensors")
    save(tmp_path, 3)
    verify_directory(path)
    with pytest.raises(CheckpointError, match=r"belongs to something else \(config_hash = 'c', now 'd'\)"):
        save(tmp_path, 3, config_hash="d")


def test_bad_arguments(tmp_path):
    with pytest.raises(CheckpointError, match="keep = 0"):
        save(tmp_path, 1, keep=0)
    with pytest.raises(CheckpointError, match="must be strict JSON"):
        save(tmp_path, 1, state={"loss": float("nan")})
    assert os.listdir(tmp_path) == []


def test_errors_that_are_not_the_disk_pass_through(tmp_path):
    def write(folder):
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        checkpoint.save(tmp_path, 1, write, {}, keep=1, run_id="r", config_hash="c")
    assert os.listdir(tmp_path) == []


def test_no_room_is_said_before_a_byte_is_written(tmp_path):
    save(tmp_path, 1)
    written = []
    with pytest.raises(CheckpointError, match=r"no room for the checkpoint .*step_000002.* needs about .* bytes and"):
        checkpoint.save(
            tmp_path,
            2,
            written.append,
            {},
            keep=1,
            run_id="run",
            config_hash="c",
            size=shutil.disk_usage(tmp_path).total,
        )
    assert written == []
    assert os.listdir(tmp_path) == ["step_000001"]


@pytest.mark.parametrize(
    ("state", "message"), [([1], "holds a list"), ({}, "has no 'step' of type int"), ({"step": "1"}, "has no")]
)
def test_a_state_that_is_none_is_walked_around(tmp_path, state, message):
    save(tmp_path, 1, state={"step": 1})
    folder = save(tmp_path, 2, state={"step": 2})
    (folder / durable.MANIFEST).unlink()
    (folder / "state.json").write_text(durable.json_dumps(state))
    os.rename(folder, tmp_path / "made-up")
    facts = {"kind": "checkpoint", "step": 2, "run_id": "run", "config_hash": "c"}
    durable.publish_directory(tmp_path / "made-up", folder, facts)
    newest = checkpoint.newest(tmp_path, {"step": int})
    assert newest is not None
    assert newest.step == 1
    assert message in newest.skipped[0][1]


def test_what_a_kill_left_of_a_clean_up_is_cleaned_up_later(tmp_path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep=4)
    checkpoint.prune(tmp_path, 3, keep=2)
    assert checkpoint.steps(tmp_path) == [2, 3, 4]
