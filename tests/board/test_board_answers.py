"""What the board says of runs: sound, growing, half-written, damaged, foreign, locked, large; and to many clients."""

from __future__ import annotations

import http.client
import json
import socket
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shown_runs import add_step, answer, ask, make_run

from coterie.board import catalog, rollout_pages, routes
from coterie.board.meanings import meaning_of, meanings
from coterie.board.overview import thinned
from coterie.board.region_pages import spread
from coterie.board.server import Board
from coterie.errors import RunError
from coterie.runs import metrics, parquet
from coterie.runs.metrics import MetricsDB


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    make_run(tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def board(runs: Path) -> Iterator[Board]:
    with Board(runs, 0) as served:
        yield served


def test_the_list_has_progress_result_and_what_differs(runs: Path, board: Board) -> None:
    make_run(runs, "other", lr=2e-6)
    listed = answer(board, "runs")
    (other, shown) = listed["runs"]
    assert listed["differing"] == ["name", "optim.lr"]
    assert (other["settings"]["optim.lr"], shown["settings"]["optim.lr"]) == (2e-6, 1e-6)
    assert (shown["step"], shown["steps"]) == (4, 4)
    assert shown["after"]["text"] == "100.0 % [90.0, 110.0]"
    assert shown["spark"][-1] == [4, 1.0]
    assert shown["seconds"] == 8.0


def test_runs_side_by_side(runs: Path, board: Board) -> None:
    make_run(runs, "other", lr=2e-6)
    value = answer(board, "compare", runs="shown,other")
    assert [row["key"] for row in value["settings"]] == ["name", "optim.lr"]
    assert value["runs"][0]["clock"] == {
        "steps": [1, 2, 3, 4],
        "seconds": [2.0, 4.0, 6.0, 8.0],
        "rollouts": [4.0, 8.0, 12.0, 16.0],
    }
    (task,) = value["paired"][0]["tasks"]
    assert task["text"] == "+0.0 points [+0.0, +0.0]"
    assert "choose two" in answer(board, "compare", runs="shown")["error"]


def test_a_run_has_curves_with_their_meaning_and_findings_with_steps(board: Board) -> None:
    assert answer(board, "run", run="shown")["machine"]["device"] == "cpu"
    curves = {curve["name"]: curve for curve in answer(board, "curves", run="shown")["metrics"]}
    assert curves["reward/mean"]["values"] == [0.25, 0.5, 0.75, 1.0]
    assert "0.1" in curves["entropy"]["worry"]
    assert curves["time/update"]["section"] == "Machine"
    finding = next(item for item in answer(board, "doctor", run="shown")["findings"] if item["rule"] == "truncated")
    assert finding["evidence"][0]["steps"] == [1, 4]


def test_meanings_are_those_of_the_page() -> None:
    """Every metric of a run of today is explained, by the most exact row."""
    assert len(meanings()) > 50
    for name in (
        "reward/part/number",
        "reward/task/sums",
        "grouping/weight/rloo",
        "mismatch/kl",
        "time/generate",
        "lr",
    ):
        assert meaning_of(name) is not None, name
    mean = meaning_of("reward/mean")
    assert mean is not None
    assert mean.section == "Reward"
    assert meaning_of("nothing/of/ours") is None


def test_filters_and_paging(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_pages, "PAGE", 5)

    def names(**words: Any) -> list[tuple[int, str]]:
        rows, cursor = [], ""
        while cursor is not None:
            page = answer(board, "rollouts", run="shown", cursor=cursor, **words)
            assert len(page["rows"]) <= 5
            rows += page["rows"]
            cursor = page["next"]
        return [(row["step"], row["rollout_id"]) for row in rows]

    everything = names()
    assert len(everything) == len(set(everything)) == 16
    assert everything[0][0] == 4
    assert sorted(names(oldest="1")) == sorted(everything)
    assert names(oldest="1")[0][0] == 1
    assert {step for step, _ in names(first="2", last="3")} == {2, 3}
    assert len(names(task="words")) == 4
    assert len(names(region="WORDS")) == 4
    assert names(prompt="sums/2") == [(4, "sums/2#0@3"), (4, "sums/2#1@3"), (2, "sums/2#0@1"), (2, "sums/2#1@1")]
    assert len(names(min_reward="0.5")) == 8
    assert len(names(max_reward="0.5", stop="length")) == 8
    assert names(min_length="5") == []
    assert [name for _, name in names(first="4", order="-reward")][:2] == ["sums/1#1@3", "sums/2#1@3"]
    for words in ({"first": "x"}, {"order": "text"}, {"outcome": "fine"}, {"cursor": "1"}, {"min_reward": "much"}):
        assert "error" in answer(board, "rollouts", run="shown", **words)


def test_a_search_that_takes_long_goes_on_where_it_stopped(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_pages, "PATIENCE", 0.0)
    page = answer(board, "rollouts", run="shown", prompt="nobody's")
    assert (page["rows"], page["next"], page["read"]) == ([], "3:0", [4, 4])


def test_a_group_and_its_rollouts(board: Board) -> None:
    group = answer(board, "group", run="shown", step=2, prompt="sums/2")
    assert [member["reward"] for member in group["members"]] == [0.0, 1.0]
    assert group["members"][1]["contributions"] == {"siblings": 0.3, "tree": 0.2}
    assert group["members"][1]["reward_parts"] == {"number": 1.0, "length": 0.5}
    rollout = answer(board, "rollout", run="shown", step=2, id="sums/2#1@1")
    assert rollout["tokens"]["logprobs"] == [-0.25] * 4
    assert rollout["tokens"]["sampler_entropies"] == [0.75] * 4
    assert rollout["tokens"]["token_advantages"] == [0.5] * 4
    assert [message["role"] for message in rollout["messages"]] == ["user", "assistant"]
    for words in ({"step": 2, "id": "nobody"}, {"step": 99, "id": "sums/2#1@1"}, {"step": -1, "id": "x"}, {"id": "x"}):
        assert "error" in answer(board, "rollout", run="shown", **words)


def test_several_turns_have_their_conversation_and_masked_tokens(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", turns=2)
    with Board(tmp_path / "runs", 0) as board:
        rollout = answer(board, "rollout", run="shown", step=1, id="sums/1#1@0")
    assert [message["role"] for message in rollout["messages"]] == ["user", "assistant", "user", "assistant"]
    assert rollout["tokens"]["mask"] == [True] * 4 + [False] + [True] * 4
    assert rollout["tokens"]["sampler_logprobs"][4] is rollout["tokens"]["sampler_entropies"][4] is None
    assert rollout["tokens"]["token_advantages"] == [0.5] * 4 + [None] + [0.5] * 4


def test_calls_of_tools_are_shown_and_a_damaged_message_is_not_lost() -> None:
    messages = [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "search", "arguments": {"q": "\u202ea"}}}],
        },
        {"role": "tool", "content": "nothing", "name": "search", "error": "timeout"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": "1"}}, 7, {}]},
        "no message",
    ]
    call, result, last = rollout_pages._messages(json.dumps(messages))
    assert call["calls"] == [{"name": "search", "arguments": '{"q": "\\u202ea"}'}]
    assert (result["name"], result["error"], result["calls"]) == ("search", "timeout", [])
    assert (last["content"], last["calls"]) == ("", [{"name": "add", "arguments": "1"}])
    assert rollout_pages._messages("[1, {") == rollout_pages._messages('{"a": 1}') == []


