"""The tables of `metrics.sqlite`, and the hashes by which a flipped bit in them is noticed."""

from __future__ import annotations

import hashlib
import sqlite3

VERSION = 3
"""2 added the hashes, 3 the held-out reward, without which pass@1 may be absent."""
_EVALS = """
CREATE TABLE evals (step INTEGER NOT NULL, task TEXT NOT NULL, prompts INTEGER NOT NULL,
                    samples INTEGER NOT NULL, k INTEGER NOT NULL,
                    pass_at_1 REAL, pass_at_1_low REAL, pass_at_1_high REAL,
                    pass_at_k REAL, pass_at_k_low REAL, pass_at_k_high REAL,
                    mean_length REAL NOT NULL, truncated REAL NOT NULL,
                    reward REAL, reward_low REAL, reward_high REAL, reward_parts TEXT,
                    PRIMARY KEY (step, task));
"""
_SCHEMA = """
CREATE TABLE metrics (step INTEGER NOT NULL, name TEXT NOT NULL, value REAL NOT NULL,
                      PRIMARY KEY (step, name)) WITHOUT ROWID;
CREATE INDEX metrics_by_name ON metrics (name, step);
CREATE TABLE events (id INTEGER PRIMARY KEY, step INTEGER, kind TEXT NOT NULL, message TEXT NOT NULL,
                     data TEXT NOT NULL, time REAL NOT NULL);
CREATE TABLE eval_items (step INTEGER NOT NULL, task TEXT NOT NULL, prompt_id TEXT NOT NULL,
                         correct INTEGER NOT NULL, samples INTEGER NOT NULL, reward REAL,
                         PRIMARY KEY (step, task, prompt_id)) WITHOUT ROWID;
"""
# What the first two formats lack. Their columns keep their order, and with it their hashes stay valid.
_REWARDS = f"""
ALTER TABLE evals RENAME TO evals_before;
{_EVALS};
INSERT INTO evals SELECT *, NULL, NULL, NULL, NULL FROM evals_before ORDER BY rowid;
DROP TABLE evals_before;
ALTER TABLE eval_items ADD COLUMN reward REAL;
"""
# SQLite notices no flipped bit in a value, so whatever is recorded together carries the hash of its rows.
_DIGESTS = """
CREATE TABLE digests (kind TEXT NOT NULL, key INTEGER NOT NULL, sha256 TEXT NOT NULL,
                      PRIMARY KEY (kind, key)) WITHOUT ROWID;
"""
REWARD_OF_STEP = "held-out reward of step"
_HASHED = {
    "metrics of step": (
        "SELECT DISTINCT step FROM metrics",
        ("SELECT name, value FROM metrics WHERE step = ? ORDER BY name",),
    ),
    "evaluation of step": (
        "SELECT DISTINCT step FROM evals UNION SELECT DISTINCT step FROM eval_items",
        (
            "SELECT step, task, prompts, samples, k, pass_at_1, pass_at_1_low, pass_at_1_high, pass_at_k, "
            "pass_at_k_low, pass_at_k_high, mean_length, truncated FROM evals WHERE step = ? ORDER BY task",
            "SELECT step, task, prompt_id, correct, samples FROM eval_items WHERE step = ? ORDER BY task, prompt_id",
        ),
    ),
    REWARD_OF_STEP: (
        "SELECT DISTINCT step FROM evals WHERE reward IS NOT NULL "
        "UNION SELECT DISTINCT step FROM eval_items WHERE reward IS NOT NULL",
        (
            "SELECT task, reward, reward_low, reward_high, reward_parts FROM evals WHERE step = ? ORDER BY task",
            "SELECT task, prompt_id, reward FROM eval_items WHERE step = ? ORDER BY task, prompt_id",
        ),
    ),
    "event": (
        "SELECT id FROM events",
        ("SELECT step, kind, message, data, time FROM events WHERE id = ?",),
    ),
}
"""Kind of record → which keys there are, and what is hashed of one."""


def make_tables(db: sqlite3.Connection, version: int) -> None:
    """Make what a file of this format lacks, inside the caller's transaction.

    Format 0 is a new file, which lacks everything; 1 lacks the hashes, 1 and 2 the held-out rewards.
    """
    steps = (_SCHEMA + _EVALS if version == 0 else _REWARDS) + (_DIGESTS if version < 2 else "")
    for statement in steps.split(";"):
        db.execute(statement)
    if version >= 2:
        return
    for kind, (keys, _) in _HASHED.items():
        for (key,) in db.execute(keys).fetchall():
            seal(db, kind, key)


def seal(db: sqlite3.Connection, kind: str, key: int) -> None:
    """Record the hash of a record (a kind of `_HASHED`) as it is now."""
    db.execute("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", (kind, key, _digest(db, kind, key)))


def damaged(db: sqlite3.Connection, version: int = VERSION) -> list[str]:
    """Records that do not match their hash, have none, or are gone, e.g. `metrics of step 12`; none in format 1, which
    had no hashes."""
    if version < 2:
        return []
    known = {(kind, key): digest for kind, key, digest in db.execute("SELECT * FROM digests")}
    found = set(known)
    for kind, (keys, _) in _HASHED.items():
        if kind != REWARD_OF_STEP or version >= 3:
            found |= {(kind, key) for (key,) in db.execute(keys)}
    bad = [place for place in found if place[0] not in _HASHED or known.get(place) != _digest(db, *place)]
    return [f"{kind} {key}" for kind, key in sorted(bad, key=str)]


def _digest(db: sqlite3.Connection, kind: str, key: int) -> str:
    rows = [db.execute(query, (key,)).fetchall() for query in _HASHED[kind][1]]
    return hashlib.sha256(repr(rows).encode("utf-8", "backslashreplace")).hexdigest()
