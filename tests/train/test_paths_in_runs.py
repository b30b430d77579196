"""A run resumes, evaluates and chats from any folder, and after its project was moved."""

from __future__ import annotations

import contextlib
import shutil
import tomllib
from pathlib import Path

import pytest

from coterie import launch
from coterie.cli.main import main
from coterie.config.base import search_in
from runs_for_tests import fingerprint, make_model

SETTINGS = """
steps = 2
threads = 1
runs = "läufe"
[model]
name = "mein modell"
dtype = "float32"
[[data.train]]
type = "file"
path = "../daten/train.jsonl"
[[data.heldout]]
type = "python"
target = "fragen:rows"
[environment]
name = "gespräch:once"
max_tokens = 64
[sampling]
max_tokens = 8
[collect]
prompts_per_step = 2
group_size = 4
[[rewards.functions]]
name = "letters:likes_a"
[optim]
lr = 1e-2
[eval]
samples = 1
k = 1
[checkpoint]
every = 1
"""
LETTERS = '''
from fragen import WEIGHT

def likes_a(completions):
    """The share of the letter a, said aloud."""
    print("asked about", len(completions))
    return [WEIGHT * text.count("a") / max(1, len(text)) for text in completions]
'''
QUESTIONS = """
WEIGHT = 1.0

def rows():
    return [{"prompt": f"how many legs {k}?", "answer": str(k)} for k in range(50, 53)]
"""
ONCE = """
def once(prompt):
    said = yield prompt.messages
    print("heard", len(said))
"""
DECOY = "raise RuntimeError('this is another file of the same name')"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "mein projekt" / "ä"
    folder.mkdir(parents=True)
    (folder.parent / "daten").mkdir()
    rows = "".join(f'{{"prompt": "how many legs {k}?", "answer": "{k}"}}\n' for k in range(6))
    (folder.parent / "daten" / "train.jsonl").write_text(rows, encoding="utf-8")
    make_model(folder / "mein modell")
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "daten").mkdir(parents=True)
    for name, text in (("letters", LETTERS), ("fragen", QUESTIONS), ("gespräch", ONCE)):
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
        (elsewhere / f"{name}.py").write_text(DECOY, encoding="utf-8")
    (folder / "t.toml").write_text(SETTINGS, encoding="utf-8")
    monkeypatch.chdir(elsewhere)
    yield folder
    search_in(())


def test_a_run_does_not_depend_on_the_folder_it_is_started_from(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "@", str(project / "t.toml"), "--name", "größe"]) == 0
    run = project / "läufe" / "größe"
    stored = tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
    assert stored["runs"] == str(project / "läufe")
    assert stored["module_path"] == [str(project)]
    assert stored["model"]["name"] == str(project / "mein modell")
    assert stored["data"]["train"][0]["path"] == str(project.parent / "daten" / "train.jsonl")

    (log,) = (run / "logs").iterdir()
    text = log.read_text(encoding="utf-8")
    assert "letters:likes_a: asked about 8" in text
    assert "environment gespräch:once: heard" in text
    said = capsys.readouterr().out
    assert said.count("letters:likes_a prints; see the lines") == 1

    with contextlib.chdir("/"):
        assert main(["train", "@", str(run / "config.toml"), "--name", "again", "--steps", "3"]) == 0
        _set_steps(run, 3)
        assert main(["resume", str(run)]) == 0
        assert main(["eval", str(run)]) == 0
        assert launch.chat(str(run), max_tokens=4).reply("hello") is not None
    assert fingerprint(run)["weights"] == fingerprint(project / "läufe" / "again")["weights"]

    moved = tmp_path / "umgezogen"
    shutil.move(project.parent, moved)
    run = moved / "ä" / "läufe" / "größe"
    _set_steps(run, 4)
    assert main(["resume", "größe", "--runs", str(run.parent)]) == 0
    assert (run / "checkpoints" / "step_000004").is_dir()


def _set_steps(run: Path, steps: int) -> None:
    file = run / "config.toml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace(f"steps = {steps - 1}\n", f"steps = {steps}\n", 1), encoding="utf-8")
