"""The pages' Python sessions, run one block after the other on a tiny model."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT, blocks_of, write_files

from coterie.callbacks import Callback
from coterie.config.schema import RunConfig
from runs_for_tests import make_model

SHORT = {"MODEL__NAME": "tiny", "THREADS": "1", "STEPS": "1", "SAMPLING__MAX_TOKENS": "4", "EVAL__LIMIT": "4"}
PAGES = {"README.md": ["make_dates.py"], "docs/python.md": [], "docs/pipeline.md": []}


@pytest.mark.parametrize("page", PAGES)
def test_the_sessions_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path)
    make_model(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "dates", raising=False)
    for name, value in SHORT.items():
        monkeypatch.setenv(f"COTERIE_{name}", value)
    for script in PAGES[page]:
        exec((tmp_path / script).read_text(encoding="utf-8"), {})
    names: dict[str, Any] = {"__name__": "__main__"}
    sessions = [block for block in blocks_of(ROOT / page) if block.note == "session"]
    assert sessions
    for block in sessions:
        exec(compile(block.text.replace("smollm2-135m", "tiny"), str(block), "exec"), names)
    run = names["run"]
    assert run.state == "finished"
    assert run.evaluations[0].step == 0
    sys.modules.pop("dates", None)


def test_the_page_names_every_setting_section_and_callback() -> None:
    text = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    assert [name for name in vars(Callback) if name.startswith("on_") and f"`{name}(" not in text] == []
    for block in blocks_of(ROOT / "docs/python.md"):
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):  # coterie.train, not GRPOTrainer
                assert not {"model", "data"} & {keyword.arg for keyword in node.keywords} & set(RunConfig.model_fields)
    for key in re.findall(r'"(model|data)\.(\w+)', text):
        assert key[1] in RunConfig().model_dump()[key[0]]
