"""Rows of a prompt source, as they are: one per line, record or element, with its number and what is wrong with it."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from coterie.config.functions import user_function
from coterie.errors import ConfigError, DataError

_MOST = 5_000_000
_LONGEST_CELL = 1 << 26


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row before it is judged."""

    number: int
    """Line of a .jsonl file; else the count of records from 1."""
    data: Mapping[str, Any] | None
    """Columns by name; None when the row could not be read."""
    problem: str | None = None
    """Why it could not be read."""


def read_file(path: Path) -> Iterator[Row]:
    """Rows of a .jsonl, .csv or .parquet file.

    Raises:
        DataError: no such file, another suffix, or a file that is damaged as a whole.
    """
    readers: dict[str, Callable[[Path], Iterator[Row]]] = {
        ".jsonl": _read_jsonl,
        ".csv": _read_csv,
        ".parquet": _read_parquet,
    }
    reader = readers.get(path.suffix.lower())
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"the prompt file {path} {what}; expected a {', '.join(readers)} file")
    if reader is None:
        raise DataError(
            f"the prompt file {path} ends in {path.suffix or 'nothing'!r}, expected {', '.join(readers)}; "
            "unpack or convert it first, e.g. one JSON object a line into a .jsonl file"
        )
    try:
        if path.stat().st_size == 0:
            raise DataError(f"the prompt file {path} is empty; expected rows with `prompt` or `question`")
        yield from reader(path)
    except OSError as error:
        raise DataError(f"the prompt file {path} cannot be read: {error}") from error


def read_hub(name: str, config: str | None, split: str, revision: str | None) -> Iterator[Row]:
    """Rows of a Hugging Face dataset.

    Raises:
        DataError: the `hub` extra is missing, or the dataset cannot be had.
    """
    try:
        import datasets  # ty: ignore[import-not-found]
    except ImportError as error:
        raise DataError(
            f"the dataset {name!r} needs the package datasets: install coterie with its `hub` extra, or save the rows "
            "as a .jsonl file and use a `file` source"
        ) from error
    try:
        rows = datasets.load_dataset(name, config, split=split, revision=revision)
    except Exception as error:  # network, cache, parsing, a missing split: datasets raises many kinds
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DataError(
            f"the dataset {name!r} (config {config!r}, split {split!r}) cannot be loaded: {reason}; check the names "
            "and the network, or save the rows as a .jsonl file and use a `file` source"
        ) from error
    yield from _from_mappings(rows, f"the dataset {name!r}")


def read_python(target: str, params: Mapping[str, Any]) -> Iterator[Row]:
    """Rows that the user's `module:function` returns or yields; the working folder is importable.

    Raises:
        DataError: it cannot be imported, or raises.
    """
    function = _load(target)
    try:
        rows = function(**params)
    except Exception as error:  # the user's code
        raise DataError(
            f"{target} raised {type(error).__name__}: {error}; it was called with {dict(params)}"
        ) from error
    if not isinstance(rows, Iterable) or isinstance(rows, str | bytes | Mapping):
        raise DataError(f"{target} returned a {type(rows).__name__}, expected an iterable of row dicts")
    yield from _from_mappings(rows, target)


def _from_mappings(rows: Iterable[Any], source: str) -> Iterator[Row]:
    iterator = iter(rows)
    for number in range(1, _MOST + 1):
        try:
            row = next(iterator)
        except StopIteration:
            return
        except Exception as error:  # the user's generator, or a damaged shard
            raise DataError(f"{source} raised {type(error).__name__} at row {number}: {error}") from error
        if isinstance(row, Mapping):
            yield Row(number=number, data={str(key): value for key, value in row.items()})
        else:
            yield Row(number=number, data=None, problem=f"is a {type(row).__name__}, expected a dict of columns")
    raise DataError(f"{source} gives more than {_MOST:,} rows; set `limit` on this source")


def _load(target: str) -> Callable[..., Any]:
    try:
        return user_function(target)
    except ConfigError as error:
        raise DataError(str(error)) from error


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            raw = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip()
            if not raw:
                continue
            try:
                data = json.loads(raw.decode("utf-8"), parse_constant=_no_constant, parse_float=_finite)
            except UnicodeDecodeError as error:
                yield Row(number=number, data=None, problem=f"is not UTF-8 (byte {error.start} of the line)")
            except RecursionError:
                yield Row(number=number, data=None, problem="is nested too deeply")
            except ValueError as error:
                yield Row(number=number, data=None, problem=f"is no JSON: {error}")
            else:
                if isinstance(data, dict):
                    yield Row(number=number, data=data)
                else:
                    kind = type(data).__name__
                    yield Row(number=number, data=None, problem=f"is a JSON {kind}, expected an object with columns")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too large for a number")
    return value


def _read_csv(path: Path) -> Iterator[Row]:
    previous = csv.field_size_limit(_LONGEST_CELL)
    try:
        # Bytes that are no UTF-8 become lone surrogates here, which condemn their own row instead of the file.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
            reader = csv.reader(handle, strict=True)
            header = next(reader, [])
            _check_columns(header, path)
            if len(set(header)) != len(header):
                raise DataError(f"{path} names a column twice in its first line: {', '.join(header)}")
            number = 0
            while True:
                number += 1
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield Row(number=number, data=None, problem=f"is no CSV: {error} (line {reader.line_num})")
                    continue
                if not cells:
                    continue
                if len(cells) != len(header):
                    problem = f"has {len(cells)} cells, expected {len(header)} (line {reader.line_num})"
                    yield Row(number=number, data=None, problem=problem)
                    continue
                yield Row(number=number, data={key: cell or None for key, cell in zip(header, cells, strict=True)})
    finally:
        csv.field_size_limit(previous)


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
        with file:
            _check_columns(file.schema_arrow.names, path)
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for index in range(batch.num_rows):
                    number += 1
                    try:
                        yield Row(number=number, data=batch.slice(index, 1).to_pylist()[0])
                    except UnicodeDecodeError:
                        yield Row(number=number, data=None, problem="is not UTF-8")
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is no readable Parquet file: {error}; write it again") from error


def _check_columns(columns: list[str], path: Path) -> None:
    if not {"prompt", "question"} & set(columns):
        raise DataError(
            f"{path} has no column `prompt` or `question`; its columns are {', '.join(islice(columns, 20)) or 'none'}"
        )
