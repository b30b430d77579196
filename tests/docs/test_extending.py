"""Every kind of part that docs/extending.md adds is used as the page says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT, blocks_of, write_files

from coterie.config.algorithms import ALGORITHMS
from coterie.config.parts import ENGINES, ENVIRONMENTS, ESTIMATORS
from coterie.config.stop import KINDS
from coterie.rewards.registry import BUILT_IN
from runs_for_tests import make_model

PAGE = ROOT / "docs/extending.md"
SHORT = {"THREADS": "1", "SAMPLING__MAX_TOKENS": "6"}
DICTS: list[dict[str, Any]] = [BUILT_IN, ENVIRONMENTS, ESTIMATORS, ENGINES, KINDS, ALGORITHMS]
FILES = ["palindromes", "spelling", "ranks", "few"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's files and a tiny model."""
    write_files(tmp_path)
    make_model(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, value in SHORT.items():
        monkeypatch.setenv(f"COTERIE_{name}", value)
    for name in FILES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_the_examples_do_what_the_page_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = [dict(table) for table in DICTS]
    names: dict[str, Any] = {"__name__": "__main__"}
    try:
        for block in blocks_of(PAGE):
            if block.note == "session":
                exec(compile(block.text.replace("smollm2-135m", "tiny"), str(block), "exec"), names)
    finally:
        for table, rows in zip(DICTS, before, strict=True):
            table.clear()
            table.update(rows)
        for name in FILES:
            sys.modules.pop(name, None)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["[1.0, 0.0]", "It begins with O", "0.75"]
    assert set(map(float, lines[3].strip("[]").split(","))) <= {k / 7 for k in range(-7, 8)}
    assert lines[4] == "True"
    assert "ended after step 2 by stop rule short: completions hardly say anything" in lines[5]
    assert lines[6:] == ["0.28"]


def test_every_dict_is_in_the_table() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in ("BUILT_IN", "ENVIRONMENTS", "ESTIMATORS", "ENGINES", "KINDS", "ALGORITHMS"):
        assert f"`{name}`" in text
