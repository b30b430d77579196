"""SQLite's full-text search (FTS5): BM25 over stemmed words, with nothing to install."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from coterie.search.backends import Row
from coterie.search.words import query_words


class Fts5:
    """The default backend."""

    name = "fts5"
    schema = """
CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5
  (title, text, content='documents', content_rowid='id', tokenize='porter unicode61 remove_diacritics 2');
"""
    tables = ("words_data", "words_idx", "words_docsize", "words_config")

    def add(self, database: sqlite3.Connection, rows: Sequence[Row]) -> None:
        database.executemany("INSERT INTO words (rowid, title, text) VALUES (?, ?, ?)", rows)

    def remove(self, database: sqlite3.Connection, rows: Sequence[Row]) -> None:
        database.executemany("INSERT INTO words (words, rowid, title, text) VALUES ('delete', ?, ?, ?)", rows)

    def finish(self, database: sqlite3.Connection) -> None:
        database.execute("INSERT INTO words (words) VALUES ('optimize')")

    def opened(self, database: sqlite3.Connection) -> Fts5Ranking:
        return Fts5Ranking(database)


class Fts5Ranking:
    """Passages with all words of the query first, then those with some of its rarer words.

    Words alone are read, so that no query is a syntax error; stop words count only where there is nothing else.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._counts: dict[str, int] = {}
        self._size = int(database.execute("SELECT count(*) FROM documents").fetchone()[0])

    def ranked(self, query: str, k: int) -> list[tuple[int, float]]:
        words = query_words(query)
        if not words:
            return []
        scores = dict(self._matches(" AND ".join(f'"{word}"' for word in words), k))
        if len(scores) < k and len(words) > 1:
            for number, score in self._matches(" OR ".join(f'"{word}"' for word in self._rare(words)), k):
                scores.setdefault(number, score)
        return list(scores.items())[:k]

    def _rare(self, words: Sequence[str]) -> list[str]:
        """Words in at most a tenth of the passages, which decide a ranking; all of them where there is none.

        A word of half the passages has a weight of nearly nothing, and would cost a ranking of them all.
        """
        for word in words:
            if word not in self._counts:
                statement = "SELECT count(*) FROM words WHERE words MATCH ?"
                self._counts[word] = self._database.execute(statement, (f'"{word}"',)).fetchone()[0]
        most = self._size // 10
        return [word for word in words if 0 < self._counts[word] <= most] or list(words)

    def _matches(self, expression: str, k: int) -> list[tuple[int, float]]:
        statement = (
            "SELECT rowid, -bm25(words) AS score FROM words WHERE words MATCH ? ORDER BY score DESC, rowid LIMIT ?"
        )
        return self._database.execute(statement, (expression, k)).fetchall()
