"""Raw rows of prompt sources: the hub and Python functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from coterie.config.user_functions import user_function
from coterie.errors import ConfigError, DataError, install_command

_MOST = 5_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A raw row of a source."""

    number: int
    """Line of a file of JSON lines; else the count of records from 1."""
    data: Mapping[str, Any] | None
    """Columns by name; None when the row could not be read."""
    problem: str | None = None
    """Reason for which it could not be read."""


def read_hub(name: str, config: str | None, split: str, revision: str | None) -> Iterator[Row]:
    """Rows of a Hugging Face dataset."""
    try:
        import datasets  # ty: ignore[import-not-found]
    except ImportError as error:
        raise DataError(
            f"the dataset {name!r} needs the package datasets: {install_command('hub')}, or save the rows as a .jsonl "
            "file and use a `file` source"
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
    """Rows that the user's `module:function` returns or yields; the working folder is importable."""
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
