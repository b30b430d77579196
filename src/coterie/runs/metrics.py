"""Metrics, events and evaluations of a run in SQLite (WAL): one writer, many readers, neither waits.

SQLite notices no flipped bit in a value, so records of one transaction carry the hash of their rows.
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, Self

from coterie.config.renamed import former_metric_name, metric_name
from coterie.errors import NonFiniteError, RunError
from coterie.runs.durable import json_dumps, json_loads, missing_room, utf8
from coterie.runs.metric_hashes import HASHED, REWARD_OF_STEP, VERSION, damaged, damaged_from, seal
from coterie.types import PASS, EvalResult, Interval

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
_DIGESTS = """
CREATE TABLE digests (kind TEXT NOT NULL, key INTEGER NOT NULL, sha256 TEXT NOT NULL,
                      PRIMARY KEY (kind, key)) WITHOUT ROWID;
"""


def make_tables(db: sqlite3.Connection, version: int) -> None:
    """Create the tables that a file of this format lacks, inside the caller's transaction.

    Format 0 is a new file, which lacks everything; 1 lacks the hashes, 1 and 2 the held-out rewards.
    """
    steps = (_SCHEMA + _EVALS if version == 0 else _REWARDS) + (_DIGESTS if version < 2 else "")
    for statement in steps.split(";"):
        db.execute(statement)
    if version >= 2:
        return
    for kind, (keys, _) in HASHED.items():
        for (key,) in db.execute(keys).fetchall():
            seal(db, kind, key)


_ROOM = 1 << 20
"""Bytes; with fewer free, a full disk is the likely cause of an error (SQLite calls it `disk I/O error` at times)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An event of a run, e.g. `checkpoint`, `warning`, `resume`, `stop`."""

    step: int | None
    kind: str
    message: str
    data: Mapping[str, Any]
    time: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalItem:
    """One held-out prompt of one evaluation, kept for the paired test."""

    task: str
    prompt_id: str
    correct: int
    """Attempts that are correct."""
    samples: int
    """Attempts to which the evaluated part of the reward applies."""
    reward: float | None = None
    """Mean reward of the attempts; None where none could be scored, and in runs of before it was recorded."""

    def metric(self, name: str) -> float | None:
        """The prompt's own `PASS` (share of correct attempts) or `REWARD`; None where it does not have it."""
        if name == PASS:
            return self.correct / self.samples if self.samples else None
        return self.reward