def test_regions_and_prompts_through_the_run(board: Board) -> None:
    value = answer(board, "regions", run="shown")
    assert value["by"] == "region"
    words = next(row for row in value["rows"] if row["name"] == "task is words")
    assert words["reward"] == [0.5, None, 0.5, None]
    assert words["expected"] == [0.25, None, 0.25, None]
    prompts = {row["prompt_id"]: row for row in answer(board, "prompts", run="shown")["rows"]}
    assert (prompts["sums/1"]["visits"], prompts["sums/1"]["rollouts"], prompts["sums/1"]["reward"]) == (4, 8, 0.5)
    assert "error" in answer(board, "tree", run="shown")
    assert spread(list(range(1000)), 5) == [0, 250, 500, 749, 999]


def test_a_growing_run_is_told_of(runs: Path, board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "EVERY", 0.05)
    monkeypatch.setattr(catalog, "FRESH", 0.0)
    assert answer(board, "run", run="shown")["rollout_steps"][-1] == 4
    with socket.create_connection(("127.0.0.1", board.port or 0), timeout=10) as client:
        lines = ("GET /api/changes HTTP/1.1", f"host: 127.0.0.1:{board.port}", f"authorization: Bearer {board.token}")
        client.sendall("\r\n".join((*lines, "", "")).encode())
        stream = client.makefile("rb")
        told = iter(stream.readline, b"")
        assert next(line for line in told if line.startswith(b"event:")).strip() == b"event: hello"
        add_step(runs / "shown", 5)
        make_run(runs, "new")
        changed: set[str] = set()
        for line in told:
            changed |= set(json.loads(line[6:])) if line.startswith(b"data: [") else set()
            if changed == {"shown", "new"}:
                break
        stream.close()
    assert answer(board, "run", run="shown")["rollout_steps"][-1] == 5
    assert answer(board, "rollouts", run="shown")["rows"][0]["step"] == 5


