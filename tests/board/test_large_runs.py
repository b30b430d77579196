"""Pages of large runs are read in few passes and say the same as a pass for each step, metric or prompt does."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shown_runs import answer, make_run, record

from coterie.board import overview, prompt_map, region_pages, routes
from coterie.board.catalog import Catalogue
from coterie.board.rollout_pages import StepFiles
from coterie.board.routes import Answers, respond
from coterie.board.server import Board
from coterie.runs import inspect, parquet, prompts, rollouts
from coterie.runs.metrics import MetricsDB
from coterie.runs.prompts import StoredPrompt

MANY = 12
"""Steps of `many`."""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of steps whose prompts and rewards differ, each new prompt with an embedding."""
    root = tmp_path_factory.mktemp("many") / "runs"
    run = make_run(root, steps=1)
    generator = np.random.default_rng(5)
    stored: set[str] = {"sums/1", "words/1"}
    with MetricsDB(run / "metrics.sqlite") as database:
        for step in range(2, MANY + 1):
            names = [f"{generator.choice(['sums', 'words'])}/{generator.integers(6)}" for _ in range(4)]
            rows = [
                record(name, sample, step, text="x", reward=float(generator.random()))
                for name in dict.fromkeys(names)
                for sample in range(3)
            ]
            rollouts.write_step(run / "rollouts", step, rows)
            fresh = {row.prompt.id: row.prompt for row in rows if row.prompt.id not in stored}
            stored |= set(fresh)
            vectors = [
                StoredPrompt(prompt=prompt, kind="policy", embedding=generator.normal(size=4))
                for prompt in fresh.values()
            ]
            prompts.write_step(run / "prompts", step, vectors)
            database.record(step, {"reward/mean": float(generator.random()), "time/step": 1.0, f"odd/{step % 3}": 0.5})
    return run


def by_hand(run: Path, key: str) -> dict[str, dict[int, list[float]]]:
    """Rewards by a column's value and step, row by row."""
    cells: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for step in parquet.steps(run / "rollouts"):
        for row in StepFiles().narrow(run / "rollouts", step).to_pylist():
            cells[row[key]][step].append(row["reward"])
    return cells


def test_regions_are_those_of_a_pass_for_each_step(many: Path) -> None:
    value = region_pages.through_the_run(StepFiles(), many)
    expected = by_hand(many, "region")
    assert {row["filter"] for row in value["rows"]} == set(expected)
    for row in value["rows"]:
        steps = expected[row["filter"]]
        assert row["counts"] == [len(steps.get(step, ())) for step in value["steps"]]
        means = [pytest.approx(np.mean(steps[step])) if step in steps else None for step in value["steps"]]
        assert row["reward"] == means


def test_prompts_are_those_of_a_pass_for_each_step(many: Path) -> None:
    rows = region_pages.prompts_through_the_run(StepFiles(), many)["rows"]
    expected = by_hand(many, "prompt_id")
    assert len(rows) == len(expected)
    for row in rows:
        steps = expected[row["prompt_id"]]
        rewards = [reward for step in steps.values() for reward in step]
        assert (row["visits"], row["rollouts"]) == (len(steps), len(rewards))
        assert row["reward"] == pytest.approx(np.mean(rewards))
    assert [(-row["visits"], row["reward"]) for row in rows] == sorted((-row["visits"], row["reward"]) for row in rows)


def test_the_map_is_that_of_a_pass_for_each_prompt(many: Path) -> None:
    value = prompt_map.prompt_map(StepFiles(), many)
    table = prompts.read(many / "prompts")
    assert [row["id"] for row in value["prompts"]] == table["prompt_id"].to_pylist()
    vectors = np.asarray(table["embedding"].to_pylist(), dtype=np.float64)
    centred = vectors - vectors.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    places = np.array([[row["x"], row["y"]] for row in value["prompts"]])
    np.testing.assert_allclose(np.abs(places), np.abs(left[:, :2] * sizes[:2]), atol=2e-5)
    np.testing.assert_allclose(value["shares"], (sizes**2 / (sizes**2).sum())[:2], rtol=1e-9)
    expected = by_hand(many, "prompt_id")
    for row in value["prompts"]:
        visits = row["visits"]
        assert visits["step"] == sorted(expected[row["id"]])
        means = [np.mean(expected[row["id"]][step]) for step in visits["step"]]
        np.testing.assert_allclose(visits["reward"], means, atol=1e-4)
        assert {value["regions"][region] for region in visits["region"]} == {f"task is {row['task']}"}
    assert value["files"][0] == value["files"][1]


