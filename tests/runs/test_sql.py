"""SQL over the stored rollouts: what it answers, and what it can never reach."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from stored_runs import make_run

from coterie.cli.main import main
from coterie.errors import RunError, install_command
from coterie.runs.query import open_runs, query


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_run(tmp_path)
    make_run(tmp_path, "two", text="'); DROP TABLE rollouts;--\x1b[31m")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(sql: str) -> list[dict[str, Any]]:
    return query(open_runs(["one", "two"]), sql).to_pylist()


def test_rollouts_and_prompts_can_be_joined(root: Path) -> None:
    pytest.importorskip("duckdb")
    answers = rows(
        "SELECT run, task, count(*) AS n, avg(reward) AS mean, max(rollouts.complexity.length) AS length, "
        "min(json_extract(reward_parts, '$.number')::DOUBLE) AS least, any_value(len(p.embedding)) AS width "
        "FROM rollouts JOIN prompts p USING (run, prompt_id, task) WHERE rollouts.step > 1 "
        "GROUP BY run, task ORDER BY run, task"
    )
    sums = {"task": "sums", "n": 4, "mean": 0.625, "length": 1, "least": 0.0, "width": 2}
    assert [row for row in answers if row["task"] == "sums"] == [{"run": run} | sums for run in ("one", "two")]


def test_the_answer_is_printed_limited_and_exported(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("duckdb")
    sql = "SELECT completion, sum(sample) AS n FROM rollouts GROUP BY completion ORDER BY n, completion"
    assert main(["experience", "two", "--sql", sql]) == 0
    out = capsys.readouterr().out
    assert "\\x1b[31m" in out
    assert "\x1b" not in out
    assert main(["experience", "one", "--sql", "SELECT step FROM rollouts ORDER BY step", "--limit", "5"]) == 0
    assert "… 7 more" in capsys.readouterr().out
    assert main(["experience", "one", "--sql", sql, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"completion": "8", "n": 6}]
    assert main(["experience", "one", "--sql", sql, "--export", "n.jsonl"]) == 0
    assert json.loads(Path("n.jsonl").read_text()) == {"completion": "8", "n": 6}


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('secret.csv')",
        "SELECT * FROM read_text('secret.csv')",
        "SELECT * FROM 'secret.csv'",
        "SELECT * FROM read_parquet('runs/one/rollouts/step_000001.parquet')",
        "SELECT * FROM glob('*')",
        "COPY (SELECT 1) TO 'made.csv'",
        "ATTACH 'made.db' AS made",
        "EXPORT DATABASE 'made'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SELECT 1; COPY (SELECT 1) TO 'made.csv'",
        "SELECT * FROM stored",
        "CREATE TABLE made AS SELECT 1",
        "SELECT * FROM nothing",
        "SELEC",
        "",
    ],
)
def test_a_pasted_query_reaches_nothing_else(root: Path, sql: str) -> None:
    pytest.importorskip("duckdb")
    (root / "secret.csv").write_text("a\n1\n", encoding="utf-8")
    before = sorted(path.name for path in root.rglob("*"))
    with pytest.raises(RunError, match=r"--sql takes one SELECT|DuckDB refuses the query"):
        rows(sql)
    assert sorted(path.name for path in root.rglob("*")) == before


def test_a_damaged_file_is_an_error(root: Path) -> None:
    pytest.importorskip("duckdb")
    (root / "runs/one/rollouts/step_000002.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunError, match="DuckDB refuses the query"):
        rows("SELECT avg(reward) FROM rollouts")


def test_without_duckdb_the_extra_is_named(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "duckdb":
            raise ImportError("No module named 'duckdb'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert main(["experience", "one", "--sql", "SELECT 1"]) == 1
    assert install_command("experience") in capsys.readouterr().err
    assert main(["experience", "one", "--by", "task"]) == 0