def test_damaged_and_foreign_runs_do_not_hide_the_others(runs: Path, board: Board) -> None:
    for name in ("garbled", "foreign", "empty", "not-text"):
        (runs / name / "rollouts").mkdir(parents=True)
        (runs / name / "config.toml").write_text("steps = 3\n[other]\nkey = [1, 2]\n")
    (runs / "garbled" / "metrics.sqlite").write_bytes(b"SQLite format 3\x00" + bytes(range(256)) * 40)
    with sqlite3.connect(runs / "foreign" / "metrics.sqlite") as database:
        database.execute("CREATE TABLE losses (epoch INTEGER)")
    database.close()
    (runs / "not-text" / "config.toml").write_bytes(b"\xff\xfe = [")
    pq.write_table(pa.table({"a": [1]}), parquet.path_of(runs / "foreign" / "rollouts", 1))
    listed = {run["name"]: run for run in answer(board, "runs")["runs"]}
    assert listed["shown"]["state"] == "stopped"
    for name in ("garbled", "foreign", "not-text"):
        assert listed[name]["state"] == "damaged"
        assert name in listed[name]["problem"]
    for name in ("garbled", "foreign", "empty", "not-text"):
        for question in ("run", "curves", "doctor", "rollouts", "regions", "prompts", "map", "parts"):
            assert isinstance(answer(board, question, run=name), dict)
    assert "no column rollout_id" in answer(board, "rollouts", run="foreign")["problems"][0]


def test_foreign_settings_and_a_foreign_step_spoil_nothing_else(runs: Path, board: Board) -> None:
    for name, text in (
        ("odd", 'steps = "many"\nmodel = 3\ndata = [1]\n'),
        ("odder", "steps = nan\n[data]\ntrain = 7\n"),
    ):
        make_run(runs, name)
        (runs / name / "config.toml").write_text(text)
    listed = {run["name"]: run for run in answer(board, "runs")["runs"]}
    assert listed["shown"]["state"] == "stopped"
    for name in ("odd", "odder"):
        assert listed[name]["state"] == "damaged"
        assert "no settings of a run" in answer(board, "run", run=name)["problem"]
        assert answer(board, "rollout", run=name, step=4, id="sums/1#0@3")["tokens"]["ids"]
    foreign = pa.table({"rollout_id": [1, 2], "reward": ["a", "b"], "step": ["x", "y"]})
    pq.write_table(foreign, parquet.path_of(runs / "shown" / "rollouts", 4))
    assert answer(board, "regions", run="shown")["rows"]
    assert answer(board, "prompts", run="shown")["rows"]
    assert len(answer(board, "map", run="shown")["prompts"]) == 3
    page = answer(board, "rollouts", run="shown")
    assert {row["step"] for row in page["rows"]} == {1, 2, 3}
    assert len(page["problems"]) == 1


