"""Files as they come: which rows there are, with which number, and what makes a whole file unreadable."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coterie.data.rows import Row, read_file
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
    assert "is no CSV: unexpected end of data" in problems(csv_file(tmp_path, 'question\na\n"b\n'))[2]


def test_bytes_that_are_no_utf8_condemn_only_their_csv_row(tmp_path: Path) -> None:
    from coterie.data.columns import BadRowError, read_columns

    first, second = rows(csv_file(tmp_path, b"question\ncaf\xe9\nok\n"))
    with pytest.raises(BadRowError, match="broken UTF-8 in question"):
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


def test_parquet_text_that_is_no_utf8_condemns_only_its_row(tmp_path: Path) -> None:
    path = tmp_path / "q.parquet"
    column = pa.array([b"caf\xe9", b"ok"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"question": column}), path)
    assert problems(path) == {1: "is not UTF-8"}


def test_damaged_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "q.parquet"
    pq.write_table(pa.table({"question": ["a", "b"]}), path, write_page_checksum=True, compression="none")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"q.parquet is no readable Parquet file: .*write it again"):
        rows(path)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_files_without_a_question_name_their_columns(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"q.{suffix}"
    if suffix == "csv":
        path.write_text("query,answer\na,b\n")
    else:
        pq.write_table(pa.table({"query": ["a"], "answer": ["b"]}), path)
    with pytest.raises(DataError, match="has no column `prompt` or `question`; its columns are query, answer"):
        rows(path)


def test_a_csv_header_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="names a column twice in its first line: question, question"):
        rows(csv_file(tmp_path, "question,question\na,b\n"))


def test_files_that_are_not_there_or_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.jsonl does not exist; expected a .jsonl, .csv, .parquet file"):
        rows(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        rows(tmp_path)
    (tmp_path / "q.jsonl.gz").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(DataError, match=r"ends in '.gz', expected .jsonl, .csv, .parquet; unpack or convert"):
        rows(tmp_path / "q.jsonl.gz")
    (tmp_path / "empty.csv").touch()
    with pytest.raises(DataError, match=r"empty.csv is empty"):
        rows(tmp_path / "empty.csv")


def test_a_gzip_under_a_wrong_name_is_all_bad_rows(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_bytes(gzip.compress(b'{"prompt": "a"}\n' * 50))
    found = rows(tmp_path / "q.jsonl")
    assert found
    assert all(row.problem for row in found)
