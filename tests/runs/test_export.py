"""What is exported can be read back, executes nothing in a spreadsheet, and overwrites nothing."""

from __future__ import annotations

import csv
import json
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stored_runs import make_run

from coterie.cli.main import main
from coterie.errors import RunError
from coterie.runs import rollouts
from coterie.runs.export import csv_cell, export, jsonable
from coterie.runs.query import Filters, open_runs, select
from coterie.text import UNSAFE
from faults.test_hostile_text import SAYINGS

EVIL = "=cmd|' /C calc'!A0\x1b[31m\u202e,\"\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_run(tmp_path, text=EVIL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("more", [[], ["--sort", "-reward"]], ids=["streamed", "sorted"])
def test_parquet_and_json_lines_give_every_value_back(
    root: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    names = open_runs(["one"]).schema.names
    expected = select(open_runs(["one"]), Filters(tasks=["sums"])).table(names, sort=more[1] if more else None)
    for file in ("out.parquet", "out.jsonl"):
        assert main(["experience", "one", "--task", "sums", "--export", file, *more]) == 0
        assert capsys.readouterr().out == f"6 rows in {file}\n"
    assert pq.read_table("out.parquet").to_pylist() == expected.to_pylist()
    lines = [json.loads(line) for line in Path("out.jsonl").read_text(encoding="ascii").splitlines()]
    assert lines == expected.to_pylist()
    assert lines[0]["completion"] == EVIL


def test_no_spreadsheet_executes_a_cell(root: Path) -> None:
    assert main(["experience", "one", "--export", "out.csv"]) == 0
    text = Path("out.csv").read_bytes().decode()
    assert UNSAFE.search(text.replace("\r\n", "\n")) is None
    with Path("out.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 12
    assert {row["completion"][:5] for row in rows} == {"'=cmd"}
    for row in rows:
        for cell in row.values():
            assert not cell.startswith(("=", "+", "@", "\t", "\r"))
            assert not cell.startswith("-") or float(cell) < 0
    assert json.loads(rows[0]["tokens"]) == [7]
    assert json.loads(rows[0]["complexity"])["length"] == 1
    assert rows[-4]["reward"] == "0.0"


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(1)", "'@SUM(1)"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\\x0d=1"),
        ("＝1", "'＝1"),
        ("a=1", "a=1"),
        (-1.5, -1.5),
        (None, ""),
        ([1, None], "[1, null]"),
        (Decimal(7), "7"),
    ],
)
def test_a_cell_of_csv(value: object, cell: object) -> None:
    if isinstance(value, Decimal):
        assert str(csv_cell(value)) == cell
    else:
        assert csv_cell(value) == cell


def test_what_json_does_not_know() -> None:
    assert jsonable({"a": float("nan"), "b": [float("inf"), 1]}) == {"a": None, "b": [None, 1]}
    assert jsonable(Decimal("1.5")) == 1.5
    assert jsonable(b"x") == "b'x'"


def test_nothing_is_overwritten_and_a_failure_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = root / "runs/one/rollouts/step_000001.parquet"
    before = file.read_bytes()
    table = pa.table({"a": [1]})
    for bad, message in ((file, "overwrites nothing"), (root / "x.xlsx", "ends in"), (root / "no/x.csv", "no folder")):
        with pytest.raises(RunError, match=message):
            export(bad, table.schema, table.to_batches())
    assert file.read_bytes() == before

    def refuse(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(RunError, match="No space left"):
        export(root / "x.jsonl", table.schema, table.to_batches())
    assert not (root / "x.jsonl").exists()
    assert [path.name for path in root.iterdir()] == ["runs"]


def test_a_summary_and_a_limit_are_exported_too(root: Path) -> None:
    assert main(["experience", "one", "--by", "task", "--export", "by.jsonl"]) == 0
    assert [json.loads(line)["task"] for line in Path("by.jsonl").read_text().splitlines()] == ["sums", "words"]
    assert main(["experience", "one", "--limit", "2", "--columns", "run,step", "--export", "two.jsonl"]) == 0
    assert Path("two.jsonl").read_text() == '{"run": "one", "step": 1}\n' * 2


def test_a_table_on_the_terminal_is_inert(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experience", "one", "--columns", "completion,prompt"]) == 0
    assert UNSAFE.search(capsys.readouterr().out) is None
    assert main(["experience", "one", "--columns", "completion", "--json"]) == 0
    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out)[0] == {"completion": EVIL}
    assert rollouts.read_step(root / "runs/one/rollouts", 1)[0].rollout.completion == EVIL


@pytest.mark.parametrize("saying", SAYINGS.values(), ids=SAYINGS)
def test_whatever_a_model_says_is_inert_in_tables_and_exact_in_json(
    saying: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, text=saying)
    monkeypatch.chdir(tmp_path)
    words = ["experience", "one", "--columns", "completion,step", "--to", "1"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert UNSAFE.search(shown) is None
    assert len(shown.splitlines()) == 5
    for file in ("out.csv", "out.jsonl"):
        assert main([*words, "--export", file]) == 0
    csv.field_size_limit(1 << 24)
    with Path("out.csv").open(encoding="utf-8", newline="") as handle:
        (_, *cells) = [row[0] for row in csv.reader(handle)]
    assert len(cells) == 4
    assert not cells[0].startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    assert UNSAFE.search(cells[0]) is None
    lines = [json.loads(line)["completion"] for line in Path("out.jsonl").read_text().splitlines()]
    assert lines == [saying.encode("utf-8", "backslashreplace").decode()] * 4