def test_a_damaged_step_is_named_and_the_others_are_shown(runs: Path, board: Board) -> None:
    folder = runs / "shown" / "rollouts"
    whole = parquet.path_of(folder, 4).read_bytes()
    parquet.path_of(folder, 4).write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(parquet.path_of(folder, 3).read_bytes())
    flipped[len(flipped) // 3] ^= 0xFF
    parquet.path_of(folder, 3).write_bytes(flipped)
    (folder / ".tmp-step_000005.parquet-1").write_bytes(b"PAR1")
    page = answer(board, "rollouts", run="shown")
    assert {row["step"] for row in page["rows"]} >= {1, 2}
    assert "step_000004.parquet" in page["problems"][0] or "cannot be read" in page["problems"][0]
    assert "error" in answer(board, "group", run="shown", step=4, prompt="sums/1")
    assert answer(board, "regions", run="shown")["rows"]


def test_a_database_that_its_writer_has_locked(runs: Path, board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect
    monkeypatch.setattr(metrics.sqlite3, "connect", lambda *args, **named: connect(*args, **named | {"timeout": 0.05}))
    locked = connect(runs / "shown" / "metrics.sqlite", isolation_level=None)
    locked.execute("PRAGMA locking_mode = EXCLUSIVE")
    locked.execute("BEGIN EXCLUSIVE")
    try:
        assert "locked" in answer(board, "curves", run="shown")["error"]
        assert answer(board, "runs")["runs"][0]["state"] == "damaged"
        assert answer(board, "rollouts", run="shown")["rows"]
    finally:
        locked.close()
    with MetricsDB(runs / "shown" / "metrics.sqlite") as writer:  # an ordinary writer locks nobody out
        writer._db.execute("BEGIN IMMEDIATE")
        assert answer(board, "curves", run="shown")["metrics"]
        writer._db.execute("ROLLBACK")


def test_texts_of_megabytes_come_in_parts(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", steps=1, text="lorem " * 900_000, tokens=4000)
    with Board(tmp_path / "runs", 0) as board:
        status, _, text = ask(board, "/api/rollouts?run=shown")
        assert (status, len(text) < 10_000) == (200, True)
        group = answer(board, "group", run="shown", step=1, prompt="sums/1")
        assert group["members"][0]["characters"] == 5_400_000
        rollout = answer(board, "rollout", run="shown", step=1, id="sums/1#1@0")
        assert len(rollout["messages"][1]["content"]) == rollout_pages.TEXT
        assert (len(rollout["tokens"]["ids"]), rollout["tokens"]["count"]) == (rollout_pages.TOKENS, 4000)
        tail = answer(board, "rollout", run="shown", step=1, id="sums/1#1@0", **{"from": 3900})["tokens"]
        assert (tail["first"], len(tail["ids"])) == (3900, 100)
        whole = answer(board, "rollout", run="shown", step=1, id="sums/1#1@0", whole="1")
        assert len(whole["messages"][1]["content"]) == 5_400_000


def test_a_port_that_is_taken(runs: Path, board: Board) -> None:
    with pytest.raises(RunError, match=f"port {board.port} is in use.*--port"):
        Board(runs, board.port)
    with Board(runs) as first, Board(runs) as second:
        assert first.port != second.port


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no folder"):
        Board(tmp_path / "nowhere", 0)


def test_one_run_alone(runs: Path) -> None:
    make_run(runs, "other")
    with Board(runs / "shown", 0) as board:
        assert [run["name"] for run in answer(board, "runs")["runs"]] == ["shown"]
        assert board.address.endswith("#/run/shown")
        assert "error" in answer(board, "run", run="other")


def test_clients_that_hang_up_and_many_at_once(board: Board) -> None:
    for _ in range(20):
        client = socket.create_connection(("127.0.0.1", board.port or 0))
        client.sendall(f"GET /api/changes HTTP/1.1\r\nhost: 127.0.0.1:{board.port}\r\n".encode())
        client.close()
    answers: list[int] = []

    def read() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", board.port or 0, timeout=30)
        connection.request("GET", "/api/rollouts?run=shown", headers={"authorization": f"Bearer {board.token}"})
        answers.append(connection.getresponse().status)
        connection.close()

    threads = [threading.Thread(target=read) for _ in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 200


def test_a_long_curve_keeps_its_spikes() -> None:
    points = [(step, 0.0) for step in range(10_000)]
    points[5000] = (5000, 99.0)
    short = thinned(points, 100)
    assert len(short) <= 200
    assert (5000, 99.0) in short
    assert [step for step, _ in short] == sorted(step for step, _ in short)


def test_parts_of_the_reward_are_seen_together(runs: Path, board: Board) -> None:
    """Over the rollouts of early and late steps; one that does not vary has no correlation."""
    value = answer(board, "parts", run="shown")
    (pair,) = value["pairs"]
    assert (pair["first"], pair["second"]) == ("number", "length")
    assert pair["late"] == {"correlation": None, "rollouts": 4}  # the length is the same in all
    assert value["steps"] == {"early": [1, 1], "late": [4, 4]}


def test_stages_of_a_pipeline_are_runs_of_the_list(runs: Path, board: Board) -> None:
    make_run(runs / "r1", "cold")
    (runs / "shown" / "inner").mkdir()
    (runs / "shown" / "inner" / "config.toml").write_text("")  # a folder within a run is none
    names = [row["name"] for row in answer(board, "runs")["runs"]]
    assert names == ["r1/cold", "shown"]
    assert answer(board, "run", run="r1/cold")["steps"] == 4
    assert answer(board, "rollouts", run="r1/cold")["rows"]
    value = answer(board, "compare", runs="shown,r1/cold")
    assert [run["name"] for run in value["runs"]] == ["shown", "r1/cold"]
    assert (value["paired"][0]["first"], value["paired"][0]["second"]) == ("shown", "r1/cold")
    assert "error" in answer(board, "run", run="r1/../shown")


def test_a_fine_tuning_shows_its_loss_and_a_finished_run_its_own_steps(runs: Path, board: Board) -> None:
    run = make_run(runs, "tuned", steps=3)
    with sqlite3.connect(run / "metrics.sqlite") as database:
        database.execute("DELETE FROM metrics WHERE name LIKE 'reward/%'")
        database.executemany("INSERT INTO metrics (step, name, value) VALUES (?, 'loss', ?)", [(1, 2.0), (3, 0.5)])
    database.close()
    row = next(row for row in answer(board, "runs")["runs"] if row["name"] == "tuned")
    assert (row["reward"], row["loss"], row["spark"]) == (None, 0.5, [[1, 2.0], [3, 0.5]])
    assert (row["step"], row["steps"]) == (3, 3)
    assert answer(board, "curves", run="tuned")["metrics"]
