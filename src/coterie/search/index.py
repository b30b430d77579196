"""Search index: passages in one SQLite file, ranked by the backend that it was built with."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from coterie.errors import DataError
from coterie.search.backends import BACKENDS, backend_of

APPLICATION = 0x636F7472
"""`PRAGMA application_id` of an index."""
VERSION = 1
"""`PRAGMA user_version`: changes when an older index cannot be read any more."""
VERIFIED = 1 << 28
"""Bytes up to which every open checks the whole file; a larger one is checked by `coterie index check`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A passage that was retrieved."""

    key: str
    """Of its row, or its number in the source."""
    title: str
    text: str
    score: float
    """BM25 or cosine, larger is better; comparable within one query."""

    @property
    def contents(self) -> str:
        """Title and text in the form of Search-R1's corpora."""
        return f'"{self.title}"\n{self.text}' if self.title else self.text


class Searcher(Protocol):
    """Retrieves passages."""

    def search(self, query: str, k: int) -> list[Passage]: ...


def connect(path: Path, *, writable: bool = False) -> sqlite3.Connection:
    """Connection to an index file, which SQLite opens lazily.

    Raises:
        DataError: this SQLite has no FTS5.
    """
    mode = "rwc" if writable else "ro"
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(uri, uri=True, check_same_thread=False, timeout=30, isolation_level=None)
    if not connection.execute("SELECT sqlite_compileoption_used('ENABLE_FTS5')").fetchone()[0]:
        connection.close()
        raise DataError("this Python's SQLite has no FTS5, which the search index needs; use a Python that has it")
    return connection


class Index:
    """An open index. Safe to use from several threads.

    Args:
        verify: check the whole content against its digest; by default of files up to 256 MiB.

    Raises:
        DataError: there is no such file, it is damaged, of another version, or its build was interrupted.
    """

    def __init__(self, path: str | Path, *, verify: bool | None = None) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise DataError(
                f"there is no search index {self.path}; make it with `coterie index build {self.path} FILE`"
            )
        self._lock = threading.Lock()
        try:
            self._connection = connect(self.path)
            self.backend = self._check(self.path.stat().st_size <= VERIFIED if verify is None else verify)
            self._size = int(str(self._value("SELECT count(*) FROM documents")))
            self._ranking = backend_of(self.backend).opened(self._connection)
        except (sqlite3.Error, OSError, ValueError, KeyError) as error:
            raise DataError(f"{self.path} is damaged or no search index ({error}); {_AGAIN}") from error

    def __len__(self) -> int:
        """Number of passages."""
        return self._size

    def search(self, query: str, k: int) -> list[Passage]:
        """The best passages for a query, best first, at most k."""
        if k < 1:
            return []
        try:
            with self._lock:
                return [self._passage(number, score) for number, score in self._ranking.ranked(query, k)]
        except sqlite3.Error as error:
            raise DataError(f"{self.path} cannot be searched ({error}); {_AGAIN}") from error

    def texts(self) -> Iterator[tuple[str, str]]:
        """(title, text) of every passage."""
        with self._lock:
            yield from self._connection.execute("SELECT title, text FROM documents ORDER BY id")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _passage(self, number: int, score: float) -> Passage:
        statement = "SELECT key, title, text FROM documents WHERE id = ?"
        key, title, text = self._connection.execute(statement, (number,)).fetchone()
        return Passage(key=key, title=title, text=text, score=score)

    def _value(self, statement: str) -> object:
        with self._lock:
            return self._connection.execute(statement).fetchone()[0]

    def _check(self, verify: bool) -> str:
        """The backend of a whole index."""
        if self._value("PRAGMA application_id") != APPLICATION:
            raise DataError(f"{self.path} is no search index of coterie; {_AGAIN}")
        version = self._value("PRAGMA user_version")
        if version != VERSION:
            raise DataError(f"{self.path} is a search index of version {version}, expected {VERSION}; {_AGAIN}")
        facts = dict(self._connection.execute("SELECT key, value FROM facts"))
        if facts.get("complete") != "1":
            raise DataError(f"the build of {self.path} was interrupted; run the same `coterie index build` again")
        backend = facts.get("backend", "fts5")
        if backend not in BACKENDS:
            raise DataError(f"{self.path} has the backend {backend!r}, expected one of {', '.join(BACKENDS)}; {_AGAIN}")
        if verify and facts.get("digest") != digest(self._connection, backend):
            raise DataError(f"{self.path} is damaged: its content does not match its digest; {_AGAIN}")
        return backend


_AGAIN = "delete it and build it again with `coterie index build`"


def digest(connection: sqlite3.Connection, backend: str) -> str:
    """sha256 over every row of the index, in hex."""
    total = hashlib.sha256()
    for table in ("documents", *backend_of(backend).tables):
        for row in connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2"):
            for value in row:
                data = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
                total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()
