from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import make_eval

from coterie.errors import NonFiniteError, RunError
from coterie.runs.metrics import Event, MetricsDB
from coterie.types import Interval


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.sqlite"


@pytest.fixture
def db(path):
    with MetricsDB(path) as database:
        yield database


def test_metrics(db):
    assert db.last_step() is None
    db.record(1, {"loss": 0.5, "reward/mean": 1})
    db.record(2, {"loss": 0.25})
    assert db.series("loss") == [(1, 0.5), (2, 0.25)]
    assert db.series("absent") == []
    assert db.step_metrics(1) == {"loss": 0.5, "reward/mean": 1.0}
    assert (db.last_step(), db.names()) == (2, ["loss", "reward/mean"])


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.floats(allow_nan=False, allow_infinity=False))
)
def test_values_come_back_exactly(tmp_path_factory, metrics):
    with MetricsDB(tmp_path_factory.mktemp("m") / "m.sqlite") as db:
        db.record(1, metrics)
        assert db.step_metrics(1) == metrics


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_metrics_are_named(db, value):
    with pytest.raises(NonFiniteError, match="metric kl/ref of step 3 is"):
        db.record(3, {"loss": 1.0, "kl/ref": value})
    assert db.last_step() is None


def test_no_numbers(db):
    with pytest.raises(RunError, match="the metric loss of step 3 is 'x'; a metric is a number"):
        db.record(3, {"loss": "x"})
    with pytest.raises(RunError, match="cannot record step 3 in"):
        db.record(3, {"\ud800": 1.0})


def test_a_step_is_whole_or_absent(db):
    result, items = make_eval(3, "legs", [1, 2])
    bad = Event(step=3, kind="warning", message="", data={"x": float("nan")}, time=0.0)
    with pytest.raises(RunError, match="Out of range"):
        db.record(3, {"loss": 1.0}, evals=[result], items=items, events=[bad])
    assert (db.last_step(), db.evals(), db.eval_items(3), db.events()) == (None, [], [], [])


def test_a_step_is_recorded_once(db):
    db.record(1, {"loss": 1.0})
    with pytest.raises(RunError, match=r"recorded already .*truncate_after"):
        db.record(1, {"new": 2.0, "loss": 1.0})
    assert db.step_metrics(1) == {"loss": 1.0}


def test_evals_come_back(db):
    legs, items = make_eval(0, "legs", [0, 4, 2])
    sums, more = make_eval(0, "sums", [1, 1])
    later, _ = make_eval(5, "legs", [4, 4, 4])
    db.record_evals([sums, legs], items + more)
    db.record(5, {"loss": 1.0}, evals=[later])
    assert db.evals() == [sums, legs, later]
    assert db.evals("legs") == [legs, later]
    assert db.eval_items(0, "legs") == items
    assert db.eval_items(0) == items + more
    with pytest.raises(RunError, match=r"belongs to one step, got results of \[0, 5\]"):
        db.record_evals([legs, later])
    with pytest.raises(RunError, match="belongs to one step, got results of none"):
        db.record_evals([])
    with pytest.raises(RunError, match="evaluation of step 5 is recorded with step 6"):
        db.record(6, {}, evals=[later])


def test_events(db):
    db.event("warning", "lone \ud800", step=2, data={"row": [1, None]})
    db.event("resume", "from step 1")
    first, second = db.events()
    assert (first.kind, first.message, first.step, first.data) == ("warning", "lone \\ud800", 2, {"row": [1, None]})
    assert second.time >= first.time > 1e9
    assert db.events("resume") == [second]


def test_truncate_after(db):
    for step in (1, 2, 3):
        result, items = make_eval(step, "legs", [step])
        db.record(step, {"loss": float(step)}, evals=[result], items=items)
        db.event("checkpoint", "saved", step=step)
    db.event("resume", "no step")
    db.truncate_after(1)
    assert db.series("loss") == [(1, 1.0)]
    assert [result.step for result in db.evals()] == [1]
    assert db.eval_items(3) == []
    assert [event.kind for event in db.events()] == ["checkpoint", "resume"]
    db.truncate_after(-1)
    assert db.last_step() is None


def test_a_reader_neither_waits_nor_writes(path, db):
    db.record(1, {"loss": 1.0})
    with MetricsDB.reader(path) as reader:
        db._db.execute("BEGIN IMMEDIATE")
        db._db.execute("INSERT INTO metrics VALUES (2, 'loss', 2.0)")
        assert reader.series("loss") == [(1, 1.0)]
        db._db.execute("COMMIT")
        assert reader.last_step() == 2
        db.record(3, {"loss": 3.0})
        with pytest.raises(RunError, match="readonly"):
            reader.record(4, {"loss": 4.0})


