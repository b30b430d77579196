"""BM25 by the package bm25s: the score of every word in every passage, worked out at the build. No word is stemmed."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from coterie.errors import DataError, install_command
from coterie.search.backends import Row
from coterie.search.words import LONGEST, WORDS, text_words

ARRAYS = ("data", "indices", "indptr")
"""Of the sparse matrix, words × passages."""


class Bm25s:
    """Stores the matrix of scores, which is made anew when a build has changed something."""

    name = "bm25s"
    schema = "CREATE TABLE IF NOT EXISTS arrays (name TEXT PRIMARY KEY, kind TEXT, content BLOB) WITHOUT ROWID;"
    tables = ("arrays",)

    def add(self, database: sqlite3.Connection, rows: Sequence[Row]) -> None:
        """Nothing but a look at what `finish` will need: a score depends on all passages."""
        _package()

    def remove(self, database: sqlite3.Connection, rows: Sequence[Row]) -> None:
        """Nothing, as in `add`."""

    def finish(self, database: sqlite3.Connection) -> None:
        rows = database.execute("SELECT id, title, text FROM documents ORDER BY id").fetchall()
        ranker = _package().BM25()
        ranker.index([text_words(f"{title} {text}") for _, title, text in rows], show_progress=False)
        arrays = {name: np.asarray(ranker.scores[name]) for name in ARRAYS}
        arrays["ids"] = np.array([row[0] for row in rows], np.int64)
        stored = [(name, array.dtype.str, array.tobytes()) for name, array in arrays.items()]
        stored.append(("words", "json", json.dumps(ranker.vocab_dict, sort_keys=True).encode()))
        database.execute("BEGIN IMMEDIATE")
        database.executemany("INSERT OR REPLACE INTO arrays VALUES (?, ?, ?)", stored)
        database.execute("COMMIT")

    def opened(self, database: sqlite3.Connection) -> Bm25sRanking:
        stored = {name: (kind, content) for name, kind, content in database.execute("SELECT * FROM arrays")}
        arrays = {name: np.frombuffer(stored[name][1], stored[name][0]) for name in (*ARRAYS, "ids")}
        return Bm25sRanking(arrays, json.loads(stored["words"][1]))


class Bm25sRanking:
    """Sums the scores of the query's words.

    Args:
        arrays: the matrix by columns, one a word, and the passages' ids.
        numbers: column of each word.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], numbers: Mapping[str, int]) -> None:
        self._arrays, self._ids, self._numbers = arrays, arrays["ids"], numbers

    def ranked(self, query: str, k: int) -> list[tuple[int, float]]:
        words = dict.fromkeys(text_words(query[:LONGEST]))
        columns = [self._numbers[word] for word in list(words)[:WORDS] if word in self._numbers]
        if not columns:
            return []
        scores = np.zeros(len(self._ids), np.float32)
        for number in columns:
            entries = slice(*self._arrays["indptr"][number : number + 2])
            scores[self._arrays["indices"][entries]] += self._arrays["data"][entries]
        return [(number, score) for number, score in best(self._ids, scores, k) if score > 0]


def best(ids: np.ndarray, scores: np.ndarray, k: int) -> list[tuple[int, float]]:
    """(id, score) of the k largest scores, best first; of equal ones the first passage.

    >>> best(np.array([7, 8, 9]), np.array([0.5, 2.0, 0.5]), 2)
    [(8, 2.0), (7, 0.5)]
    """
    k = min(k, len(ids))
    least = np.partition(scores, len(scores) - k)[len(scores) - k] if k else np.inf
    chosen = np.flatnonzero(scores >= least)
    chosen = chosen[np.lexsort((ids[chosen], -scores[chosen]))][:k]
    return [(int(ids[place]), float(scores[place])) for place in chosen]


def _package() -> Any:
    try:
        return import_module("bm25s")
    except ImportError as error:
        raise DataError(
            f"the backend bm25s needs the package of this name, which is not installed: {install_command('search')}; "
            "or build with `--backend fts5`"
        ) from error
