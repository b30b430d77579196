"""Build of a search index: files in, incremental, resumed where it was interrupted."""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from coterie.data.files import read_file, suffix_of
from coterie.errors import DataError
from coterie.search.backends import BACKENDS, Backend, backend_of
from coterie.search.index import APPLICATION, VERSION, connect, digest

BATCH = 2000
"""Passages of a transaction: what an interrupted build does again at most."""
TEXTS = (".txt", ".md")
"""Files of plain text: passages are their paragraphs."""
TEXT_COLUMNS = ("text", "contents", "passage", "content", "sentence")
TITLE_COLUMNS = ("title", "name", "heading")
KEY_COLUMNS = ("id", "key", "doc_id")
"""Columns that are recognised, the first one that there is."""
PARAGRAPH = 1200
"""Characters of a passage of plain text; a longer paragraph is cut between sentences."""

_TABLES = f"""
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sources (path TEXT PRIMARY KEY, sha256 TEXT, settings TEXT, rows INTEGER, whole INTEGER);
CREATE TABLE IF NOT EXISTS documents (id INTEGER PRIMARY KEY, source TEXT, key TEXT, title TEXT, text TEXT);
CREATE INDEX IF NOT EXISTS by_source ON documents (source);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Columns of a corpus; None where they are recognised by name."""

    text: str | None = None
    title: str | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What a build did."""

    added: int
    """Passages written."""
    unchanged: int
    """Files that were in the index as they are."""
    passages: int
    """In the index now."""


def build(
    path: Path,
    sources: Sequence[Path],
    *,
    columns: Columns | None = None,
    backend: str | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> Built:
    """Add files to an index, which is made if need be.

    A file that is in it unchanged is left alone; a changed one replaces its former passages; an interrupted build goes
    on behind the last passages that were stored.

    Args:
        backend: a name of `BACKENDS`; that of the index, or else fts5, when left out.
        progress: told the file and how many of its passages are stored.

    Raises:
        DataError: a file cannot be read or has no text, or the index is none, of another version or another backend.
    """
    settings = repr(columns or Columns())
    for source in sources:
        if not source.is_file():
            raise DataError(f"the corpus {source} does not exist; expected text, JSONL, Parquet or CSV files")
    path.parent.mkdir(parents=True, exist_ok=True)
    added = unchanged = 0
    try:
        with closing(connect(path, writable=True)) as database:
            ranks = _prepare(database, path, backend)
            for source in sources:
                count = _add(database, ranks, source, columns or Columns(), settings, progress)
                added, unchanged = added + (count or 0), unchanged + (count is None)
            total = database.execute("SELECT count(*) FROM documents").fetchone()[0]
            if added or not _complete(database):
                ranks.finish(database)
                _remember(database, "digest", digest(database, ranks.name))
                _remember(database, "complete", "1")
    except (sqlite3.Error, OSError) as error:
        raise DataError(f"the search index {path} cannot be written ({error}); delete it and build it again") from error
    return Built(added=added, unchanged=unchanged, passages=total)


def _prepare(database: sqlite3.Connection, path: Path, backend: str | None) -> Backend:
    """The backend of a new or former index, with its tables made."""
    if backend is not None and backend not in BACKENDS:
        raise DataError(f"there is no backend {backend!r} of a search index; expected one of {', '.join(BACKENDS)}")
    application = database.execute("PRAGMA application_id").fetchone()[0]
    tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if tables and (application != APPLICATION or version != VERSION):
        raise DataError(f"{path} is no search index of version {VERSION}; name another file, or delete this one")
    database.executescript(_TABLES)
    row = database.execute("SELECT value FROM facts WHERE key = 'backend'").fetchone()
    there = row[0] if row is not None else "fts5" if tables else None
    if there is not None and backend is not None and there != backend:
        raise DataError(f"{path} is a search index of the backend {there}, not {backend}; name another file")
    ranks = backend_of(there or backend or "fts5")
    database.executescript(ranks.schema)
    _remember(database, "backend", ranks.name)
    return ranks


def _add(
    database: sqlite3.Connection,
    ranks: Backend,
    source: Path,
    columns: Columns,
    settings: str,
    progress: Callable[[str, int], None] | None,
) -> int | None:
    """Passages that were added; None where the file is in the index as it is."""
    name, sha256 = str(source.absolute()), _sha256(source)
    row = database.execute("SELECT sha256, settings, rows, whole FROM sources WHERE path = ?", (name,)).fetchone()
    same = row is not None and (row[0], row[1]) == (sha256, settings)
    if same and row[3]:
        return None
    done = row[2] if same else 0
    if not same:
        _start(database, ranks, name, sha256, settings)
    passages, added = islice(_passages(source, columns), done, None), 0
    while batch := list(islice(passages, BATCH)):
        database.execute("BEGIN IMMEDIATE")
        rows = []
        for key, title, text in batch:
            cursor = database.execute(
                "INSERT INTO documents (source, key, title, text) VALUES (?, ?, ?, ?)", (name, key, title, text)
            )
            rows.append((int(cursor.lastrowid or 0), title, text))
        ranks.add(database, rows)
        done, added = done + len(batch), added + len(batch)
        database.execute("UPDATE sources SET rows = ? WHERE path = ?", (done, name))
        database.execute("COMMIT")
        if progress is not None:
            progress(source.name, done)
    if not done:
        raise DataError(f"the corpus {source} has no passages; expected text, or rows with {', '.join(TEXT_COLUMNS)}")
    database.execute("UPDATE sources SET whole = 1 WHERE path = ?", (name,))
    return added


def _start(database: sqlite3.Connection, ranks: Backend, name: str, sha256: str, settings: str) -> None:
    """Note a new or changed file, and drop what the former one left."""
    database.execute("BEGIN IMMEDIATE")
    _remember(database, "complete", "0")
    old = database.execute("SELECT id, title, text FROM documents WHERE source = ?", (name,)).fetchall()
    ranks.remove(database, old)
    database.execute("DELETE FROM documents WHERE source = ?", (name,))
    database.execute("INSERT OR REPLACE INTO sources VALUES (?, ?, ?, 0, 0)", (name, sha256, settings))
    database.execute("COMMIT")


def _complete(database: sqlite3.Connection) -> bool:
    row = database.execute("SELECT value FROM facts WHERE key = 'complete'").fetchone()
    return row is not None and row[0] == "1"


def _remember(database: sqlite3.Connection, key: str, value: str) -> None:
    database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (key, value))


def _sha256(source: Path) -> str:
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _passages(source: Path, columns: Columns) -> Iterator[tuple[str, str, str]]:
    """(key, title, text) of each passage of a file."""
    if suffix_of(source) in TEXTS:
        yield from _paragraphs(source)
        return
    for row in read_file(source):
        if row.data is None:
            raise DataError(f"row {row.number} of the corpus {source} {row.problem}; correct it, or leave it out")
        text = _column(row.data, columns.text, TEXT_COLUMNS, source, row.number, needed=True)
        title = _column(row.data, columns.title, TITLE_COLUMNS, source, row.number)
        key = _column(row.data, columns.key, KEY_COLUMNS, source, row.number) or str(row.number)
        if not title and text.startswith('"') and "\n" in text:  # Search-R1's `contents`
            title, _, text = text.partition("\n")
            title = title.strip().strip('"')
        yield key, title, text


def _column(
    data: Mapping[str, Any], name: str | None, names: Sequence[str], source: Path, number: int, *, needed: bool = False
) -> str:
    column = name or next((known_name for known_name in names if known_name in data), None)
    value = data.get(column) if column is not None else None
    if value is None and (needed or name is not None):
        expected = name or ", ".join(names)
        raise DataError(
            f"row {number} of the corpus {source} has no text in {expected}; its columns are {', '.join(data)}: name "
            "the right one"
        )
    text = "" if value is None else str(value)
    text = text.encode("utf-8", "replace").decode().replace("\x00", " ").strip()
    if needed and not text:
        raise DataError(f"row {number} of the corpus {source} has an empty {column}; leave it out")
    return text


def _paragraphs(source: Path) -> Iterator[tuple[str, str, str]]:
    try:
        text = source.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"the corpus {source} is not UTF-8 ({error.reason}); save it as UTF-8") from error
    number, title = 0, source.stem
    for block in re.split(r"\n\s*\n", text):
        paragraph = " ".join(block.split())
        if paragraph.startswith("#") and "\n" not in block.strip():
            title = paragraph.lstrip("# ")
            continue
        for piece in _pieces(paragraph):
            number += 1
            yield str(number), title, piece.replace("\x00", " ")


def _pieces(paragraph: str) -> Iterator[str]:
    piece = ""
    for sentence in re.split(r"(?<=[.!?])\s+", paragraph):
        if piece and len(piece) + len(sentence) + 1 > PARAGRAPH:
            yield piece
            piece = ""
        piece = f"{piece} {sentence}".strip()
    if piece:
        yield piece