def test_a_finished_run_is_one_file(path):
    with MetricsDB(path) as db:
        db.record(1, {"loss": 1.0})
    assert os.listdir(path.parent) == ["metrics.sqlite"]
    with MetricsDB.reader(path) as reader:
        assert reader.last_step() == 1


def test_a_killed_writer_loses_nothing_recorded(path):
    code = (
        "import os, sys; from pathlib import Path; from coterie.runs.metrics import MetricsDB\n"
        "db = MetricsDB(Path(sys.argv[1])); db.record(1, {'loss': 1.0})\n"
        "db._db.execute('BEGIN'); db._db.execute(\"INSERT INTO metrics VALUES (2, 'loss', 2.0)\")\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)])
    with MetricsDB(path) as db:
        assert db.series("loss") == [(1, 1.0)]
        db.record(2, {"loss": 3.0})


@pytest.mark.parametrize("last", ["quick_check", "journal_mode", "BEGIN", "CREATE TABLE events"])
def test_a_writer_killed_before_its_tables_are_there_recorded_nothing(path, last):
    code = (
        "import os, sys; from pathlib import Path; from coterie.runs import metrics\n"
        "class Killed:\n"
        "    def __init__(self, db): self.db = db\n"
        "    def execute(self, sql):\n"
        "        found = self.db.execute(sql)\n"
        "        if sys.argv[2] in sql: os.kill(os.getpid(), 9)\n"
        "        return found\n"
        "connect = metrics._connect; metrics._connect = lambda *words: Killed(connect(*words))\n"
        "metrics.MetricsDB(Path(sys.argv[1]))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path), last]).returncode == -9
    with MetricsDB.reader(path) as db:
        assert (db.last_step(), db.events(), db.evals(), db.names(), db.damage()) == (None, [], [], [], [])
    with MetricsDB(path) as db:
        db.record(1, {"loss": 1.0})
        assert db.damage() == []


def test_no_file(path):
    with pytest.raises(RunError, match=r"there is no .*metrics.sqlite"):
        MetricsDB.reader(path)
    with pytest.raises(RunError, match=r"cannot open .*metrics.sqlite: unable to open"):
        MetricsDB(path.parent / "gone" / "metrics.sqlite")


@pytest.mark.parametrize("read_only", [False, True])
def test_a_foreign_file(path, read_only):
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(RunError, match=r"cannot open .*metrics.sqlite: file is not a database"):
        MetricsDB(path, read_only=read_only)


def test_a_truncated_file(path):
    with MetricsDB(path) as db:
        for step in range(200):
            db.record(step, {f"metric {number}": 1.0 for number in range(10)})
    path.write_bytes(path.read_bytes()[:-9000])
    with pytest.raises(RunError, match=r"metrics.sqlite"):
        MetricsDB(path)


def test_a_newer_format(path):
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(RunError, match="has format 99, this coterie reads up to 3"):
        MetricsDB(path)


def changed(path, sql):
    connection = sqlite3.connect(path)
    connection.execute(sql)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("sql", "named"),
    [
        ("UPDATE metrics SET value = 0.50000001 WHERE step = 1 AND name = 'loss'", "metrics of step 1"),
        ("UPDATE metrics SET step = 9 WHERE step = 1", "metrics of step 1"),
        ("DELETE FROM metrics WHERE step = 2", "metrics of step 2"),
        ("INSERT INTO metrics VALUES (7, 'loss', 1.0)", "metrics of step 7"),
        ("UPDATE evals SET pass_at_1 = 1", "evaluation of step 2"),
        ("UPDATE eval_items SET correct = 4", "evaluation of step 2"),
        ("DELETE FROM evals", "evaluation of step 2"),
        ("UPDATE events SET message = 'all is well'", "event 1"),
        ("DELETE FROM events", "event 1"),
        ("DELETE FROM digests WHERE key = 2 AND kind = 'metrics of step'", "metrics of step 2"),
        ("UPDATE digests SET sha256 = '' WHERE kind = 'event'", "event 1"),
    ],
)
def test_what_was_changed_behind_its_back_is_named(path, sql, named):
    with MetricsDB(path) as db:
        db.record(1, {"loss": 0.5, "lr": 1e-6})
        db.record(2, {"loss": 0.25})
        result, items = make_eval(2, "legs", [1, 2])
        db.record_evals([result], items)
        db.event("warning", "mind the gap", 1)
        assert db.damage() == []
    changed(path, sql)
    with MetricsDB.reader(path) as db:
        assert named in db.damage()


def test_what_is_truncated_is_not_missed(path):
    with MetricsDB(path) as db:
        for step in (1, 2, 3):
            db.record(step, {"loss": 0.5})
            db.event("checkpoint", "saved", step)
        db.truncate_after(1)
        assert db.damage() == []
        db.record(2, {"loss": 0.5})
        assert db.damage() == []


OLD = """
CREATE TABLE old_evals (step INTEGER NOT NULL, task TEXT NOT NULL, prompts INTEGER NOT NULL,
                        samples INTEGER NOT NULL, k INTEGER NOT NULL,
                        pass_at_1 REAL NOT NULL, pass_at_1_low REAL NOT NULL, pass_at_1_high REAL NOT NULL,
                        pass_at_k REAL NOT NULL, pass_at_k_low REAL NOT NULL,
                        pass_at_k_high REAL NOT NULL, mean_length REAL NOT NULL, truncated REAL NOT NULL,
                        PRIMARY KEY (step, task));
CREATE TABLE old_items (step INTEGER NOT NULL, task TEXT NOT NULL, prompt_id TEXT NOT NULL,
                        correct INTEGER NOT NULL, samples INTEGER NOT NULL,
                        PRIMARY KEY (step, task, prompt_id)) WITHOUT ROWID;
INSERT INTO old_evals SELECT step, task, prompts, samples, k, pass_at_1, pass_at_1_low, pass_at_1_high, pass_at_k,
                             pass_at_k_low, pass_at_k_high, mean_length, truncated FROM evals ORDER BY rowid;
INSERT INTO old_items SELECT step, task, prompt_id, correct, samples FROM eval_items;
DROP TABLE evals;
DROP TABLE eval_items;
ALTER TABLE old_evals RENAME TO evals;
ALTER TABLE old_items RENAME TO eval_items;
PRAGMA user_version = 2;
"""


def as_before(path, sql=OLD):
    """Turn a file into one of an older format."""
    connection = sqlite3.connect(path)
    connection.executescript(sql)
    connection.close()


def test_a_database_without_held_out_rewards_is_read_and_resumed(path):
    first, first_items = make_eval(0, "legs", [1, 2])
    with MetricsDB(path) as db:
        db.record_evals([first, replace(first, task="a")], first_items)
    as_before(path)
    with MetricsDB.reader(path) as db:
        assert (db.evals(), db.eval_items(0), db.damage()) == ([first, replace(first, task="a")], first_items, [])
    graded = replace(first, step=2, pass_at_1=None, pass_at_k=None, reward=Interval(value=0.25, low=0.1, high=0.4))
    graded = replace(graded, reward_parts={"share": 0.5})
    items = [replace(item, reward=0.25) for item in first_items]
    with MetricsDB(path) as db:
        db.record_evals([graded], items)
        assert (db.evals("legs"), db.eval_items(2), db.damage()) == ([first, graded], items, [])
    for sql in ("UPDATE evals SET reward = 1 WHERE step = 2", "UPDATE eval_items SET reward = NULL WHERE step = 2"):
        changed(path, sql)
        with MetricsDB.reader(path) as db:
            assert db.damage() == ["held-out reward of step 2"]
    changed(path, "UPDATE evals SET pass_at_1 = 1 WHERE step = 0")
    with MetricsDB(path) as db:
        assert "evaluation of step 0" in db.damage()
        db.truncate_after(0)
        assert db.damage() == ["evaluation of step 0"]


def test_damage_is_not_sealed_by_the_upgrade(path):
    with MetricsDB(path) as db:
        result, items = make_eval(0, "legs", [1, 2])
        db.record_evals([result], items)
    as_before(path)
    changed(path, "UPDATE evals SET pass_at_1 = 1")
    with MetricsDB(path) as db:
        assert db.damage() == ["evaluation of step 0"]


def test_a_database_of_the_first_format_gets_its_hashes(path):
    with MetricsDB(path) as db:
        db.record(1, {"loss": 0.5})
    as_before(path)
    changed(path, "DROP TABLE digests")
    changed(path, "PRAGMA user_version = 1")
    with MetricsDB.reader(path) as db:
        assert db.damage() == []
        assert db.step_metrics(1) == {"loss": 0.5}
    with MetricsDB(path) as db:
        assert db.damage() == []
    changed(path, "UPDATE metrics SET value = 1")
    with MetricsDB(path) as db:
        assert db.damage() == ["metrics of step 1"]


def test_all_series_are_those_of_each_name(db):
    db.record(2, {"loss": 0.25, "groups/solved": 0.5})  # a former name, of an older run
    db.record(1, {"loss": 0.5, "reward/mean": 1})
    db.record(3, {"groups/all_correct": 0.75, "loss": 0.125})
    series = db.all_series()
    assert list(series) == db.names()
    assert series == {name: db.series(name) for name in db.names()}
    assert series["loss"] == [(1, 0.5), (2, 0.25), (3, 0.125)]
