"""The tables of `metrics.sqlite`, and the hashes by which a flipped bit in them is noticed."""

from __future__ import annotations

import hashlib
import sqlite3

VERSION = 2
_SCHEMA = """
CREATE TABLE metrics (step INTEGER NOT NULL, name TEXT NOT NULL, value REAL NOT NULL,
                      PRIMARY KEY (step, name)) WITHOUT ROWID;
CREATE INDEX metrics_by_name ON metrics (name, step);
CREATE TABLE events (id INTEGER PRIMARY KEY, step INTEGER, kind TEXT NOT NULL, message TEXT NOT NULL,
                     data TEXT NOT NULL, time REAL NOT NULL);
CREATE TABLE evals (step INTEGER NOT NULL, task TEXT NOT NULL, prompts INTEGER NOT NULL,
                    samples INTEGER NOT NULL, k INTEGER NOT NULL,
                    pass_at_1 REAL NOT NULL, pass_at_1_low REAL NOT NULL, pass_at_1_high REAL NOT NULL,
                    pass_at_k REAL NOT NULL, pass_at_k_low REAL NOT NULL,
                    pass_at_k_high REAL NOT NULL, mean_length REAL NOT NULL, truncated REAL NOT NULL,
                    PRIMARY KEY (step, task));
CREATE TABLE eval_items (step INTEGER NOT NULL, task TEXT NOT NULL, prompt_id TEXT NOT NULL,
                         correct INTEGER NOT NULL, samples INTEGER NOT NULL,
                         PRIMARY KEY (step, task, prompt_id)) WITHOUT ROWID;
"""
# SQLite notices no flipped bit in a value, so whatever is recorded together carries the hash of its rows.
_DIGESTS = """
CREATE TABLE digests (kind TEXT NOT NULL, key INTEGER NOT NULL, sha256 TEXT NOT NULL,
                      PRIMARY KEY (kind, key)) WITHOUT ROWID;
"""
_HASHED = {
    "metrics of step": (
        "SELECT DISTINCT step FROM metrics",
        ("SELECT name, value FROM metrics WHERE step = ? ORDER BY name",),
    ),
    "evaluation of step": (
        "SELECT DISTINCT step FROM evals UNION SELECT DISTINCT step FROM eval_items",
        (
            "SELECT * FROM evals WHERE step = ? ORDER BY task",
            "SELECT * FROM eval_items WHERE step = ? ORDER BY task, prompt_id",
        ),
    ),
    "event": (
        "SELECT id FROM events",
        ("SELECT step, kind, message, data, time FROM events WHERE id = ?",),
    ),
}
"""Kind of record → which keys there are, and what is hashed of one."""


def make_tables(db: sqlite3.Connection, *, with_data: bool) -> None:
    """Make what is missing inside the caller's transaction: all, or (`with_data`: a file of the first format) the
    hashes of what is there."""
    for statement in f"{'' if with_data else _SCHEMA}{_DIGESTS}".split(";"):
        db.execute(statement)
    for kind, (keys, _) in _HASHED.items():
        for (key,) in db.execute(keys).fetchall():
            seal(db, kind, key)


def seal(db: sqlite3.Connection, kind: str, key: int) -> None:
    """Record the hash of a record (a kind of `_HASHED`) as it is now."""
    db.execute("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", (kind, key, _digest(db, kind, key)))


def damaged(db: sqlite3.Connection) -> list[str]:
    """Records that do not match their hash, have none, or are gone, e.g. `metrics of step 12`."""
    known = {(kind, key): digest for kind, key, digest in db.execute("SELECT * FROM digests")}
    found = set(known)
    for kind, (keys, _) in _HASHED.items():
        found |= {(kind, key) for (key,) in db.execute(keys)}
    bad = [place for place in found if place[0] not in _HASHED or known.get(place) != _digest(db, *place)]
    return [f"{kind} {key}" for kind, key in sorted(bad, key=str)]


def _digest(db: sqlite3.Connection, kind: str, key: int) -> str:
    rows = [db.execute(query, (key,)).fetchall() for query in _HASHED[kind][1]]
    return hashlib.sha256(repr(rows).encode("utf-8", "backslashreplace")).hexdigest()