def test_of_many_files_of_prompts_some_are_read(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prompt_map.prompt_map(StepFiles(), many)
    monkeypatch.setattr(prompt_map, "FILES", 3)
    value = prompt_map.prompt_map(StepFiles(), many)
    assert value["files"] == [3, whole["files"][1]]
    assert 3 <= len(value["prompts"]) < len(whole["prompts"])
    assert {row["id"] for row in value["prompts"]} <= {row["id"] for row in whole["prompts"]}


def test_a_damaged_file_of_prompts_takes_no_others_along(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=2)
    prompts.write_step(run / "prompts", 3, [stored(f"more/{k}", k) for k in range(3)])
    parquet.path_of(run / "prompts", 2).write_bytes(b"PAR1 and no more")
    assert len(prompt_map.prompt_map(StepFiles(), run)["prompts"]) == 5


def stored(name: str, place: int) -> StoredPrompt:
    return StoredPrompt(prompt=record(name, 0, 1, text="").prompt, kind="policy", embedding=np.eye(4)[place])


@pytest.mark.parametrize("shape", [(30, 6), (6, 30), (4, 2), (2, 4)])
def test_axes_of_few_long_and_many_short_vectors(shape: tuple[int, int]) -> None:
    vectors = np.random.default_rng(1).normal(size=shape)
    places, shares = prompt_map.principal_plane(vectors)
    centred = vectors - vectors.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    expected = left[:, :2] * sizes[:2]
    if len(vectors) == 2:  # one direction alone
        expected[:, 1] = 0
    np.testing.assert_allclose(np.abs(places), np.abs(expected), atol=1e-6)
    np.testing.assert_allclose(shares, sizes[:2] ** 2 / (sizes**2).sum(), atol=1e-9)


def test_thinned_curves_are_those_of_a_pass_over_each_stretch() -> None:
    generator = np.random.default_rng(2)
    for count in (5, 100, 101, 777, 1000):
        points = [(3 * step, float(value)) for step, value in enumerate(generator.integers(0, 9, count))]
        size = -(-count // 50)
        expected: list[tuple[int, float]] = []
        for start in range(0, count, size):
            stretch = points[start : start + size]
            expected += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
        assert overview.thinned(points, 100) == (points if count <= 100 else expected)


def test_the_check_of_the_metrics_comes_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "runs", steps=12)
    with MetricsDB(run / "metrics.sqlite") as database:
        for step in (2, 11):
            database._db.execute("UPDATE metrics SET value = 9 WHERE step = ? AND name = 'entropy'", (step,))
        damaged = database.damage()
        parts: list[str] = []
        cursor, asked = "", 0
        while cursor is not None:
            part, cursor = database.damage_from(cursor, 0.0)  # one record each
            parts, asked = parts + part, asked + 1
    assert asked == 12 + 2 + 2  # steps, evaluations, events
    assert sorted(parts) == sorted(damaged) == ["metrics of step 11", "metrics of step 2"]
    monkeypatch.setattr(overview, "PATIENCE", 60.0)
    with Board(tmp_path / "runs", 0) as board:
        assert sorted(answer(board, "damage", run="shown")["damaged"]) == sorted(damaged)
        assert answer(board, "run", run="shown")["problem"] is None


def test_who_asks_at_the_same_time_waits_for_one_answer(many: Path) -> None:
    catalogue, made = Catalogue(many.parent), []

    def make(run: Path) -> str:
        time.sleep(0.05)
        made.append(run)
        return "answer"

    def fail(run: Path) -> str:
        raise ValueError("no answer")

    answers: list[str] = []
    threads = [threading.Thread(target=lambda: answers.append(catalogue.kept("shown", "what", make))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["answer"] * 8
    assert len(made) == 1
    with pytest.raises(ValueError, match="no answer"):
        catalogue.kept("shown", "other", fail)
    assert catalogue.kept("shown", "other", make) == "answer"
    assert not catalogue._making


def test_a_reader_of_a_run_does_not_change_it(many: Path) -> None:
    """SQLite makes an empty log for its readers: no answer is made anew, and no page is told of a change, for that."""
    catalogue = Catalogue(many.parent)
    before = catalogue.signature("shown")
    Answers(catalogue).run({"run": "shown"})
    catalogue._signatures.clear()
    assert catalogue.signature("shown") == before


def test_a_large_answer_is_written_once(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "LARGE", 10)
    answers, written = Answers(Catalogue(many.parent)), []
    plain = routes._json

    def counted(value: Any, status: int = 200) -> Any:
        written.append(value)
        return plain(value, status)

    monkeypatch.setattr(routes, "_json", counted)
    first = respond(answers, "curves", {"run": "shown"}).body
    assert respond(answers, "curves", {"run": "shown"}).body == first
    assert len(written) == 1
    for number in range(2 * routes.WRITTEN):
        respond(answers, "tree", {"run": "shown", "step": str(number)})
        respond(answers, "rollouts", {"run": "shown", "first": str(number)})
    assert len(answers.written) <= routes.WRITTEN


def test_bytes_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/one").write_bytes(b"1" * 10)
    (tmp_path / "a/b/two").write_bytes(b"2" * 5)
    (tmp_path / "link").symlink_to(tmp_path / "a/one")
    (tmp_path / "away").symlink_to(tmp_path / "nowhere")
    (tmp_path / "round").symlink_to(tmp_path)
    assert inspect._size(tmp_path) == 25
    assert inspect._size(tmp_path / "nowhere") == 0
