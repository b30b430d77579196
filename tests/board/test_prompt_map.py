"""The map of prompts: axes against a reference, equal on every machine, and what came of each prompt by step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from shown_runs import PROMPTS, make_run, record

from coterie.board import prompt_map
from coterie.board.prompt_map import principal_plane
from coterie.board.rollout_pages import StepFiles
from coterie.runs import prompts, rollouts
from coterie.runs.prompts import StoredPrompt


def test_axes_are_those_of_the_covariance() -> None:
    vectors = np.random.default_rng(7).normal(size=(40, 6)) * [5, 3, 1, 1, 0.5, 0.1]
    places, shares = principal_plane(vectors)
    sizes, axes = np.linalg.eigh(np.cov(vectors, rowvar=False))
    for column in range(2):
        direct = (vectors - vectors.mean(axis=0)) @ axes[:, -1 - column]
        np.testing.assert_allclose(np.abs(places[:, column]), np.abs(direct), atol=1e-9)
    np.testing.assert_allclose(shares, sizes[::-1][:2] / sizes.sum(), rtol=1e-9)
    assert (places[np.argmax(np.abs(places), axis=0), [0, 1]] > 0).all()


def test_the_axes_do_not_turn_with_the_solver() -> None:
    vectors = np.random.default_rng(3).normal(size=(12, 5)).astype(np.float32)
    np.testing.assert_allclose(principal_plane(vectors)[0], principal_plane(vectors.astype(np.float64))[0], atol=1e-5)


@pytest.mark.parametrize("vectors", [np.zeros((4, 3)), np.ones((3, 1)), np.array([[1.0, 2.0]])])
def test_vectors_without_a_second_direction_have_a_map(vectors: np.ndarray) -> None:
    places, shares = principal_plane(vectors)
    assert np.isfinite(places).all()
    assert np.isfinite(shares).all()


def test_a_prompt_has_its_place_and_its_visits(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=4)
    value = prompt_map.prompt_map(StepFiles(), run)
    assert [row["id"] for row in value["prompts"]] == [PROMPTS[0], PROMPTS[2], PROMPTS[1]]
    first, words, _ = value["prompts"]
    assert first["visits"]["step"] == [1, 2, 3, 4]
    assert words["visits"]["step"] == [1, 3]
    assert first["visits"]["reward"] == [0.5] * 4
    assert first["visits"]["expected"] == [0.25] * 4
    assert first["visits"]["advantage"] == [0.0] * 4
    assert value["regions"][words["visits"]["region"][0]] == "task is words"
    assert value["steps"] == [1, 2, 3, 4]
    assert value["kind"] == "policy"
    assert sum(value["shares"]) == pytest.approx(1.0)


def test_embeddings_of_another_kind_or_length_are_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=2)
    odd = record("odd/1", 0, 3, text="x").prompt
    long = record("odd/2", 0, 3, text="x").prompt
    stored = [
        StoredPrompt(prompt=odd, kind="text", embedding=np.ones(4)),
        StoredPrompt(prompt=long, kind="policy", embedding=np.ones(9)),
    ]
    prompts.write_step(run / "prompts", 3, stored)
    value = prompt_map.prompt_map(StepFiles(), run)
    assert len(value["prompts"]) == 3
    assert value["left_out"] == 2


def test_a_large_run_is_thinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_map, "MOST", 5)
    run = make_run(tmp_path, steps=1)
    vectors = np.random.default_rng(0).normal(size=(30, 4))
    rows = [record(f"many/{k}", 0, 2, text="x") for k in range(30)]
    stored = [StoredPrompt(prompt=row.prompt, kind="policy", embedding=vectors[k]) for k, row in enumerate(rows)]
    prompts.write_step(run / "prompts", 2, stored)
    rollouts.write_step(run / "rollouts", 2, rows)
    value = prompt_map.prompt_map(StepFiles(), run)
    assert len(value["prompts"]) == 5
    assert value["left_out"] == 27


def test_a_run_without_embeddings_has_an_empty_map(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=1)
    for file in (run / "prompts").iterdir():
        file.unlink()
    assert prompt_map.prompt_map(StepFiles(), run)["prompts"] == []
