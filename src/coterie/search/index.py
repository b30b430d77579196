"""Search index: passages in one SQLite file, ranked by BM25 (FTS5)."""

from __future__ import annotations

import hashlib
import re
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from coterie.errors import DataError

APPLICATION = 0x636F7472
"""`PRAGMA application_id` of an index."""
VERSION = 1
"""`PRAGMA user_version`: changes when an older index cannot be read any more."""
VERIFIED = 1 << 28
"""Bytes up to which every open checks the whole file; a larger one is checked by `coterie index check`."""
LONGEST = 1000
"""Characters of a query that are read."""
WORDS = 32
"""Words of a query that are read."""
TABLES = ("documents", "words_data", "words_idx", "words_docsize", "words_config")
"""What the digest is over: the passages, and FTS5's own tables."""
_STOP = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be by did do does for from had has have how in into is it its of on or that the their this "
        "to was were what when where which who whose why will with",
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A passage that was retrieved."""

    key: str
    """Of its row, or its number in the source."""
    title: str
    text: str
    score: float
    """BM25, larger is better; comparable within one query."""

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
        self._counts: dict[str, int] = {}
        try:
            self._connection = connect(self.path)
            self._check(self.path.stat().st_size <= VERIFIED if verify is None else verify)
            self._size = int(str(self._value("SELECT count(*) FROM documents")))
        except (sqlite3.Error, OSError) as error:
            raise DataError(f"{self.path} is damaged or no search index ({error}); {_AGAIN}") from error

    def __len__(self) -> int:
        """Number of passages."""
        return self._size

    def search(self, query: str, k: int) -> list[Passage]:
        """The best passages, best first: those with all words of the query, then those with some of its rarer words.

        Words alone are read, so that no query is a syntax error; stop words count only where there is nothing else.
        """
        words = query_words(query)
        if not words or k < 1:
            return []
        passages = dict(self._matches(" AND ".join(f'"{word}"' for word in words), k))
        if len(passages) < k and len(words) > 1:
            for number, passage in self._matches(" OR ".join(f'"{word}"' for word in self._rare(words)), k):
                passages.setdefault(number, passage)
        return list(passages.values())[:k]

    def _rare(self, words: Sequence[str]) -> list[str]:
        """Words in at most a tenth of the passages, which decide a ranking; all of them where there is none.

        A word of half the passages has a weight of nearly nothing, and would cost a ranking of them all.
        """
        for word in words:
            if word not in self._counts:
                with self._lock:
                    statement = "SELECT count(*) FROM words WHERE words MATCH ?"
                    self._counts[word] = self._connection.execute(statement, (f'"{word}"',)).fetchone()[0]
        most = len(self) // 10
        return [word for word in words if 0 < self._counts[word] <= most] or list(words)

    def texts(self) -> Iterator[tuple[str, str]]:
        """(title, text) of every passage."""
        with self._lock:
            yield from self._connection.execute("SELECT title, text FROM documents ORDER BY id")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _matches(self, expression: str, k: int) -> list[tuple[int, Passage]]:
        statement = (
            "SELECT d.id, d.key, d.title, d.text, -bm25(words) AS score FROM words JOIN documents AS d ON d.id = "
            "words.rowid WHERE words MATCH ? ORDER BY score DESC, d.id LIMIT ?"
        )
        try:
            with self._lock:
                rows = self._connection.execute(statement, (expression, k)).fetchall()
        except sqlite3.Error as error:
            raise DataError(f"{self.path} cannot be searched ({error}); {_AGAIN}") from error
        return [(row[0], Passage(key=row[1], title=row[2], text=row[3], score=row[4])) for row in rows]

    def _value(self, statement: str) -> object:
        with self._lock:
            return self._connection.execute(statement).fetchone()[0]

    def _check(self, verify: bool) -> None:
        if self._value("PRAGMA application_id") != APPLICATION:
            raise DataError(f"{self.path} is no search index of coterie; {_AGAIN}")
        version = self._value("PRAGMA user_version")
        if version != VERSION:
            raise DataError(f"{self.path} is a search index of version {version}, expected {VERSION}; {_AGAIN}")
        facts = dict(self._connection.execute("SELECT key, value FROM facts"))
        if facts.get("complete") != "1":
            raise DataError(f"the build of {self.path} was interrupted; run the same `coterie index build` again")
        if verify and facts.get("digest") != digest(self._connection):
            raise DataError(f"{self.path} is damaged: its content does not match its digest; {_AGAIN}")


_AGAIN = "delete it and build it again with `coterie index build`"


def query_words(query: str) -> list[str]:
    """Words of a query without stop words, each once.

    >>> query_words("What is the capital of the Azores?"), query_words("what is it")
    (['capital', 'azores'], ['what', 'is', 'it'])
    """
    words = list(dict.fromkeys(re.findall(r"\w+", query[:LONGEST].casefold())))
    return ([word for word in words if word not in _STOP] or words)[:WORDS]


def digest(connection: sqlite3.Connection) -> str:
    """sha256 over every row of the index, in hex."""
    total = hashlib.sha256()
    for table in TABLES:
        for row in connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2"):
            for value in row:
                data = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
                total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()


def recall(searcher: Searcher, questions: Sequence[tuple[str, str]], ks: Sequence[int]) -> dict[int, float]:
    """Share of (question, answer) pairs of which one of the first k passages holds the answer, by k.

    The question itself is the query; an answer is held where its words follow each other in title or text.
    """
    hits = dict.fromkeys(ks, 0)
    for question, gold in questions:
        passages = searcher.search(question, max(ks))
        first = next((rank for rank, passage in enumerate(passages, 1) if holds(passage.contents, gold)), None)
        for k in ks:
            hits[k] += first is not None and first <= k
    return {k: count / len(questions) for k, count in hits.items()} if questions else {}


def holds(text: str, gold: str) -> bool:
    """True if a text holds an answer: its words in this order, without regard to case, accents of punctuation apart.

    >>> holds("The area of Andorra is 468 square kilometres.", "468"), holds("It is 4,680.", "468")
    (True, False)
    """
    words, target = re.findall(r"\w+", text.casefold()), re.findall(r"\w+", gold.casefold())
    return bool(target) and any(words[at : at + len(target)] == target for at in range(len(words) - len(target) + 1))
