"""Rows of files: JSON (lines or one array), CSV, Parquet and Arrow; text may be compressed."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from coterie.data.rows import Row
from coterie.errors import DataError

_LONGEST_CELL = 1 << 26
_DELIMITERS = (",", "\t", ";", "|")
_BATCH = 1024
_ROWS_KEYS = ("data", "rows", "examples", "instances", "items", "train")
"""Keys under which a JSON object holds its rows."""
_GAP = re.compile(r"[\s,]*")
COMPRESSED: dict[str, tuple[bytes, Callable[[Path], Any]]] = {
    ".gz": (b"\x1f\x8b", gzip.open),
    ".bz2": (b"BZh", bz2.open),
    ".xz": (b"\xfd7zXZ\x00", lzma.open),
}
"""Suffixes, the first bytes by which a file is recognised whatever its name, and what opens it."""


def suffix_of(path: Path) -> str:
    """`.jsonl` of `rows.jsonl` and of `rows.JSONL.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def stem_of(path: Path) -> str:
    """The name without the suffixes of its format and compression."""
    name = path.name
    for suffixes in (COMPRESSED, READERS):
        if Path(name).suffix.lower() in suffixes:
            name = Path(name).stem
    return name


def read_file(path: Path) -> Iterator[Row]:
    """Rows of a file, in its order."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"the prompt file {path} {what}; expected a {', '.join(READERS)} file")
    reader = READERS.get(suffix_of(path))
    if reader is None:
        raise DataError(
            f"the prompt file {path} ends in {path.suffix or 'nothing'!r}, expected {', '.join(READERS)} (text also "
            f"with {', '.join(COMPRESSED)}); convert it first, e.g. to one JSON object a line in a .jsonl file"
        )
    try:
        if path.stat().st_size == 0:
            raise DataError(f"the prompt file {path} is empty; expected rows with `prompt` or `question`")
        yield from reader(path)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise DataError(f"the prompt file {path} cannot be read: {error}") from error


def _open(path: Path) -> BinaryIO:
    """The text of a file as bytes, decompressed."""
    with path.open("rb") as raw:
        head = raw.read(8)
    opener = next((opener for magic, opener in COMPRESSED.values() if head.startswith(magic)), None)
    handle = cast("BinaryIO", path.open("rb") if opener is None else opener(path))
    try:
        start = handle.read(64)
        handle.seek(0)
        if start.startswith((b"\xff\xfe", b"\xfe\xff")) or start.count(0) * 3 > len(start):
            raise DataError(f"{path} is UTF-16 text; save it as UTF-8")
    except BaseException:
        handle.close()
        raise
    return handle


# JSON


def _read_json(path: Path) -> Iterator[Row]:
    """JSON lines; or one array, or objects over several lines, which are then read as a whole."""
    with _open(path) as handle:
        first, whole = _shape(handle, path)
        if not first:
            return
        handle.seek(0)
        rows = _whole(handle.read().decode("utf-8-sig", errors="surrogateescape"), path) if whole else None
        handle.seek(0)
        yield from _lines(handle) if rows is None else rows


def is_array(path: Path) -> bool:
    """True if a JSON file is an array instead of one object a line."""
    with _open(path) as handle:
        first, whole = _shape(handle, path)
        return whole and first.startswith(b"[")


def _shape(handle: BinaryIO, path: Path) -> tuple[bytes, bool]:
    """(first line that is not blank, whether the file is to be read as a whole)."""
    first, number = b"", 0
    while not first:
        line = handle.readline()
        if not line:
            return b"", False
        number += 1
        first = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip()
    if not _complete(first):
        return first, True
    lines = suffix_of(path) != ".json" and first.startswith(b"{")
    return first, not lines and _last(handle)


def _complete(line: bytes) -> bool:
    """True if a line is JSON by itself."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _last(handle: BinaryIO) -> bool:
    """True if nothing but white space follows."""
    return all(not line.strip() for line in handle)


def _whole(text: str, path: Path) -> Iterator[Row] | None:
    """Rows of a text that is one JSON value, or objects one after the other; None where it is neither."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise DataError(f"{path} is nested too deeply") from error
    except ValueError as error:
        objects = _objects(text)
        if objects is None and text.lstrip().startswith("["):
            raise DataError(
                f"{path} begins as one JSON array and is not valid JSON: {_explained(error, lines=True)}; mend it, or "
                "write one JSON object a line"
            ) from error
        return None if objects is None else _elements(objects)
    if isinstance(value, dict):
        value = _table(value)
    return _elements(value) if isinstance(value, list) else None


def _objects(text: str) -> list[Any] | None:
    """Objects that are each written over several lines; None where the text is not that."""
    decoder, objects, place = json.JSONDecoder(), [], 0
    while (gap := _GAP.match(text, place)) is not None and gap.end() < len(text):
        try:
            value, place = decoder.raw_decode(text, gap.end())
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, dict):
            return None
        objects.append(value)
    return objects


def _table(value: dict[str, Any]) -> list[Any]:
    """The rows of an object: under a key such as `data`, column by column as pandas writes it, or itself as one."""
    for key in _ROWS_KEYS:
        rows = value.get(key)
        if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
            return rows
    columns = list(value.values())
    if _equally_long(columns) and not any(_is_message(column[0]) for column in columns):
        return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]
    if columns and all(isinstance(column, dict) and column.keys() == columns[0].keys() for column in columns):
        indices = [key for key in columns[0] if key.isdecimal()]
        if indices and len(indices) == len(columns[0]):
            return [{name: value[name][key] for name in value} for key in indices]
    return [value]


def _equally_long(columns: Sequence[Any]) -> bool:
    lengths = {len(column) if isinstance(column, list) else 0 for column in columns}
    return len(lengths) == 1 and 0 not in lengths


def _is_message(item: Any) -> bool:
    """True for a message, whose list is a conversation and not a column."""
    return isinstance(item, dict) and bool({"role", "from"} & item.keys())


def _elements(values: Iterable[Any]) -> Iterator[Row]:
    for number, value in enumerate(values, start=1):
        yield _row(number, value, "element")


def _row(number: int, value: Any, what: str) -> Row:
    if isinstance(value, dict):
        return Row(number=number, data=value)
    kind = {"list": "array", "str": "string", "NoneType": "null", "dict": "object"}.get(type(value).__name__, "number")
    remedy = "each line must be one object with columns" if what == "line" else "expected an object with columns"
    return Row(number=number, data=None, problem=f"is a JSON {kind}; {remedy}")


def _lines(handle: Iterable[bytes]) -> Iterator[Row]:
    for number, line in enumerate(handle, start=1):
        raw = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip()
        if not raw:
            continue
        try:
            data = json.loads(raw.decode("utf-8"), parse_constant=_no_constant, parse_float=_finite)
        except UnicodeDecodeError as error:
            problem = f"is not UTF-8 (byte {error.start} of the line); save the file as UTF-8 (it may be latin-1)"
            yield Row(number=number, data=None, problem=problem)
        except RecursionError:
            yield Row(number=number, data=None, problem="is nested too deeply")
        except ValueError as error:
            yield Row(number=number, data=None, problem=f"is not valid JSON: {_explained(error)}")
        else:
            yield _row(number, data, "line")


def _explained(error: ValueError, *, lines: bool = False) -> str:
    """Description of a JSON error with its character in the line (or line and column of the file)."""
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    message = error.msg[:1].lower() + error.msg[1:]
    message = message.removesuffix(" starting at")
    where = f"line {error.lineno}, column {error.colno}" if lines else f"character {error.pos + 1} of the line"
    return f"{message} ({where})"


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large for a number")
    return value


# CSV


def _read_csv(path: Path) -> Iterator[Row]:
    previous = csv.field_size_limit(_LONGEST_CELL)
    try:
        # Bytes that are not UTF-8 become lone surrogates here, which condemn their own row instead of the file.
        with io.TextIOWrapper(_open(path), encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
            reader, header = _table_reader(handle, path)
            if len(set(header)) != len(header):
                raise DataError(f"{path} names a column twice in its first line: {', '.join(header)}")
            yield from _records(reader, header)
    finally:
        csv.field_size_limit(previous)


def _table_reader(handle: io.TextIOWrapper, path: Path) -> tuple[Any, list[str]]:
    """A reader behind the header, with the delimiter that the header has; spaces around names are not part of them."""
    line = handle.readline()
    delimiters = ("\t", *_DELIMITERS) if suffix_of(path) == ".tsv" else _DELIMITERS
    delimiter = max(delimiters, key=line.count)  # of equals the first
    handle.seek(0)
    spaced = any(cell.startswith(" ") for cell in line.split(delimiter)[1:])
    reader = csv.reader(handle, strict=True, delimiter=delimiter, skipinitialspace=spaced)
    try:
        return reader, [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise DataError(f"the first line of {path} is not valid CSV: {error}") from error


def _records(reader: Any, header: Sequence[str]) -> Iterator[Row]:
    number = 0
    while True:
        number += 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(number=number, data=None, problem=f"is not valid CSV: {error} (line {reader.line_num})")
            continue
        if not cells:
            continue
        if len(cells) != len(header):
            problem = f"has {len(cells)} cells, expected {len(header)} (line {reader.line_num})"
            yield Row(number=number, data=None, problem=problem)
            continue
        yield Row(number=number, data={key: cell or None for key, cell in zip(header, cells, strict=True)})


# Parquet and Arrow


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            yield from _of_batches(file.iter_batches(batch_size=_BATCH))
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}; write it again") from error


def _read_arrow(path: Path) -> Iterator[Row]:
    """The stream that `datasets` writes, or the file format with its index (Feather)."""
    import pyarrow
    import pyarrow.ipc

    try:
        with pyarrow.memory_map(str(path)) as source:
            if source.read(6) == b"ARROW1":
                file = pyarrow.ipc.open_file(source)
                batches: Iterator[Any] = (file.get_batch(index) for index in range(file.num_record_batches))
            else:
                source.seek(0)
                batches = iter(pyarrow.ipc.open_stream(source))
            yield from _of_batches(batches)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a readable Arrow file: {error}; write it again") from error


def _of_batches(batches: Iterable[Any]) -> Iterator[Row]:
    number = 0
    for batch in chain.from_iterable(_pieces(batch) for batch in batches):
        try:
            rows: list[Any] = batch.to_pylist()
        except UnicodeDecodeError:
            rows = [_single(batch.slice(index, 1)) for index in range(batch.num_rows)]
        for data in rows:
            number += 1
            problem = "is not UTF-8" if data is None else None
            yield Row(number=number, data=data, problem=problem)


def _pieces(batch: Any) -> Iterator[Any]:
    """A batch in parts of a bounded size: `datasets` writes one of as many rows as it likes."""
    return (batch.slice(start, _BATCH) for start in range(0, batch.num_rows, _BATCH))


def _single(batch: Any) -> dict[str, Any] | None:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError:
        return None


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".tsv": _read_csv,
    ".arrow": _read_arrow,
    ".ndjson": _read_json,
    ".feather": _read_arrow,
}
"""Reader of the files of each suffix."""
