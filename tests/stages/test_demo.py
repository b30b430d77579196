"""The demo of several stages, on a tiny pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coterie import demo
from coterie.config.load import load_file
from coterie.config.pipeline import load_pipeline
from coterie.config.toml import dumps
from coterie.errors import ConfigError
from runs_for_tests import Watch, importable, make_config

TALKS = """
def rows():
    return [{"prompt": f"how many legs {k}?", "completion": "the a"} for k in range(60, 80)]
"""


def pipeline(root: Path) -> dict[str, Any]:
    """A fine-tuning on the rows of a function, whose settings stand in a file, in the pipeline and in its stage."""
    make_config(root)
    (root / "tiny/talks.py").write_text(TALKS, encoding="utf-8")
    shared = {
        "model": {"name": str(root / "model")}, "sampling": {"max_tokens": 8},
        "collect": {"prompts_per_step": 2, "group_size": 2}, "eval": {"samples": 1, "k": 1},
        "rewards": {"functions": [{"name": "tiny_rewards:likes_a"}]},
        "data": {"train": [{"type": "file", "path": str(root / "train.jsonl")}]},
    }  # fmt: skip
    (root / "shared.toml").write_text(dumps(shared), encoding="utf-8")
    unseen = {"data.heldout": [{"type": "file", "path": str(root / "heldout.jsonl")}]}
    talks = {"type": "python", "target": "talks:rows"}
    return {
        "files": ["shared.toml"],
        "settings": {"sampling": {"max_tokens": 6}},
        "evaluation": [{"name": "easy", "settings": unseen}],
        "stage": [{"name": "cold", "kind": "sft", "settings": {"steps": 1, "data.train": [talks]}}],
    }  # fmt: skip


def test_the_stages_and_what_each_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", importable(tmp_path))
    (tmp_path / "tiny").mkdir()
    source = tmp_path / "tiny" / demo.STAGES
    content = pipeline(tmp_path)
    (tmp_path / "shared.toml").rename(tmp_path / "tiny" / "shared.toml")
    source.write_text(dumps(content), encoding="utf-8")
    monkeypatch.setattr(demo, "recipe", lambda name: source)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    watch = Watch()
    flags = ["--threads", "1", "--sampling.top_k", "0", "--runs", "mine"]
    folder = demo.run_demo(watch, task="stages", seed=7, overrides=flags)
    assert folder == tmp_path / "elsewhere/mine/tiny-7"
    config = load_file(folder / "cold/config.toml").config
    assert (config.seed, config.threads, config.sampling.max_tokens) == (7, 1, 6)
    lines = [message for kind, message in watch.notes if kind == "demo"]
    assert lines[0].startswith("held-out easy: base ")
    assert " → cold " in lines[0]
    assert sum(line.startswith("prompt   how many legs 5") for line in lines) == 3
    assert sum(line == "  after cold" for line in lines) == 3
    assert lines[-1] == f"chat     coterie chat {folder / 'cold'}"
    again = Watch()
    assert demo.run_demo(again, task="stages", seed=7, overrides=flags) == folder
    assert again.steps == []
    stages, _ = load_pipeline(source)
    for name in ("cold", "base"):  # as if it had been stopped
        (folder / "records" / f"{name}.json").unlink()
        assert not any("chat" in line for line in demo.stages_summary(folder, stages))
    assert list(demo.stages_summary(folder, stages)) == []


def test_tasks() -> None:
    for file in demo.TASKS.values():
        assert demo.recipe(file).is_file()
    with pytest.raises(ConfigError, match="--task chess: there is no such demo; expected search or stages or sums"):
        demo.run_demo(Watch(), task="chess", seed=0, overrides=[])
