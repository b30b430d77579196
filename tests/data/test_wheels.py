"""Calling pip, and question files of other projects."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from coterie.data import questions, wheels
from coterie.errors import AssetError


def pip(
    monkeypatch: pytest.MonkeyPatch, *, code: int = 0, stderr: str = "", wheels_left: int = 1, timeout: bool = False
) -> list[list[str]]:
    called: list[list[str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        called.append(command)
        if timeout:
            raise subprocess.TimeoutExpired(command, 1)
        for number in range(wheels_left):
            (Path(command[command.index("--dest") + 1]) / f"w{number}.whl").touch()
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    return called


def test_pip_downloads_the_pinned_wheel_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called = pip(monkeypatch)
    assert wheels.download("toy-bench", "1.0", tmp_path) == tmp_path / "w0.whl"
    (command,) = called
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "toy-bench==1.0"} <= set(command)
    assert not any("index" in word or "://" in word for word in command)


PIP_TROUBLE: dict[str, tuple[dict[str, Any], str]] = {
    "nothing found": (
        {"code": 1, "stderr": "WARNING: Retrying\nERROR: No matching distribution found for toy-bench==1.0\n"},
        r"could not fetch toy-bench==1.0: ERROR: No matching .*Offline, .*PIP_FIND_LINKS",
    ),
    "no words": ({"code": 2}, "could not fetch toy-bench==1.0: no message"),
    "no wheel": ({"wheels_left": 0}, "pip left 0 wheels for toy-bench==1.0, expected exactly 1"),
    "hangs": ({"timeout": True}, "did not fetch toy-bench==1.0 within 1800 s; check the network"),
}


@pytest.mark.parametrize("name", PIP_TROUBLE)
def test_what_can_go_wrong_with_pip(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    behaviour, message = PIP_TROUBLE[name]
    pip(monkeypatch, **behaviour)
    with pytest.raises(AssetError, match=message):
        wheels.download("toy-bench", "1.0", tmp_path)


def test_without_pip_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AssetError, match=r"has no pip; run `.* -m ensurepip`"):
        wheels.download("toy-bench", "1.0", tmp_path)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("9 apples", "9"),
        ("1,200 (miles)", "1200"),
        ("2.5 hours", "2.5"),
        ("3:20 p.m.", "3:20 p.m."),
        ("yes", "yes"),
        ("2/3", "2/3"),
    ],
)
def test_asdiv_answers_lose_their_unit(answer: str, gold: str) -> None:
    row = questions.from_asdiv({"passage": "Two apples. ", "question": "How many?", "answer": answer})
    assert row == {"question": "Two apples. How many?", "answer": gold, "answer_with_unit": answer}
