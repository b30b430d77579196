"""The command that error messages recommend for a missing package works where coterie is."""

from __future__ import annotations

import shlex
import sys
from importlib import metadata
from pathlib import Path

import pytest

import coterie.errors
from coterie.errors import install_command

ROOT = Path(__file__).parents[1]


def test_in_a_source_folder_it_names_the_folder_and_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, source in ((tmp_path, str(ROOT)), (ROOT, ".")):
        monkeypatch.chdir(folder)
        *tool, option, requirement = shlex.split(install_command("hub"))
        assert (option, requirement) == ("-e", f"{source}[hub]")
        assert "pip" in tool


def test_without_a_source_folder_it_names_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coterie.errors, "__file__", str(tmp_path / "site-packages" / "coterie" / "errors.py"))
    words = shlex.split(install_command("experience"))
    assert [word for word in words if word.startswith("duckdb")]
    assert not [word for word in words if "coterie" in Path(word).name.lower() and word != sys.executable]
    required = [name.partition(";")[0].strip() for name in metadata.requires("coterie") or [] if "'train'" in name]
    assert set(required) <= set(shlex.split(install_command("train")))


def test_without_pip_it_takes_uv_or_brings_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coterie.errors, "find_spec", lambda name: None)
    monkeypatch.setattr(coterie.errors, "which", lambda name: "/bin/uv")
    assert install_command("hub").startswith("uv pip install --python ")
    monkeypatch.setattr(coterie.errors, "which", lambda name: None)
    assert "-m ensurepip && " in install_command("hub")
