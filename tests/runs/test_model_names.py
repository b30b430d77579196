"""What a model's name means, and what is said when it means nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from coterie.data import hub_models
from coterie.errors import CheckpointError, ConfigError, ModelError, RunError
from coterie.runs import checkpoint
from coterie.runs.directory import find
from coterie.runs.models import ModelSource, locate, resolve


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run of two checkpoints, a run without one, a model and an adapter; it is the home, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("words", "empty"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.toml").write_text("")
    for step in (2, 4):

        def write(folder: Path) -> None:
            (folder / "model").mkdir()
            (folder / "model/config.json").write_text("{}")

        checkpoint.save(tmp_path / "runs/words/checkpoints", step, write, {}, keep=2, run_id="x", config_hash="y")
    for name, file in (("model", "config.json"), ("adapter", "adapter_config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "folder", "step"),
    [
        ("words", "runs/words/checkpoints/step_000004/model", 4),
        ("runs/words", "runs/words/checkpoints/step_000004/model", 4),
        ("~/runs/words", "runs/words/checkpoints/step_000004/model", 4),
        ("words@2", "runs/words/checkpoints/step_000002/model", 2),
        ("runs/words@2", "runs/words/checkpoints/step_000002/model", 2),
        ("runs/words/checkpoints/step_000002", "runs/words/checkpoints/step_000002/model", 2),
        ("runs/words/checkpoints/step_000002/model", "runs/words/checkpoints/step_000002/model", 2),
        ("model", "model", None),
        ("./model/", "model", None),
        ("~/model", "model", None),
        ("adapter", "adapter", None),
    ],
)
def test_a_folder(place: Path, name: str, folder: str, step: int | None) -> None:
    source = resolve(name)
    assert source.folder == place / folder
    assert source.name == locate(source) == str(place / folder)
    assert source.step == step
    assert source.run == (None if step is None else place / "runs/words")
    assert source.label == (Path(folder).name if step is None else "words")
    assert resolve(name, check_files=False) == source


def test_an_asset_and_an_id_of_the_hub(place: Path) -> None:
    assert resolve("smollm2-135m") == ModelSource(asset="smollm2-135m")
    assert resolve("minilm-l6", kind="encoder") == ModelSource(asset="minilm-l6")
    assert resolve("HuggingFaceTB/SmolLM2-135M-Instruct") == ModelSource(hub="HuggingFaceTB/SmolLM2-135M-Instruct")
    (place / "smollm2-135m").mkdir()
    (place / "smollm2-135m/config.json").write_text("{}")
    assert resolve("smollm2-135m").folder == place / "smollm2-135m"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "smollm2-135",
            r"no model 'smollm2-135' \(did you mean 'smollm2-135m'\?\); expected an asset \(smollm2-135m",
        ),
        ("word", r"no model 'word' \(did you mean 'words'\?\).*a run \(runs has empty, words\)"),
        ("nope", r"no model 'nope'; expected .* or an id owner/name of the Hugging Face hub"),
        ("/no/such/folder", r"the folder /no/such/folder does not exist; expected a model folder"),
        ("./word", r"the folder .*/word does not exist \(did you mean 'words'\?\)"),
        ("~/nothing", r"the folder .*/nothing does not exist"),
        ("runs/word", r"the folder .*/runs/word does not exist \(did you mean 'words'\?\)"),
        ("rnus/words", r"there is no folder 'rnus/words'; did you mean 'runs/words'\?.*hf download rnus/words"),
        ("a/b/c", r"the folder .*/a/b/c does not exist"),
    ],
)
def test_nothing_is_called_so(place: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(name)


def test_what_is_there_and_no_model(place: Path) -> None:
    with pytest.raises(ModelError, match=r"the asset 'gsm8k-100' is not a model: it holds 100 grade-school"):
        resolve("gsm8k-100")
    with pytest.raises(ModelError, match=r"the asset 'minilm-l6' is not a model"):
        resolve("minilm-l6")
    with pytest.raises(ModelError, match=r"runs has no config\.json: expected a model folder"):
        resolve("runs")
    with pytest.raises(RunError, match=r"empty has no checkpoint yet"):
        resolve("empty")
    with pytest.raises(RunError, match=r"words has no checkpoint of step 3; there are: 2, 4"):
        resolve("words@3")
    (place / "runs/words/checkpoints/step_000004/model/config.json").write_text("[]")
    assert resolve("words").step == 2  # walks back, as a resume does
    with pytest.raises(CheckpointError, match=r"step_000004.*take another step of 2, 4"):
        resolve("words@4")


def test_the_hub_is_asked_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network the loaders of transformers retry for more than a minute."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    asked: list[float] = []

    def refused(url: str, *, timeout: float) -> None:
        asked.append(timeout)
        raise OfflineModeIsEnabled("no network here")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", refused)
    with pytest.raises(ModelError, match=r"'some/model' is not in the hub's cache.*no network here.*coterie assets ls"):
        locate(resolve("some/model"))
    assert asked == [hub_models.TIMEOUT_S]
    copy = place / "cached"
    copy.mkdir()
    (copy / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(copy))
    assert locate(resolve("some/model")) == str(copy)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *_, **__: None)
    assert locate(resolve("some/model")) == "some/model"


def test_another_version_of_a_model_that_lies_here_is_no_misspelling(place: Path) -> None:
    for name in ("Qwen/Qwen3-1.7B", "Qwen/Qwen3-0.6B-Base"):
        (place / name).mkdir(parents=True)
        (place / name / "config.json").write_text("{}")
    assert resolve("Qwen/Qwen3-0.6B").hub == "Qwen/Qwen3-0.6B"


def test_many_runs_are_listed_the_nearest_and_the_newest_first(place: Path) -> None:
    for number in range(12):
        config = place / "many" / f"run-{number:03d}" / "config.toml"
        config.parent.mkdir(parents=True)
        config.write_text("")
        os.utime(config, (number, number))
    newest = ", ".join(f"run-{number:03d}" for number in range(11, 3, -1))
    with pytest.raises(RunError, match=rf"no run 'run-01' \(did you mean 'run-01\d'\?\).*{newest}, … and 4 more$"):
        find("run-01", Path("many"))
    with pytest.raises(ConfigError, match=rf"a run \(many has {newest}, … and 4 more\)"):
        resolve("nothing-near", Path("many"))
    with pytest.raises(RunError, match=r"'run-001@2' names the checkpoint of step 2; this command takes a whole run"):
        find("run-001@2", Path("many"))
