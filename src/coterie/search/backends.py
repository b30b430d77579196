"""Backends of a search index: how its passages are ranked, by the name of the setting `backend`."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from importlib import import_module
from typing import Protocol

Row = tuple[int, str, str]
"""(id, title, text) of a passage."""


class Ranking(Protocol):
    """Ranks the passages of an open index."""

    def ranked(self, query: str, k: int) -> list[tuple[int, float]]:
        """(id, score) of the best passages, best first; at most k, fewer where fewer match."""
        ...


class Backend(Protocol):
    """Keeps in the index's file what it needs to rank passages. The builder calls it within its transactions."""

    name: str
    schema: str
    """SQL that makes its tables where they are missing."""
    tables: tuple[str, ...]
    """Tables that the index's digest is over, beside the passages."""

    def add(self, database: sqlite3.Connection, rows: Sequence[Row]) -> None:
        """Passages that were stored."""
        ...

    def remove(self, database: sqlite3.Connection, rows: Sequence[Row]) -> None:
        """Passages that are about to be deleted."""
        ...

    def finish(self, database: sqlite3.Connection) -> None:
        """After the last passage of a build that changed something."""
        ...

    def opened(self, database: sqlite3.Connection) -> Ranking:
        """The ranking of a whole index; the caller holds the lock of the connection in every call.

        Raises:
            DataError: a package or asset is missing, or the index was made with another one.
        """
        ...


BACKENDS = {
    "fts5": "coterie.search.fts5:Fts5",
    "bm25s": "coterie.search.bm25:Bm25s",
    "dense": "coterie.search.dense:Dense",
}
"""Name → place of the class."""


def backend_of(name: str) -> Backend:
    """The backend of a name in `BACKENDS`."""
    module, _, kind = BACKENDS[name].partition(":")
    return getattr(import_module(module), kind)()
