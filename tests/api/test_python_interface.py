"""`import coterie`: objects in, the same runs out as from files and the command line."""

from __future__ import annotations

import datetime
import importlib
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
import torch
from typer.testing import CliRunner

import coterie
from coterie.api.functions import parts_of
from coterie.api.inputs import FOLDER, source_of
from coterie.cli.main import app
from coterie.config.load import load
from coterie.config.rewards import RewardConfig, RewardsConfig
from coterie.errors import ConfigError, DataError, RewardError, RunError
from coterie.rewards import by_value
from coterie.rewards.pool import Scorer
from coterie.types import Prompt
from runs_for_tests import fingerprint, make_model
from tiny import tiny_tokenizer
from tiny_models import tiny_model

ROWS = [{"prompt": f"how many legs {k}?", "answer": str(k)} for k in range(12)]
HELDOUT = [{"prompt": f"how many legs {k}?", "answer": str(k)} for k in range(50, 54)]
SMALL: dict[str, Any] = {
    "threads": 1,
    "sampling": {"max_tokens": 8},
    "collect": {"prompts_per_step": 3, "group_size": 4},
    "engine": {"max_num_seqs": 5},
    "optim": {"lr": 1e-2},
    "eval": {"samples": 2, "k": 2},
    "quiet": True,
}
MODULE = (
    "def likes(completions, **columns):\n    return [text.count('a') / max(1, len(text)) for text in completions]\n"
)
TOML = """
name = "file"
steps = 2
threads = 1
model.name = "model"
data.train = [{ type = "file", path = "train.jsonl", task = "train" }]
data.heldout = [{ type = "file", path = "heldout.jsonl", task = "heldout" }]
rewards.functions = [{ name = "likes_a:likes" }]
sampling = { max_tokens = 8 }
collect = { prompts_per_step = 3, group_size = 4 }
engine = { max_num_seqs = 5 }
optim = { lr = 1e-2 }
eval = { samples = 2, k = 2 }
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def folder(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(model)
    by_value._payloads.clear()
    return tmp_path


def closure(letter: str) -> Any:
    def likes(completions: list[str], **columns: Any) -> list[float]:
        return [text.count(letter) / max(1, len(text)) for text in completions]

    return likes


def command(*words: str) -> str:
    """What a command line prints that is refused."""
    result = CliRunner().invoke(app, [*words])
    assert result.exit_code != 0
    return " ".join(f"{result.output} {result.exception}".split())


def without_names(facts: Mapping[str, Any]) -> dict[str, Any]:
    """A run's facts but for the names of the files that its prompts come from."""
    facts = {key: facts[key] for key in ("metrics", "evals", "items", "rollouts", "checkpoint", "weights")}
    return facts | {"rollouts": re.sub(r"file:[\w-]+\.jsonl", "file", repr(facts["rollouts"]))}


