"""Calling pip, and question files of other projects."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from coterie.data import wheels
from coterie.data import wheels as questions
from coterie.errors import AssetError


class Pip:
    """A stand-in for the process: what it left in the folder, and how it ended."""

    def __init__(self, code: int, stderr: str, wheels_left: int, polls: int) -> None:
        self.code, self.stderr, self.wheels_left, self.polls = code, stderr, wheels_left, polls
        self.called: list[list[str]] = []
        self.killed = False
        self.returncode: int | None = None

    def __call__(self, command: list[str], *, env: dict[str, str], **options: object) -> Pip:
        self.called.append(command)
        self.folder, self.partial = Path(command[command.index("--dest") + 1]), Path(env["TMPDIR"])
        return self

    def communicate(self, timeout: float | None = None) -> tuple[None, str]:
        if self.polls > 0 and not self.killed:
            self.polls -= 1
            with (self.partial / "w0.whl").open("ab") as file:
                file.write(b"x" * 1000)
            raise subprocess.TimeoutExpired("pip", 0)
        self.returncode = self.code
        for number in range(self.wheels_left):
            (self.folder / f"w{number}.whl").touch()
        return None, self.stderr

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        self.killed = True


def pip(
    monkeypatch: pytest.MonkeyPatch, *, code: int = 0, stderr: str = "", wheels_left: int = 1, polls: int = 0
) -> Pip:
    process = Pip(code, stderr, wheels_left, polls)
    monkeypatch.setattr(subprocess, "Popen", process)
    return process


def test_pip_downloads_the_pinned_wheel_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    process = pip(monkeypatch)
    assert wheels.download("toy-bench", "1.0", tmp_path) == tmp_path / "w0.whl"
    (command,) = process.called
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "toy-bench==1.0"} <= set(command)
    assert not any("index" in word or "://" in word for word in command)


def test_what_has_arrived_is_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pip(monkeypatch, polls=3)
    sizes: list[int] = []
    wheels.download("toy-bench", "1.0", tmp_path, sizes.append)
    assert sizes == [1000, 2000, 3000]


def test_ctrl_c_ends_pip_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt(size: int) -> None:
        raise KeyboardInterrupt

    process = pip(monkeypatch, polls=3)
    with pytest.raises(KeyboardInterrupt):
        wheels.download("toy-bench", "1.0", tmp_path, interrupt)
    assert process.killed


PIP_TROUBLE: dict[str, tuple[dict[str, Any], str]] = {
    "nothing found": (
        {"code": 1, "stderr": "WARNING: Retrying\nERROR: No matching distribution found for toy-bench==1.0\n"},
        r"could not fetch toy-bench==1.0: ERROR: No matching .*Offline, .*PIP_FIND_LINKS",
    ),
    "no words": ({"code": 2}, "could not fetch toy-bench==1.0: no message"),
    "no wheel": ({"wheels_left": 0}, "pip left 0 wheels for toy-bench==1.0, expected exactly 1"),
    "hangs": ({"polls": 10**9}, "did not fetch toy-bench==1.0 within 1800 s; check the network"),
}


@pytest.mark.parametrize("name", PIP_TROUBLE)
def test_what_can_go_wrong_with_pip(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    behaviour, message = PIP_TROUBLE[name]
    process = pip(monkeypatch, **behaviour)
    if name == "hangs":
        monkeypatch.setattr("time.monotonic", itertools.count(step=600.0).__next__)
    with pytest.raises(AssetError, match=message):
        wheels.download("toy-bench", "1.0", tmp_path)
    assert process.killed == (name == "hangs")


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
