"""Hashes of the records in a run's `metrics.sqlite`: SQLite notices no flipped bit in a value."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Mapping

VERSION = 3
"""Of the file's format: 2 added the hashes, 3 the held-out reward, without which pass@1 may be absent."""
REWARD_OF_STEP = "held-out reward of step"
HASHED = {
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
"""Kind of record → (query of its keys, queries of the rows that are hashed)."""


def seal(db: sqlite3.Connection, kind: str, key: int) -> None:
    """Record the hash of a record (a kind of `HASHED`) as it is now."""
    db.execute("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", (kind, key, _digest(db, kind, key)))


def damaged(db: sqlite3.Connection, version: int = VERSION) -> list[str]:
    """Records that do not match their hash, have none, or are gone, e.g. `metrics of step 12`; none in format 1, which
    had no hashes."""
    digests, records = recorded(db, version)
    mismatches = [place for place in records if not intact(db, digests, *place)]
    return [f"{kind} {key}" for kind, key in sorted(mismatches, key=str)]


def recorded(db: sqlite3.Connection, version: int = VERSION) -> tuple[dict[tuple[str, int], str], set[tuple[str, int]]]:
    """Stored hashes by record, and all records (kind, key) that should have one; none in format 1."""
    if version < 2:
        return {}, set()
    digests = {(kind, key): digest for kind, key, digest in db.execute("SELECT * FROM digests")}
    records = set(digests)
    for kind, (keys, _) in HASHED.items():
        if kind != REWARD_OF_STEP or version >= 3:
            records |= {(kind, key) for (key,) in db.execute(keys)}
    return digests, records


def intact(db: sqlite3.Connection, digests: Mapping[tuple[str, int], str], kind: str, key: int) -> bool:
    """True where a record is of a known kind and matches its hash."""
    return kind in HASHED and digests.get((kind, key)) == _digest(db, kind, key)


def _digest(db: sqlite3.Connection, kind: str, key: int) -> str:
    rows = [db.execute(query, (key,)).fetchall() for query in HASHED[kind][1]]
    return hashlib.sha256(repr(rows).encode("utf-8", "backslashreplace")).hexdigest()


def damaged_from(db: sqlite3.Connection, version: int, cursor: str, seconds: float) -> tuple[list[str], str | None]:
    """A part of `damaged`, from a record on, as far as the time allows (one record at least); and the cursor of the
    next part, None at the end."""
    deadline = time.monotonic() + seconds
    digests, records = recorded(db, version)
    remaining = sorted((place, record) for record in records if (place := f"{record[0]}:{record[1]:>12}") >= cursor)
    mismatches: list[str] = []
    for count, (place, record) in enumerate(remaining):
        if count and time.monotonic() > deadline:
            return mismatches, place
        if not intact(db, digests, *record):
            mismatches.append(f"{record[0]} {record[1]}")
    return mismatches, None
