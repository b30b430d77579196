"""Stored rollouts can be filtered, sorted, summed up and compared by similarity, without DuckDB."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stored_runs import make_run

from coterie.cli.main import main
from coterie.errors import RunError
from coterie.runs.query import Filters, open_runs, select, summarise
from coterie.runs.rows import CONTEXT

ROLLOUTS = ["run", "rollout_id"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ids(*runs: str, sort: str | None = None, limit: int | None = None, **filters: Any) -> list[str]:
    selection = select(open_runs(runs or ("one",)), Filters(**filters))
    table = selection.table(["rollout_id"], sort=sort, limit=limit)
    if limit is None:
        assert selection.count() >= len(table)
    return table["rollout_id"].to_pylist()


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"tasks": ["sums"], "last": 2}, ["sums/1#0@0", "sums/1#1@0", "sums/1#0@1", "sums/1#1@1"]),
        ({"prompts": ["sums/2"]}, ["sums/2#0@2", "sums/2#1@2"]),
        ({"region": "DIGITS", "first": 3}, ["sums/2#0@2", "sums/2#1@2"]),
        ({"outcomes": ["reward_error"]}, ["words/1#1@1"]),
        ({"min_reward": 0.75, "tasks": ["words"]}, ["words/1#0@2", "words/1#1@2"]),
        ({"max_reward": 0.0}, ["sums/1#1@0", "sums/2#0@2"]),
        ({"recent": 1, "tasks": ["words"]}, ["words/1#0@2", "words/1#1@2"]),
        ({"recent": 2, "last": 2, "prompts": ["sums/1"], "min_reward": 1}, ["sums/1#0@0", "sums/1#0@1", "sums/1#1@1"]),
        ({"tasks": ["nobody's"]}, []),
        ({"first": 9}, []),
    ],
)
def test_filters(root: Path, filters: dict[str, Any], expected: list[str]) -> None:
    assert ids(**filters) == expected


def test_sorting_puts_rows_without_a_value_last_and_keeps_the_order_of_equals(root: Path) -> None:
    assert ids(sort="reward", limit=2) == ["sums/1#1@0", "sums/2#0@2"]
    assert ids(sort="-reward")[:3] == ["sums/1#0@0", "sums/1#0@1", "sums/1#1@1"]
    assert ids(sort="-reward")[-1] == "words/1#1@1"
    with pytest.raises(RunError, match="cannot be sorted by tokens"):
        ids(sort="tokens")


def test_the_rollouts_of_similar_prompts_come_nearest_first(root: Path) -> None:
    selection = select(open_runs(["one"]), Filters(similar_to="sums/2", nearest=2))
    table = selection.table(["prompt_id", "similarity"])
    assert table["prompt_id"].to_pylist() == ["sums/2"] * 2 + ["sums/1"] * 4
    cosine = 0.9 / (0.9**2 + 0.1**2) ** 0.5
    assert table["similarity"].to_pylist() == pytest.approx([1.0] * 2 + [cosine] * 4, abs=1e-6)
    with pytest.raises(RunError, match=r"no prompt 'sums/9' .* the nearest names are sums/"):
        select(open_runs(["one"]), Filters(similar_to="sums/9"))


def test_a_run_is_compared_with_itself_only(root: Path) -> None:
    make_run(root, "two")
    selection = select(open_runs(["one", "two"]), Filters(similar_to="sums/1", nearest=1))
    assert selection.table(["run", "step"]).to_pylist() == [
        {"run": run, "step": step} for run in ("one", "two") for step in (1, 1, 2, 2)
    ]


def test_a_summary_by_task(root: Path) -> None:
    """sums: rewards 1 0 1 1 0 ½, one silent group of three; words: ½ ½ ¼ ¾ ¾ and an error, two silent of two."""
    sums, words = summarise(select(open_runs(["one"]), Filters()), "task").to_pylist()
    assert sums == pytest.approx(
        {
            "task": "sums",
            "rollouts": 6,
            "prompts": 2,
            "reward": 3.5 / 6,
            "spread": (3.25 / 6 - (3.5 / 6) ** 2) ** 0.5,
            "zero_variance": 1 / 3,
            "length": (1 + 2 + 2 + 3 + 3 + 4) / 6,
            "abs_advantage": 3.5 / 6,
            "expected": 0.5,
        }
    )
    assert (words["rollouts"], words["reward"], words["zero_variance"]) == (6, pytest.approx(0.55), 1.0)


def test_a_filter_on_rewards_does_not_change_what_a_group_is(root: Path) -> None:
    (row,) = summarise(select(open_runs(["one"]), Filters(min_reward=1.0, tasks=["sums"])), "task").to_pylist()
    assert (row["rollouts"], row["reward"], row["zero_variance"]) == (3, 1.0, pytest.approx(1 / 3))


@pytest.mark.parametrize(
    ("by", "keys"),
    [
        ("step", [1, 2, 3]),
        ("prompt", ["sums/1", "sums/2", "words/1"]),
        ("region", ["all prompts", "log digits > 2.5 and task is sums"]),
    ],
)
def test_other_summaries(root: Path, by: str, keys: list[Any]) -> None:
    table = summarise(select(open_runs(["one"]), Filters()), by)
    assert table.column(0).to_pylist() == keys
    downwards = summarise(select(open_runs(["one"]), Filters()), by, sort="-reward", limit=1)
    assert downwards["reward"][0].as_py() == max(table["reward"].to_pylist())
    with pytest.raises(RunError, match="summed up by task, region, prompt, step"):
        summarise(select(open_runs(["one"]), Filters()), "mood")


def test_a_summary_of_nothing_and_of_several_runs(root: Path) -> None:
    assert len(summarise(select(open_runs(["one"]), Filters(first=9)), "task")) == 0
    make_run(root, "two")
    table = summarise(select(open_runs(["two", "one"]), Filters()), "task")
    assert list(zip(table["run"].to_pylist(), table["task"].to_pylist(), strict=True)) == [
        ("one", "sums"),
        ("one", "words"),
        ("two", "sums"),
        ("two", "words"),
    ]


def make_old(run: Path) -> None:
    """As coterie stored it before contexts were kept."""
    for file in (run / "rollouts").iterdir():
        table = pq.read_table(file)
        facts = {"coterie": "1", "step": table.schema.metadata[b"step"].decode(), "sha256": ""}
        pq.write_table(table.drop_columns([name for name, _ in CONTEXT]).replace_schema_metadata(facts), file)
    for file in (run / "prompts").iterdir():
        file.unlink()
    (run / "prompts").rmdir()


def test_old_runs_beside_new_ones(root: Path) -> None:
    make_old(make_run(root, "old"))
    stored = open_runs(["old", "one"])
    table = select(stored, Filters(prompts=["sums/2"])).table(["run", "reward", "expected", "domain"])
    assert table.to_pylist() == [
        {"run": run, "reward": reward, "expected": 0.75 if run == "one" else None, "domain": domain}
        for run, domain in (("old", None), ("one", "numbers"))
        for reward in (0.0, 0.5)
    ]
    by_task = summarise(select(open_runs(["old"]), Filters()), "region").to_pylist()
    assert [(row["region"], row["zero_variance"]) for row in by_task] == [(None, pytest.approx(3 / 5))]
    with pytest.raises(RunError, match="these runs stored no prompts at all"):
        select(open_runs(["old"]), Filters(similar_to="sums/1"))


def test_a_damaged_file_is_named(root: Path) -> None:
    file = root / "runs/one/rollouts/step_000002.parquet"
    data = file.read_bytes()
    for bad in (data[: len(data) // 2], b"", b"PAR1"):
        file.write_bytes(bad)
        with pytest.raises(RunError, match=r"step_000002\.parquet"):
            ids()
    assert ids(last=1) == ["sums/1#0@0", "sums/1#1@0", "words/1#0@0", "words/1#1@0"]


def test_the_table_says_how_many_more_there_are(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experience", "one", "--limit", "3"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split()[:3] == ["step", "prompt_id", "sample"]
    assert "… 9 more" in out
    assert main(["experience", "one", "--task", "nothing"]) == 0
    assert capsys.readouterr().out == "no rollouts match\n"


def test_json_and_columns(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["experience", "one", "--json", "--prompt", "sums/2", "--columns", "rollout_id,complexity,tokens"]
    assert main(words) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["rollout_id"], first["tokens"]) == ("sums/2#0@2", [7, 7, 7])
    assert second["complexity"]["steps"] == 1
    assert main(["experience", "one", "--by", "step", "--json"]) == 0
    assert [row["step"] for row in json.loads(capsys.readouterr().out)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nowhere"], 1, "no run 'nowhere'"),
        (["one", "--columns", "rewrad"], 1, "there is no column 'rewrad'; there are reward"),
        (["one", "--sort", "height"], 1, "there is no column 'height'"),
        (["one", "--outcome", "fine"], 1, "'fine' is no outcome of a rollout; there are ok, truncated"),
        (["one", "--by", "mood"], 1, "not by 'mood'"),
        (["one", "--recent", "0"], 2, "--recent"),
        (["one", "--by", "task", "--columns", "reward"], 2, "columns of its own"),
        (["one", "--sql", "select 1", "--task", "sums"], 2, "filters, sorts and names its columns itself"),
    ],
)
def test_what_cannot_be_asked(
    root: Path, words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["experience", *words]) == code
    assert message in " ".join(capsys.readouterr().err.split())


def test_looking_needs_neither_torch_nor_duckdb(root: Path) -> None:
    code = (
        "import sys; sys.modules['duckdb'] = None; from coterie.cli.main import main; "
        "code = main(['experience', 'one', '--similar-to', 'sums/1', '--by', 'task']); "
        "sys.exit(code or ('torch' in sys.modules))"
    )
    completed = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    assert "sums" in completed.stdout


def test_the_program_starts_without_reading_tables() -> None:
    code = (
        "import sys; from coterie.cli.main import main; main(['experience', '--help']); "
        "sys.exit(bool({'pyarrow', 'duckdb', 'numpy', 'torch'} & set(sys.modules)))"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr


def test_the_schema_is_the_same_whatever_the_files_hold(root: Path) -> None:
    stored = open_runs(["one"])
    assert stored.rollouts().schema.equals(stored.rollouts(first=9).schema)
    assert stored.schema.field("run").type == pa.string()
