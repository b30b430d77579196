"""Files as they come: which rows there are, with which number, and what makes a whole file unreadable."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coterie.data.files import read_file, stem_of, suffix_of
from coterie.data.rows import Row
from coterie.errors import DataError


def rows(path: Path) -> list[Row]:
    return list(read_file(path))


def problems(path: Path) -> dict[int, str]:
    return {row.number: row.problem for row in rows(path) if row.problem}


def csv_file(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "q.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_csv_with_quotes_byte_order_mark_and_windows_lines(tmp_path: Path) -> None:
    path = csv_file(tmp_path, '\ufeffquestion,answer\r\n"one, ""two""\nthree",3\r\nplain,\r\n\r\n')
    assert [row.data for row in rows(path)] == [
        {"question": 'one, "two"\nthree', "answer": "3"},
        {"question": "plain", "answer": None},
    ]


def test_csv_rows_with_other_cells_are_bad_rows(tmp_path: Path) -> None:
    path = csv_file(tmp_path, "question,answer\na,1\nb\nc,3,4\nd,4\n")
    assert problems(path) == {2: "has 1 cells, expected 2 (line 3)", 3: "has 3 cells, expected 2 (line 4)"}
    assert [row.number for row in rows(path) if row.data] == [1, 4]


def test_a_csv_quote_that_never_closes_is_a_bad_row(tmp_path: Path) -> None:
    assert "is not valid CSV: unexpected end of data" in problems(csv_file(tmp_path, 'question\na\n"b\n'))[2]


def test_bytes_that_are_not_utf8_condemn_only_their_csv_row(tmp_path: Path) -> None:
    from coterie.data.columns import BadRowError, read_columns

    first, second = rows(csv_file(tmp_path, b"question\ncaf\xe9\nok\n"))
    with pytest.raises(BadRowError, match=r"is not UTF-8 in question .character 3.; save the file as UTF-8"):
        read_columns(first.data or {})
    assert second.data == {"question": "ok"}


def test_a_long_csv_cell_is_read(tmp_path: Path) -> None:
    (row,) = rows(csv_file(tmp_path, "question\n" + "x" * 1_000_000 + "\n"))
    assert row.data is not None
    assert len(row.data["question"]) == 1_000_000


def test_parquet_rows_come_as_python_values(tmp_path: Path) -> None:
    path = tmp_path / "q.parquet"
    talk = [{"role": "user", "content": "hi"}]
    pq.write_table(pa.table({"prompt": [talk, None], "answer": [4, None], "x": [float("nan"), 1.0]}), path)
    first, second = rows(path)
    assert first.data is not None
    assert second.data is not None
    assert (first.number, first.data["prompt"], first.data["answer"]) == (1, talk, 4)
    assert second.data["prompt"] is None


def test_parquet_text_that_is_not_utf8_condemns_only_its_row(tmp_path: Path) -> None:
    path = tmp_path / "q.parquet"
    column = pa.array([b"caf\xe9", b"ok"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"question": column}), path)
    assert problems(path) == {1: "is not UTF-8"}


def test_damaged_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "q.parquet"
    pq.write_table(pa.table({"question": ["a", "b"]}), path, write_page_checksum=True, compression="none")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"q.parquet is not a readable Parquet file: .*write it again"):
        rows(path)


def test_a_csv_header_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="names a column twice in its first line: question, question"):
        rows(csv_file(tmp_path, "question,question\na,b\n"))


def test_files_that_are_not_there_or_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.jsonl does not exist; expected a .jsonl, .json, .csv, .parquet"):
        rows(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        rows(tmp_path)
    (tmp_path / "q.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"ends in '.xlsx', expected .jsonl, .json, .csv, .parquet.*; convert it first"):
        rows(tmp_path / "q.xlsx")
    (tmp_path / "empty.csv").touch()
    with pytest.raises(DataError, match=r"empty.csv is empty"):
        rows(tmp_path / "empty.csv")


@pytest.mark.parametrize("name", ["q.jsonl.gz", "q.JSONL.bz2", "q.jsonl.xz", "q.jsonl"])
def test_compressed_text_is_recognised_by_its_first_bytes(name: str, tmp_path: Path) -> None:
    text = b'{"prompt": "a"}\n' * 50
    pack = {".bz2": bz2.compress, ".xz": lzma.compress}.get(Path(name).suffix, gzip.compress)
    (tmp_path / name).write_bytes(pack(text))
    assert [row.data for row in rows(tmp_path / name)] == [{"prompt": "a"}] * 50
    assert (stem_of(tmp_path / name), suffix_of(tmp_path / name)) == ("q", ".jsonl")
    (tmp_path / name).write_bytes(pack(text)[:-20])
    with pytest.raises(DataError, match="cannot be read"):
        rows(tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["q.csv", "q.jsonl"])
def test_utf16_is_named(name: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes('{"question": "a"}\n'.encode(encoding))
    with pytest.raises(DataError, match="is UTF-16 text; save it as UTF-8"):
        rows(tmp_path / name)


ROWS = [{"question": "a", "n": 1}, {"question": "b\n", "n": None}]


@pytest.mark.parametrize("name", ["q.json", "q.jsonl"])
@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        "\ufeff\n" + json.dumps(ROWS, indent=2) + "\n",
        "\n".join(json.dumps(row, indent=1) for row in ROWS),
        "".join(json.dumps(row) + "\n\n" for row in ROWS),
        ",\n".join(json.dumps(row, indent=1) for row in ROWS),
        json.dumps({"version": 1, "data": ROWS}, indent=1),
        json.dumps({"question": ["a", "b\n"], "n": [1, None]}, indent=1),
        json.dumps({"question": {"0": "a", "1": "b\n"}, "n": {"0": 1, "1": None}}, indent=1),
    ],
)
def test_json_as_lines_as_an_array_and_as_objects_over_several_lines(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert [row.data for row in rows(tmp_path / name)] == ROWS


def test_json_of_one_object(tmp_path: Path) -> None:
    talk = {"conversations": [{"from": "human", "value": "a"}]}
    for indent in (None, 1):
        (tmp_path / "q.json").write_text(json.dumps(talk, indent=indent))
        assert [row.data for row in rows(tmp_path / "q.json")] == [talk]
    (tmp_path / "q.jsonl").write_text(json.dumps({"data": ["a"], "n": [1]}))
    assert [row.data for row in rows(tmp_path / "q.jsonl")] == [{"data": ["a"], "n": [1]}]


def test_elements_of_an_array_that_are_not_objects_and_broken_characters_condemn_only_their_rows(
    tmp_path: Path,
) -> None:
    (tmp_path / "q.json").write_bytes(b'[{"prompt": "a"},\n 7,\n {"prompt": "caf\xe9"}]')
    assert problems(tmp_path / "q.json") == {2: "is a JSON number; expected an object with columns"}
    assert [row.data for row in rows(tmp_path / "q.json")][2] == {"prompt": "caf\udce9"}


def test_a_damaged_array_is_refused_with_the_place(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('[\n {"prompt": "a"},\n {"prompt" "b"}\n]')
    with pytest.raises(DataError, match=r"begins as one JSON array and is not valid JSON: .*line 3, column 12"):
        rows(tmp_path / "q.jsonl")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("q.csv", "question, answer\na, 1\n"),
        ("q.csv", '"question", "answer"\n"a", "1"\n'),
        ("q.csv", "question;answer\na;1\n"),
        ("q.csv", "question\tanswer\na\t1\n"),
        ("q.tsv", "question\tanswer\na\t1\n"),
    ],
)
def test_tables_with_other_delimiters_and_spaces(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert [row.data for row in rows(tmp_path / name)] == [{"question": "a", "answer": "1"}]


@pytest.mark.parametrize("stream", [True, False])
def test_arrow_files_and_streams(stream: bool, tmp_path: Path) -> None:
    table = pa.table({"question": ["a"] * 3000, "nested": [{"x": 1}] * 3000})
    open_writer = pa.ipc.new_stream if stream else pa.ipc.new_file
    with open_writer(tmp_path / "q.arrow", table.schema) as writer:
        writer.write_table(table)
    shard = rows(tmp_path / "q.arrow")
    assert [row.number for row in shard] == list(range(1, 3001))
    assert shard[-1].data == {"question": "a", "nested": {"x": 1}}
    (tmp_path / "q.arrow").write_bytes(b"neither")
    with pytest.raises(DataError, match="is not a readable Arrow file"):
        rows(tmp_path / "q.arrow")