class MetricsDB:
    """The run's `metrics.sqlite`. The default opens the writer; `MetricsDB.reader` only reads.

    Raises:
        RunError: from every method, when the file is damaged, foreign or refused by the disk.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        if read_only and not path.is_file():
            raise RunError(f"there is no {path}; the run has not started, or this is not a run")
        with self._named("open"):
            self._db = _connect(path, read_only)
            try:
                self._prepare(read_only)
            except BaseException:
                self._db.close()
                raise

    @classmethod
    def reader(cls, path: Path) -> Self:
        """A read-only connection that never blocks a running training and never changes the file."""
        return cls(path, read_only=True)

    def _prepare(self, read_only: bool) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise RunError(f"{self.path} has format {version}, this coterie reads up to {VERSION}; use a newer one")
        if read_only:
            if version == 0 and self._db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0] == 0:
                self._read_as_empty()
            return
        verdict = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise RunError(f"{self.path} is damaged: {verdict}; restore it from a copy")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")  # in WAL, NORMAL may lose the last steps to a power cut
        if version < VERSION:
            self._upgrade(version)

    def _read_as_empty(self) -> None:
        """Read an empty database: the run was stopped, or is at this moment, between the file and its tables."""
        self._db.close()
        self._db = sqlite3.connect(":memory:", isolation_level=None)
        self._upgrade(0)

    def _upgrade(self, version: int) -> None:
        """Create the tables, or add those that an older format lacks."""
        with self._transaction("set up"):
            make_tables(self._db, version)
            self._db.execute(f"PRAGMA user_version = {VERSION}")

    def record(
        self,
        step: int,
        metrics: Mapping[str, float],
        *,
        events: Sequence[Event] = (),
        evals: Sequence[EvalResult] = (),
        items: Sequence[EvalItem] = (),
    ) -> None:
        """Record metrics, events and evaluations of one step in one transaction.

        Raises:
            NonFiniteError: a metric is NaN or infinite; nothing is written.
            RunError: the step is recorded already; a resume first calls `truncate_after`.
        """
        rows = [(step, name, _finite(step, name, value)) for name, value in metrics.items()]
        with self._transaction(f"record step {step}"):
            self._db.executemany("INSERT INTO metrics VALUES (?, ?, ?)", rows)
            seal(self._db, "metrics of step", step)
            if evals or items:
                self._insert_evals(step, evals, items)
            for event in events:
                self._insert_event(event)

    def record_evals(self, results: Sequence[EvalResult], items: Sequence[EvalItem] = ()) -> None:
        """Record one evaluation (all results have the same step) outside of a step's record."""
        steps = {result.step for result in results}
        if len(steps) != 1:
            raise RunError(f"an evaluation belongs to one step, got results of {sorted(steps) or 'none'}")
        step = steps.pop()
        with self._transaction(f"record the evaluation of step {step}"):
            self._insert_evals(step, results, items)

    def event(self, kind: str, message: str, step: int | None = None, data: Mapping[str, Any] | None = None) -> None:
        """Record one event, now."""
        with self._transaction(f"record a {kind} event"):
            self._insert_event(Event(step=step, kind=kind, message=message, data=data or {}, time=time.time()))

    def truncate_after(self, step: int) -> None:
        """Forget metrics, evaluations and events of later steps, which a resume makes again; -1 forgets all.

        Events without a step stay: they tell the history of the attempts.
        """
        with self._transaction(f"truncate after step {step}"):
            for table in ("metrics", "events", "evals", "eval_items"):
                self._db.execute(f"DELETE FROM {table} WHERE step > ?", (step,))
            self._db.execute("DELETE FROM digests WHERE kind != 'event' AND key > ?", (step,))
            self._db.execute("DELETE FROM digests WHERE kind = 'event' AND key NOT IN (SELECT id FROM events)")

    def damage(self) -> list[str]:
        """Records that do not match their hash, e.g. `metrics of step 12`; empty when all do.

        Reads everything, so it is for a resume and for a look at a run, not for every open.
        """
        with self._named("verify"), self._snapshot():
            return damaged(self._db, self._db.execute("PRAGMA user_version").fetchone()[0])

    def damage_from(self, cursor: str, seconds: float) -> tuple[list[str], str | None]:
        """A part of what `damage` finds, in about so many seconds.

        Args:
            cursor: that of the part before, empty for the first.

        Returns:
            The damaged records, and the cursor of the next part; None at the end.
        """
        with self._named("verify"), self._snapshot():
            return damaged_from(self._db, self._db.execute("PRAGMA user_version").fetchone()[0], cursor, seconds)

    def names(self) -> list[str]:
        """Names of all metrics, sorted."""
        return sorted({metric_name(name) for (name,) in self._rows("SELECT DISTINCT name FROM metrics")})

    def series(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of one metric in the order of steps; empty when it was never recorded."""
        return self._rows(
            "SELECT step, value FROM metrics WHERE name IN (?, ?) ORDER BY step", name, former_metric_name(name)
        )

    def all_series(self) -> dict[str, list[tuple[int, float]]]:
        """(step, value) of every metric in the order of steps, the names sorted: one pass, where `series` looks up each
        value."""
        stored: dict[str, list[tuple[int, float]]] = {}
        for step, name, value in self._rows("SELECT step, name, value FROM metrics ORDER BY step"):
            points = stored.get(name)
            if points is None:
                points = stored[name] = []
            points.append((step, value))
        series: dict[str, list[tuple[int, float]]] = {}
        for name in sorted(stored):
            series.setdefault(metric_name(name), []).extend(stored[name])
        return {name: sorted(series[name], key=itemgetter(0)) for name in sorted(series)}

    def step_metrics(self, step: int) -> dict[str, float]:
        """All metrics of one step."""
        rows = self._rows("SELECT name, value FROM metrics WHERE step = ? ORDER BY name", step)
        return {metric_name(name): value for name, value in rows}

    def steps(self) -> list[int]:
        """Steps that have metrics, ascending."""
        return [step for (step,) in self._rows("SELECT DISTINCT step FROM metrics ORDER BY step")]

    def last_step(self) -> int | None:
        """The newest step that has metrics."""
        return self._rows("SELECT MAX(step) FROM metrics")[0][0]

    def events(self, kind: str | None = None) -> list[Event]:
        """Events in the order recorded, all or of one kind."""
        rows = self._rows(
            "SELECT step, kind, message, data, time FROM events WHERE ?1 IS NULL OR kind = ?1 ORDER BY id",
            kind,
        )
        with self._named("read the events of"):
            return [
                Event(step=step, kind=name, message=message, data=json_loads(data), time=at)
                for step, name, message, data, at in rows
            ]

    def evals(self, task: str | None = None) -> list[EvalResult]:
        """Evaluations by step, then in the order recorded."""
        rows = self._rows("SELECT * FROM evals WHERE ?1 IS NULL OR task = ?1 ORDER BY step, rowid", task)
        return [
            EvalResult(
                step=row[0],
                task=row[1],
                prompts=row[2],
                samples=row[3],
                k=row[4],
                pass_at_1=_interval(row[5:8]),
                pass_at_k=_interval(row[8:11]),
                mean_length=row[11],
                truncated=row[12],
                reward=_interval(row[13:16]),  # older formats end before it
                reward_parts=json_loads(row[16]) if len(row) > 16 and row[16] is not None else {},
            )
            for row in rows
        ]

    def eval_items(self, step: int, task: str | None = None) -> list[EvalItem]:
        """Held-out prompts of one evaluation, sorted by task and id; all tasks when none is given."""
        rows = self._rows(
            "SELECT * FROM eval_items WHERE step = ?1 AND (?2 IS NULL OR task = ?2) ORDER BY task, prompt_id",
            step,
            task,
        )
        return [
            EvalItem(task=task, prompt_id=name, correct=correct, samples=samples, reward=reward[0] if reward else None)
            for _, task, name, correct, samples, *reward in rows
        ]

    def close(self) -> None:
        """Fold the log back into the file, so that one file holds everything."""
        with self._named("close"):
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _insert_evals(self, step: int, evals: Sequence[EvalResult], items: Sequence[EvalItem]) -> None:
        for result in evals:
            if result.step != step:
                raise RunError(f"an evaluation of step {result.step} is recorded with step {step}")
            values = (
                *_values(result.pass_at_1),
                *_values(result.pass_at_k),
                result.mean_length,
                result.truncated,
                *_values(result.reward),
            )
            label = f"evaluation of {result.task}"
            numbers = [None if value is None else _finite(step, label, value) for value in values]
            head = (step, result.task, result.prompts, result.samples, result.k)
            row = (*head, *numbers, json_dumps(dict(result.reward_parts)))
            self._db.execute(f"INSERT INTO evals VALUES ({','.join('?' * 17)})", row)
        rows = [(step, item.task, item.prompt_id, item.correct, item.samples, item.reward) for item in items]
        self._db.executemany("INSERT INTO eval_items VALUES (?, ?, ?, ?, ?, ?)", rows)
        seal(self._db, "evaluation of step", step)
        if any(measured.reward is not None for measured in (*evals, *items)):
            seal(self._db, REWARD_OF_STEP, step)

    def _insert_event(self, event: Event) -> None:
        row = (event.step, event.kind, utf8(event.message), json_dumps(dict(event.data)), event.time)
        cursor = self._db.execute("INSERT INTO events (step, kind, message, data, time) VALUES (?, ?, ?, ?, ?)", row)
        assert cursor.lastrowid is not None
        seal(self._db, "event", cursor.lastrowid)

    def _rows(self, sql: str, *values: Any) -> list[Any]:
        with self._named("read"):
            return self._db.execute(sql, values).fetchall()

    @contextmanager
    def _transaction(self, what: str) -> Generator[None]:
        with self._named(f"{what} in"):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _snapshot(self) -> Generator[None]:
        """Context in which all reads see one snapshot, also while a training writes."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("ROLLBACK")

    @contextmanager
    def _named(self, what: str) -> Generator[None]:
        try:
            yield
        except sqlite3.IntegrityError as error:
            raise RunError(
                f"cannot {what} {self.path}: recorded already ({error}); a resume first calls truncate_after"
            ) from error
        except (sqlite3.Error, OSError, ValueError, UnicodeError) as error:
            shortage = missing_room(self.path.parent, _ROOM)
            more = f" ({shortage}; free some space)" if shortage is not None else ""
            raise RunError(f"cannot {what} {self.path}: {error}{more}") from error


def _connect(path: Path, read_only: bool) -> sqlite3.Connection:
    if not read_only:
        return sqlite3.connect(path, timeout=10, isolation_level=None)
    uri = path.resolve().as_uri()
    db = sqlite3.connect(f"{uri}?mode=ro", uri=True, timeout=10, isolation_level=None)
    try:
        db.execute("SELECT COUNT(*) FROM sqlite_master")
    except sqlite3.OperationalError:
        db.close()
        # A finished run in a folder that may not be written: WAL would want a helper file there.
        if path.with_name(path.name + "-wal").exists():
            raise
        db = sqlite3.connect(f"{uri}?immutable=1", uri=True, isolation_level=None)
    return db


def _values(interval: Interval | None) -> tuple[float, float, float] | tuple[None, None, None]:
    return (None, None, None) if interval is None else (interval.value, interval.low, interval.high)


def _interval(columns: Sequence[float | None]) -> Interval | None:
    """The inverse of `_values`; also None for a table that lacks the columns."""
    numbers = [column for column in columns if column is not None]
    return Interval(value=numbers[0], low=numbers[1], high=numbers[2]) if numbers else None


def _finite(step: int, name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise RunError(f"the metric {name} of step {step} is {value!r}; a metric is a number") from error
    if not math.isfinite(number):
        raise NonFiniteError(
            f"the metric {name} of step {step} is {number}; metrics are finite, leave out what is undefined"
        )
    return number