def test_objects_train_to_the_bits_of_a_file(folder: Path) -> None:
    (folder / "likes_a.py").write_text(MODULE)
    for name, rows in (("train", ROWS), ("heldout", HELDOUT)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.toml").write_text(TOML)
    watch = Watch()
    run = coterie.train("model", ROWS, closure("a"), heldout=HELDOUT, name="objects", steps=2, callback=watch, **SMALL)
    file = coterie.train(config="config.toml", quiet=True)
    assert without_names(fingerprint(run.path)) == without_names(fingerprint(file.path))
    assert watch.calls == ["start", "evaluate 0", "step 1", "step 2", "evaluate 2", "end objects"]
    check_run(run)
    check_the_command_line_refuses(run)
    check_resumes(run)


class Watch(coterie.Callback):
    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_start(self, info: Any) -> None:
        self.calls.append("start")

    def on_step(self, step: int, metrics: Mapping[str, float], sample: Any) -> None:
        assert metrics["reward/mean"] >= 0
        self.calls.append(f"step {step}")

    def on_evaluate(self, results: Any) -> None:
        self.calls.append(f"evaluate {results[0].step}")

    def on_end(self, run: Path, message: str) -> None:
        self.calls.append(f"end {run.name}")


def check_run(run: coterie.Run) -> None:
    metrics = run.metrics
    assert metrics["step"] == [1, 2]
    assert len(metrics["reward/mean"]) == 2
    assert run.rollouts().num_rows == 24
    table = run.rollouts(2)
    assert table.num_rows == 12
    assert set(table["task"].to_pylist()) == {"train"}
    assert [result.step for result in run.evaluations] == [0, 2]
    assert (run.model / "config.json").is_file()
    assert run.state == "finished"
    source = run.config.data.train[0]
    assert source.type == "file"
    assert Path(source.path).parent == run.path.parent / FOLDER
    check_notebook(run)
    assert coterie.load_run(run.path.name).path == run.path
    assert "finished, step 2 of 2" in repr(run)


def check_notebook(run: coterie.Run) -> None:
    page = run._repr_html_()
    ElementTree.fromstring(f"<div>{page}</div>")
    assert page.count("<polyline") == 1
    assert page.count("<circle") == len(run.evaluations)
    assert "held-out reward" in page
    assert page.count("how many legs") == 6  # of three prompts in the first and the last step
    assert "<|im_end|>" not in page  # escaped


def check_the_command_line_refuses(run: coterie.Run) -> None:
    by_value._payloads.clear()  # as in another process
    for verb in (["resume"], ["eval"]):
        text = command(*verb, run.path.name)
        assert "reward 'likes' is a function of a Python session" in text
        assert "coterie.resume(run, reward=likes)" in text


def check_resumes(run: coterie.Run) -> None:
    with pytest.raises(ConfigError, match=r"coterie\.resume\(run, reward=likes\)"):
        coterie.resume(run, quiet=True)
    with pytest.raises(RunError, match="not the function that the run was started with"):
        coterie.resume(run, closure("b"), quiet=True)
    with pytest.raises(RunError, match="reward has 2 functions"):
        coterie.resume(run, [closure("a"), "number"], quiet=True)
    before = run.evaluations
    again = coterie.evaluate(run, reward=closure("a"), quiet=True)
    assert [result.reward for result in again] == [before[-1].reward]
    other = coterie.evaluate(run, HELDOUT[:2], "number", quiet=True, settings={"eval.samples": 1, "eval.k": 1})
    assert [(result.prompts, result.samples) for result in other] == [(2, 1)]
    assert coterie.resume(run, closure("a"), steps=3, quiet=True).metrics["step"] == [1, 2, 3]
    assert isinstance(run.chat(max_tokens=2).reply("3?"), str)
    texts = coterie.sample(run, ["how many legs 3?", [{"role": "user", "content": "4?"}]], n=2, max_tokens=4)
    assert [len(completions) for completions in texts] == [2, 2]
    assert all(isinstance(text, str) for completions in texts for text in completions)


def test_a_function_of_a_module_goes_on_from_the_command_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = folder / "elsewhere"
    code.mkdir()
    (code / "letters_of_a_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(code))
    module = importlib.import_module("letters_of_a_module")
    run = coterie.train("model", ROWS, module.likes, steps=1, **SMALL)
    assert [part.name for part in run.config.rewards.functions] == ["letters_of_a_module:likes"]
    assert run.config.module_path == [str(code)]
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    sys.path[:] = [place for place in sys.path if place != str(code)]
    result = CliRunner().invoke(app, ["resume", str(run.path), "--steps", "2"])
    assert result.exit_code == 0, result.output
    assert run.metrics["step"] == [1, 2]


def test_a_loaded_model_is_saved_once(folder: Path) -> None:
    tokenizer: Any = tiny_tokenizer()
    loaded: Any = tiny_model(
        dtype=torch.float32,
        vocab_size=len(tokenizer),
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=2,
    )
    names = {coterie.train(loaded, ROWS, closure("a"), tokenizer=tokenizer, steps=1, **SMALL).config.model.name}
    names |= {coterie.train(loaded, ROWS, closure("a"), tokenizer=tokenizer, steps=1, **SMALL).config.model.name}
    (name,) = names
    assert Path(name).parent == folder / "runs" / FOLDER
    assert not list(Path(name).parent.glob("*.partial"))
    with pytest.raises(ConfigError, match="needs its tokenizer"):
        coterie.train(loaded, ROWS, closure("a"))
    with pytest.raises(ConfigError, match="has its own: leave it out"):
        coterie.train("model", ROWS, closure("a"), tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optim": {"lrr": 1}}, r"unknown setting optim\.lrr \(from coterie\.train\(\)\).*did you mean.*optim\.lr"),
        ({"settings": {"optim.lrr": 1}}, r"unknown setting optim\.lrr \(from coterie\.train\(\)\).*optim\.lr"),
        ({"train_dataset": ROWS}, "no argument 'train_dataset': here it is data"),
        ({"num_generations": 4}, r"unknown setting num_generations.*collect\.group_size"),
        ({"stepz": 3}, r"unknown setting stepz \(from coterie\.train\(\)\).*steps"),
        ({"optim": {"lr": "fast"}}, r"optim\.lr = .*fast.* \(from coterie\.train\(\)\): expected a number"),
        ({"optim": {"lr": object()}}, r"optim = .*not JSON"),
        ({"settings": {"data": []}}, "settings names 'data'"),
        ({"reward_weights": [1.0, 2.0]}, "2 weights for 1 rewards"),
        ({"reward": 3}, "reward = 3; expected a function"),
        ({"reward": "nubmer"}, "did you mean 'number'"),
    ],
)
def test_what_is_refused(given: dict[str, Any], message: str, folder: Path) -> None:
    call: dict[str, Any] = {"model": "model", "data": ROWS, "reward": "number", "quiet": True, **given}
    with pytest.raises(ConfigError, match=message):
        coterie.train(**call)
    assert not list((folder / "runs").glob("[!.]*"))


def test_settings_lie_over_the_file_and_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from coterie.config.load import load_with

    (folder / "config.toml").write_text("steps = 5\noptim.lr = 1e-3\noptim.warmup = 7\nruns = 'here'\n")
    env = {"COTERIE_OPTIM__LR": "2e-3", "COTERIE_SEED": "4"}
    config = load_with(Path("config.toml"), {"seed": 5}, {"optim.beta2": 0.9}, source="call", env=env).config
    assert (config.steps, config.optim.lr, config.optim.warmup, config.seed) == (5, 2e-3, 7, 5)
    assert config.runs == str(folder / "here")
    again = load_with(config, {"algorithm": "dapo"}, {}, source="call", env={}).config
    assert again == load(["@", "config.toml", "--algorithm", "dapo", "--seed", "5", "--optim.lr", "2e-3"
                          , "--optim.beta2", "0.9"], env={}).config  # fmt: skip


class Frame:
    """What pandas' table has."""

    iloc = None

    def to_dict(self, orient: str) -> list[dict[str, Any]]:
        assert orient == "records"
        return [{"prompt": "a", "size": np.int64(3), "missing": float("nan")}]


class Dataset:
    """What a table of `datasets` has."""

    def to_list(self) -> list[dict[str, Any]]:
        return [{"prompt": "a", "when": datetime.date(2020, 1, 2)}]


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        ([{"prompt": "a"}, {"prompt": "b\n\u2028"}], [{"prompt": "a"}, {"prompt": "b\n\u2028"}]),
        (({"prompt": letter} for letter in "ab"), [{"prompt": "a"}, {"prompt": "b"}]),
        (pa.table({"prompt": ["a"], "n": [None]}), [{"prompt": "a", "n": None}]),
        (Frame(), [{"prompt": "a", "size": 3, "missing": None}]),
        (Dataset(), [{"prompt": "a", "when": "2020-01-02"}]),
        ([{"prompt": [{"role": "user", "content": "a"}], "x": np.array([1.5])}],
         [{"prompt": [{"role": "user", "content": "a"}], "x": [1.5]}]),
    ],
)  # fmt: skip
def test_tables_become_a_file(data: Any, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    source = source_of(data, tmp_path, "train")
    assert source["task"] == "train"
    lines = Path(source["path"]).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert source_of(rows, tmp_path, "train") == source  # by content


def test_names_and_sources_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert source_of("rows.csv", tmp_path, "train") == {"type": "file", "path": str(tmp_path / "rows.csv")}
    assert source_of("gsm8k-100", tmp_path, "train") == {"type": "asset", "name": "gsm8k-100"}
    table = {"type": "hub", "name": "openai/gsm8k"}
    assert source_of(table, tmp_path, "train") == table


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "without rows"),
        (["how many?"], r'row 0 of train is a str, expected a dict of columns; write \{"prompt"'),
        ({"train": [], "test": []}, "a dict with keys train, test"),
        (3, "train is a int"),
        ([{"prompt": "a"}, {"prompt": object()}], "row 1 of train, column 'prompt'"),
        ([{"prompt": "a", "x": float("inf")}], "column 'x': inf is not a finite number"),
    ],
)
def test_data_that_is_refused(data: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        source_of(data, tmp_path, "train")


def test_rewards_in_every_form(monkeypatch: pytest.MonkeyPatch) -> None:
    short = lambda completions, **columns: [1.0 for _ in completions]  # noqa: E731
    long = lambda completions, **columns: [2.0 for _ in completions]  # noqa: E731
    parts, folders = parts_of([short, long, "number", {"name": closure("a"), "params": {"x": 1}}], [1, 0.5, 2, 3])
    assert [part.get("label") for part in parts] == ["lambda-1", "lambda-2", None, "likes"]
    assert [part["weight"] for part in parts] == [1.0, 0.5, 2.0, 3.0]
    assert all(re.fullmatch(r"python:\w+#[0-9a-f]{12}", part["name"]) for part in parts if part["name"] != "number")
    assert folders == []
    parts, folders = parts_of(make_model)
    assert parts == [{"name": "runs_for_tests:make_model"}]
    assert folders == [str(Path(__file__).parents[1])]


def test_the_hash_is_of_the_code_and_what_it_uses() -> None:
    names = [by_value.name_of(closure("a")), by_value.name_of(closure("a")), by_value.name_of(closure("b"))]
    assert names[0] == names[1] != names[2]
    code = "from coterie.rewards import by_value\nK = {value}\ndef f(completions):\n    return [K]\n"
    code += "print(by_value.name_of(f))"
    first, again, other = (
        subprocess.run([sys.executable, "-c", code.format(value=value)], capture_output=True, text=True).stdout
        for value in ({"x", "y", "z"}, {"x", "y", "z"}, {"x"})
    )
    assert first == again != other
    assert first.startswith("python:f#")


def test_workers_tell_rows_lines_and_deadlines() -> None:
    def fails(completions: list[str], **columns: Any) -> list[float]:
        return [1 / len(text) for text in completions]

    def hangs(completions: list[str], **columns: Any) -> list[float]:
        while "x" in completions:
            pass
        return [1.0 for _ in completions]

    names = [by_value.offer(fails), by_value.offer(hangs)]
    parts = [RewardConfig(name=name, label=name[7:12]) for name in names]
    prompts = [Prompt(id=str(k), messages=({"role": "user", "content": "?"},), answer=None, task="t") for k in range(3)]
    with Scorer(RewardsConfig(functions=parts, timeout_s=1)) as scorer:
        good, empty, slow = scorer.score(prompts, ["ab", "", "x"])
    assert good.reward == 1.5
    assert empty.error is not None
    assert "ZeroDivisionError" in empty.error
    assert re.search(r"in test_python_interface\.py, line \d+: return \[1 / len\(text\)", empty.error)
    assert slow.error is not None
    assert "did not return within 1 s" in slow.error


def test_what_cannot_be_sent_is_said() -> None:
    lock = __import__("threading").Lock()
    with pytest.raises(RewardError, match=r"reward 'lambda' cannot be sent to a worker process: TypeError.*lock"):
        by_value.offer(lambda completions: [bool(lock) for _ in completions])


def test_the_names_are_sorted_and_documented() -> None:
    assert coterie.__all__ == sorted(coterie.__all__)
    page = (Path(__file__).parents[2] / "docs/python.md").read_text(encoding="utf-8")
    for name in coterie.__all__:
        assert inspect.getdoc(getattr(coterie, name)), name
        assert f"`coterie.{name}" in page or f"`{name}" in page, name
    assert set(coterie.__all__) <= set(dir(coterie))
    with pytest.raises(AttributeError, match="no attribute 'trainer'"):
        _ = coterie.trainer


def test_the_import_is_light() -> None:
    code = (
        "import sys, coterie; coterie.train, coterie.Callback; sys.exit(bool({'torch', 'pyarrow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-W", "error", "-c", code]).returncode == 0


def test_the_package_of_the_loop_is_the_function() -> None:
    assert "Train a model" in str(coterie.train.__doc__)
    importlib.import_module("coterie.train.grpo")
    assert callable(coterie.train)
    assert list(inspect.signature(coterie.train).parameters)[:3] == ["model", "data", "reward"]
