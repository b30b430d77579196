"""Runs with drafts: what is known of earlier attempts is part of a checkpoint, since a draft changes how sums round."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from coterie import launch
from coterie.build.run import engine_notes
from coterie.engines.attempt_history import FILE
from coterie.engines.drafts import Draft, Drafts
from coterie.engines.scripted import ScriptedEngine
from runs_for_tests import fingerprint, make_config, stop_at

CHANGED: dict[str, Any] = {
    "steps": 4,  # two epochs
    "engine": {"draft": "history"},
    "sampling": {"temperature": 0.1},
    "collect": {"prompts_per_step": 6},
    "eval": {"every": 0},
    "checkpoint": {"every": 2},
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    return tmp_path


def test_a_resumed_run_drafts_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drafts: list[tuple[list[int], list[int]]] = []
    judge = Drafts.judge

    def noted(self: Drafts, draft: Draft, sampled: list[int]) -> None:
        judge(self, draft, sampled)
        drafts.append((draft.tokens, sampled))

    monkeypatch.setattr(Drafts, "judge", noted)
    whole = launch.train(make_config(root, name="whole", **CHANGED))
    uninterrupted = list(drafts)
    assert sum(len(sampled) - 1 for _, sampled in uninterrupted) > 10, "guesses were accepted"
    cut = launch.train(make_config(root, name="cut", **CHANGED), stop_at(3, signal.SIGINT))
    drafts.clear()
    launch.resume(cut)
    assert drafts
    assert drafts == uninterrupted[-len(drafts) :]
    assert fingerprint(cut) == fingerprint(whole)
    last = f"checkpoints/{fingerprint(whole)['checkpoint']}/{FILE}"
    assert (cut / last).read_bytes() == (whole / last).read_bytes()


def test_an_engine_without_drafts_is_noted(root: Path) -> None:
    engine = ScriptedEngine(lambda request: [5])
    (note,) = engine_notes(make_config(root, **CHANGED), engine)
    assert note.startswith("engine.draft = 'history' has no effect: the engine makes no drafts")
    assert engine_notes(make_config(root), engine) == []
