"""Location of the cache folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from coterie.data import assets


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COTERIE_HOME", "own")
    assert assets.home() == Path.cwd() / "own"
    monkeypatch.delenv("COTERIE_HOME")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert assets.home() == tmp_path / "coterie"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert assets.home() == Path.home() / ".cache" / "coterie"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert assets.home() == Path.home() / "Library" / "Caches" / "coterie"
