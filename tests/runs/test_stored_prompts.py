"""The prompts that a run met: stored once, whole or not at all, damage noticed, forgotten with the steps after."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from records import make_prompt

from coterie.errors import RunError
from coterie.runs import parquet
from coterie.runs.prompts import StoredPrompt, read, read_step, write_step
from coterie.types import Message, Prompt


def met(name: str, vector: list[float], kind: str = "policy", prompt: Prompt | None = None) -> StoredPrompt:
    return StoredPrompt(prompt=prompt or make_prompt(name), kind=kind, embedding=np.array(vector))


def test_a_prompt_comes_back_with_what_it_says_of_itself(tmp_path: Path) -> None:
    attributes = {"subject": "sums", "tools": ["a", "b"], "n": 2}
    messages = (Message(role="system", content="Add."), Message(role="user", content="What is 12 + 3?"))
    prompt = Prompt(id="p", messages=messages, answer="15", task="sums", attributes=attributes, source="file:s.jsonl")
    write_step(tmp_path, 3, [met("p", [0.1, -2.5], prompt=prompt), met("half \ud83d", [1.0], "text")])
    first, second = read(tmp_path).to_pylist()
    assert first["step"] == 3
    assert (first["source"], first["domain"], first["answer"]) == ("file:s.jsonl", "sums", "15")
    expected = {"length": 15, "digits": 3, "operators": 1, "numbers": 2, "steps": 1, "tools": 2}
    assert first["complexity"] == expected
    assert first["embedding"] == [float(np.float32(0.1)), -2.5]
    assert (second["prompt_id"], second["embedding_kind"]) == ("half \\ud83d", "text")


def test_steps_add_up_and_are_forgotten_from_the_end(tmp_path: Path) -> None:
    assert len(read(tmp_path / "absent")) == 0
    write_step(tmp_path, 1, [met("a", [1.0])])
    assert write_step(tmp_path, 2, []) is None
    write_step(tmp_path, 5, [met("b", [1.0]), met("c", [2.0])])
    assert read(tmp_path)["prompt_id"].to_pylist() == ["a", "b", "c"]
    assert parquet.truncate_after(tmp_path, 4) == [5]
    assert read(tmp_path)["prompt_id"].to_pylist() == ["a"]


def test_a_step_is_never_overwritten(tmp_path: Path) -> None:
    write_step(tmp_path, 1, [met("a", [1.0])])
    with pytest.raises(RunError, match=r"exists; a recorded step is never overwritten"):
        write_step(tmp_path, 1, [met("b", [1.0])])


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(RunError, match="No space left"):
        write_step(tmp_path, 1, [met("a", [1.0])])
    assert os.listdir(tmp_path) == []


def test_flipped_bits_never_change_a_prompt(tmp_path: Path) -> None:
    path = write_step(tmp_path, 1, [met(f"p{k}", np.random.default_rng(k).normal(size=8).tolist()) for k in range(4)])
    assert path is not None
    good, draw = path.read_bytes(), np.random.default_rng(0)
    rows, noticed = read_step(tmp_path, 1).to_pylist(), 0
    for _ in range(150):
        bad = bytearray(good)
        bad[draw.integers(len(bad))] ^= 1 << int(draw.integers(8))
        path.write_bytes(bytes(bad))
        try:
            assert read_step(tmp_path, 1).to_pylist() == rows
        except RunError:
            noticed += 1
    assert noticed > 75


def test_what_is_no_json_is_named(tmp_path: Path) -> None:
    nan = {"x": float("nan")}
    prompt = Prompt(id="p", messages=make_prompt().messages, answer=None, task="t", attributes=nan)
    with pytest.raises(RunError, match="the prompts of step 1 do not fit their columns"):
        write_step(tmp_path, 1, [met("p", [1.0], prompt=prompt)])
