"""Traces of a user's file: the columns that others publish, what is refused, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from coterie.cli.main import main
from coterie.errors import DataError
from coterie.traces.imported import read_traces

THOUGHT = "<think>\n2 + 3 = 5\n\nso it is\n5\n</think>\n\nThe sum is \\boxed{5}."


def write(folder: Path, *table: dict[str, Any]) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "row",
    [
        {"problem": "2 + 3?", "generations": ["no", THOUGHT], "correctness_math_verify": [False, True], "answer": "5", "solution": "$5$"},  # noqa: E501
        {"messages": [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": THOUGHT}], "source": "math", "num_tokens": 9},  # noqa: E501
        {"id": "a", "prompt": "2 + 3?", "output": THOUGHT, "dataset_source": "olmo"},
        {"question": "2 + 3?", "steps": ["2 + 3 = 5", "so it is 5"], "answer": 5},
    ],
    ids=["open-r1 math", "open-r1 messages", "olmo", "steps"],
)  # fmt: skip
def test_columns_that_are_recognised(tmp_path: Path, row: dict[str, Any]) -> None:
    assert read_traces(write(tmp_path, row)).rows == [
        {"prompt": "2 + 3?", "steps": ["2 + 3 = 5", "so it is 5"], "answer": "5"}
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"steps": ["a"], "answer": "b"}, "has none of prompt, problem, question and no message of a user"),
        ({"prompt": "a"}, "has neither steps nor a reply"),
        ({"prompt": "a", "output": "b\nc"}, "has no answer: no such column, and no boxed or tagged one in its reply"),
        ({"prompt": "a", "output": "<think>b", "answer": "c"}, "opens <think> and does not close it"),
        ({"prompt": "a", "steps": "b", "answer": "c"}, "has no steps: expected a column `steps`, a list of texts"),
        ({"prompt": "a", "steps": ["b"]}, "has no answer"),
        ({"problem": "a", "generations": ["b"], "correctness_llama": [False]}, "has 1 generation, and none is marked"),
    ],
)  # fmt: skip
def test_a_missing_key_is_told_with_its_row(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    good = {"prompt": "2 + 3?", "steps": ["2 + 3 = 5"], "answer": "5"}
    with pytest.raises(DataError, match=f"1 of 2 rows cannot be used, more than 10%: row 2 {reason}"):
        read_traces(write(tmp_path, good, row))
    read = read_traces(write(tmp_path, *[good] * 9, row))
    assert len(read.rows) == 9
    assert read.refused[0][0] == 10


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "traces.jsonl"
    assert main(["traces"]) == 0
    assert "carrying" in capsys.readouterr().out
    assert main(["traces", "sums", "sorting", "--count", "7", "--difficulty", "3", "--out", str(out)]) == 0
    table = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["family"] for row in table] == ["sums", "sorting"] * 3 + ["sums"]
    assert main(["traces", "sums", "--out", str(out)]) == 1
    assert "exists, and no file is ever overwritten" in capsys.readouterr().err
    assert main(["traces", "--from", str(out), "--out", str(tmp_path / "again.jsonl")]) == 0
    assert len((tmp_path / "again.jsonl").read_text().splitlines()) == 7
    for words, message in (
        (["traces", "sums", "--difficulty", "x"], "--difficulty x: expected a number, or least-most such as 2-4"),
        (["traces", "sums", "--from", str(out)], "--from reads the traces of a file"),
        (["traces", "sums", "--split", "x"], "expected train or heldout"),
    ):
        assert main(words) != 0
        assert message in " ".join(capsys.readouterr().err.split())
