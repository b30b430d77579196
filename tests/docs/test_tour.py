"""docs/tour.ipynb goes from a reward function to a picture of the gain; its cells run here with a tiny model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from notebook_cells import TOUR, code_cells, run_cells

import coterie
from runs_for_tests import make_model


def test_the_tour_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOUR_MODEL", str(make_model(tmp_path / "model")))
    monkeypatch.setenv("TOUR_STEPS", "2")
    _, cells = code_cells(TOUR)
    assert len(cells) == 5
    *_, (_, picture) = run_cells(cells)
    assert isinstance(picture, coterie.Run)
    assert "<svg" in picture._repr_html_()
    assert len(picture.metrics["step"]) == 2


def test_the_tour_has_no_path_of_a_machine() -> None:
    assert not re.search(r"/(home|root|work|tmp|Users)/", TOUR.read_text(encoding="utf-8"))
