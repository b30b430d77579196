from __future__ import annotations

import errno
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.errors import CheckpointError, RunError
from coterie.runs.durable import (
    MANIFEST,
    json_dumps,
    json_loads,
    publish_directory,
    remove_leftovers,
    verify_directory,
    write_file,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@pytest.fixture
def published(tmp_path):
    """A small folder with a nested file, published."""
    tmp, final = tmp_path / ".tmp-x", tmp_path / "x"
    (tmp / "sub").mkdir(parents=True)
    (tmp / "weights.bin").write_bytes(bytes(range(200)))
    (tmp / "sub" / "empty").write_bytes(b"")
    publish_directory(tmp, final, {"step": 3, "lr": 1e-6, "name": "ünï"})
    return final


@given(JSON)
def test_json_round_trip(value):
    text = json_dumps(value)
    assert text.isascii()
    assert json_loads(text) == value


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"a": {3: 1}}, object(), b"x"])
def test_json_refuses_to_write(value):
    with pytest.raises(ValueError, match=r"JSON|Out of range"):
        json_dumps(value)


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "1e999", '{"a":1,"a":2}', "[" * 100_000, "", "{"])
def test_json_refuses_to_read(text):
    with pytest.raises(ValueError):  # noqa: PT011 (the words are the parser's)
        json_loads(text)


def test_write_file_replaces(tmp_path):
    path = tmp_path / "a"
    write_file(path, b"old")
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "a"
    write_file(path, b"old")
    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(RunError, match=r"cannot write .*a: No space left .* bytes are free\); free some space"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def refuse(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_vanished_folder_is_named(tmp_path):
    with pytest.raises(RunError, match=r"gone.*check that the folder exists"):
        write_file(tmp_path / "gone" / "a", b"x")


def test_facts_come_back(published):
    assert verify_directory(published) == {"step": 3, "lr": 1e-6, "name": "ünï"}
    assert not list(published.parent.glob(".tmp-*"))


def test_every_flipped_bit_is_noticed(published):
    verify_directory(published)
    for file in (published / "weights.bin", published / MANIFEST):
        good = file.read_bytes()
        for position in range(0, len(good), 3):
            bad = bytearray(good)
            bad[position] ^= 1 << (position % 8)
            file.write_bytes(bytes(bad))
            with pytest.raises(CheckpointError, match=file.name):
                verify_directory(published)
        file.write_bytes(good)
    verify_directory(published)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("weights.bin", lambda f: f.write_bytes(f.read_bytes()[:-1]), "has 199 bytes, the manifest says 200"),
        ("weights.bin", lambda f: f.write_bytes(b""), "has 0 bytes"),
        ("weights.bin", lambda f: f.unlink(), "weights.bin is missing"),
        ("sub/empty", lambda f: f.write_bytes(b"!"), "empty has 1 bytes, the manifest says 0"),
        ("more", lambda f: f.write_bytes(b"!"), "more is not in the manifest"),
        ("link", lambda f: f.symlink_to("weights.bin"), "link is a link or a device"),
        ("folder", lambda f: f.symlink_to("sub"), "folder is a link or a device"),
        (MANIFEST, lambda f: f.unlink(), f"{MANIFEST} cannot be read: No such file"),
        (MANIFEST, lambda f: f.write_bytes(b""), f"{MANIFEST} is damaged"),
        (MANIFEST, lambda f: f.write_text("[1, 2]"), f"{MANIFEST} is damaged"),
        (MANIFEST, lambda f: f.write_bytes(b" " + f.read_bytes()), "does not match its own sha256"),
    ],
)
def test_damage_is_named(published, name, damage, message):
    damage(published / name)
    with pytest.raises(CheckpointError, match=message):
        verify_directory(published)


def test_a_newer_format_is_refused(published):
    manifest = json.loads((published / MANIFEST).read_text())
    (published / MANIFEST).write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 99, this coterie reads up to 1"):
        verify_directory(published)


def test_a_manifest_is_only_written_here(tmp_path):
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / MANIFEST).write_text("{}")
    with pytest.raises(CheckpointError, match="exists already"):
        publish_directory(tmp_path / "t", tmp_path / "f", {})


def test_leftovers_are_removed(tmp_path):
    (tmp_path / ".tmp-a").mkdir()
    (tmp_path / ".tmp-a" / "x").write_text("half")
    (tmp_path / ".tmp-b").write_text("half")
    (tmp_path / "kept").write_text("whole")
    assert [path.name for path in remove_leftovers(tmp_path)] == [".tmp-a", ".tmp-b"]
    assert os.listdir(tmp_path) == ["kept"]
    assert remove_leftovers(tmp_path / "absent") == []
