"""Exported folders: the numbers of the run, in the format that others open."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from coterie.cli.main import main
from coterie.config.schema import LoraConfig, ModelConfig
from coterie.config.toml import dumps
from coterie.data.chat import load_chat
from coterie.errors import ConfigError, ModelError, RunError
from coterie.policy.export import export
from coterie.policy.model import load
from coterie.runs import checkpoint
from coterie.runs.metrics import MetricsDB
from coterie.types import EvalResult, Interval
from tiny import tiny_tokenizer
from tiny_models import tiny_model

CPU = torch.device("cpu")
IDS = torch.arange(3, 40)[None]


def base_model(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    tokenizer = tiny_tokenizer()
    rope = {"rope_type": "default", "rope_theta": 500.0}
    model = tiny_model("llama", dtype=dtype, vocab_size=len(tokenizer), eos_token_id=2, rope_parameters=rope)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "LICENSE").write_text("Do as you like.")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    return folder


def a_run(root: Path, base: Path, lora: LoraConfig | None) -> Path:
    """A run of two checkpoints whose weights differ, as training leaves it."""
    run = root / "runs/words"
    (run / "checkpoints").mkdir(parents=True)
    settings: dict[str, Any] = {
        "steps": 4,
        "model": {"name": str(base)} | ({} if lora is None else {"lora": {"rank": lora.rank, "alpha": lora.alpha}}),
        "optim": {"lr": 1e-4},
        "data": {"train": [{"type": "file", "path": "/secret/place/words.jsonl"}]},
        "rewards": {"functions": [{"name": "exact"}]},
    }
    (run / "config.toml").write_text(dumps(settings))
    with MetricsDB(run / "metrics.sqlite") as database:
        for step, value in ((0, 0.25), (2, 0.5), (4, 0.75)):
            share = Interval(value=value, low=value - 0.1, high=value + 0.1)
            sizes: dict[str, Any] = {"prompts": 8, "samples": 4, "k": 4, "mean_length": 3.0, "truncated": 0.0}
            database.record_evals(
                [EvalResult(step=step, task="words", pass_at_1=share, pass_at_k=share, reward=share, **sizes)]
            )
    chat = load_chat(base)
    config = ModelConfig(name=str(base), lora=lora)
    policy = load(config, base, dtype=torch.float32, device=CPU)
    generator = torch.Generator().manual_seed(0)
    for step in (2, 4):
        with torch.no_grad():
            for parameter in policy.parameters().values():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)

        def write(folder: Path) -> None:
            policy.save(folder / "model")
            chat.save(folder / "model")

        checkpoint.save(run / "checkpoints", step, write, {}, keep=2, run_id="x", config_hash="y")
    return run


def logits(folder: str | Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(input_ids=IDS).logits


def of_adapter(folder: Path) -> torch.Tensor:
    """By PEFT itself, without coterie."""
    from peft import AutoPeftModelForCausalLM

    with torch.no_grad():
        return AutoPeftModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)(input_ids=IDS).logits


@pytest.fixture
def lora_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return a_run(tmp_path, base_model(tmp_path / "base"), LoraConfig(rank=2, alpha=8))


def test_merged_is_the_adapter_on_its_base(lora_run: Path, tmp_path: Path) -> None:
    folder = export("words", tmp_path / "out/merged")
    assert folder == tmp_path / "out/merged"
    newest = lora_run / "checkpoints/step_000004/model"
    torch.testing.assert_close(logits(folder), of_adapter(newest), atol=2e-5, rtol=1e-5)
    assert (logits(folder) - logits(tmp_path / "base")).abs().max() > 0.1
    facts = json.loads((folder / "config.json").read_text())
    assert facts["rope_theta"] == 500.0
    assert facts["architectures"] == ["LlamaForCausalLM"]
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("how many")["input_ids"] == tiny_tokenizer()("how many")["input_ids"]
    older = export("words@2", tmp_path / "older")
    torch.testing.assert_close(
        logits(older), of_adapter(lora_run / "checkpoints/step_000002/model"), atol=2e-5, rtol=1e-5
    )
    assert sorted(path.name for path in tmp_path.glob("*")) == ["base", "older", "out", "runs"]  # no draft is left


def test_a_merged_base_of_few_digits_is_rounded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W + alpha / rank · B A in float32, by hand, then bfloat16: not a product of rounded factors."""
    monkeypatch.chdir(tmp_path)
    base = base_model(tmp_path / "base", torch.bfloat16)
    run = a_run(tmp_path, base, LoraConfig(rank=2, alpha=8, targets=["q_proj"]))
    weights = load_file(export("words", tmp_path / "merged") / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj"
    update = load_file(run / "checkpoints/step_000004/model/adapter_model.safetensors")
    up, down = (update[f"base_model.model.{name}.lora_{letter}.weight"].float() for letter in "BA")
    before = load_file(base / "model.safetensors")[f"{name}.weight"].float()
    assert weights[f"{name}.weight"].dtype == torch.bfloat16
    torch.testing.assert_close(weights[f"{name}.weight"], (before + 8 / 2 * up @ down).bfloat16(), atol=0, rtol=1e-2)
    facts = json.loads((export("words", tmp_path / "wide", dtype="float32") / "config.json").read_text())
    assert facts["dtype"] == facts["torch_dtype"] == "float32"


def test_an_adapter_names_its_base_wherever_it_lies(lora_run: Path, tmp_path: Path) -> None:
    folder = export("runs/words", tmp_path / "adapter", form="adapter")
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tmp_path / "base")
    torch.testing.assert_close(of_adapter(folder), of_adapter(lora_run / "checkpoints/step_000004/model"))
    again = load(ModelConfig(name="x", lora=LoraConfig(rank=2, alpha=8)), folder, dtype=torch.float32, device=CPU)
    assert again.parameters()
    merged = export(str(folder), tmp_path / "merged")
    torch.testing.assert_close(logits(merged), of_adapter(folder), atol=2e-5, rtol=1e-5)


def test_a_relative_base_is_looked_up_from_the_adapters_folder(lora_run: Path, tmp_path: Path) -> None:
    folder = export("words", tmp_path / "adapter", form="adapter")
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "../base"}))
    assert logits(export(str(folder), tmp_path / "merged")).isfinite().all()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "/gone/model"}))
    with pytest.raises(ModelError, match=r"the base model /gone/model of the adapter .* does not exist; write"):
        export(str(folder), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_run_of_all_weights_is_copied_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = a_run(tmp_path, base_model(tmp_path / "base"), None)
    folder = export("words", tmp_path / "out")
    exported, trained = (
        load_file(path / "model.safetensors") for path in (folder, run / "checkpoints/step_000004/model")
    )
    assert exported.keys() == trained.keys()
    assert all(torch.equal(exported[name], trained[name]) for name in exported)
    with pytest.raises(ModelError, match=r"words has no adapter: it is a model with all its weights; use --to merged"):
        export("words", tmp_path / "adapter", form="adapter")


def test_the_card_says_what_it_is_and_nothing_of_the_machine(lora_run: Path, tmp_path: Path) -> None:
    folder = export("words@2", tmp_path / "merged")
    card = (folder / "README.md").read_text()
    for line in (
        'library_name: "transformers"',
        'license: "apache-2.0"',
        "# words, step 2",
        "A LoRA adapter merged into `base`, trained with GRPO",
        "| words | 0 | 8 × 4 | 0.250 [0.150, 0.350] | 25.0 % [15.0, 35.0] | k = 4: 25.0 % [15.0, 35.0] |",
        "| words | 2 | 8 × 4 | 0.500 [0.400, 0.600] | 50.0 % [40.0, 60.0] |",
        "| optim.lr | 0.0001 |",
        "| model.lora.rank | 2 |",
        "| training data | words.jsonl |",
        "apache-2.0, that of the base model, whose text is in LICENSE.",
    ):
        assert line in card, line
    assert "75.0 %" not in card
    assert "/secret/place" not in card
    assert str(tmp_path) not in card
    assert (folder / "LICENSE").read_text() == "Do as you like."


def test_nothing_is_overwritten_and_nothing_half_written_is_left(
    lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("precious")
    with pytest.raises(RunError, match=r"mine exists, and an export never overwrites anything"):
        export("words", tmp_path / "mine")
    assert (tmp_path / "mine/thesis.txt").read_text() == "precious"

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("coterie.policy.export.publish_plain", full)
    with pytest.raises(RunError, match=r"cannot write .*out: No space left on device"):
        export("words", tmp_path / "out", form="adapter")
    assert sorted(path.name for path in tmp_path.glob("*")) == ["base", "mine", "runs"]
    with pytest.raises(ConfigError, match=r"expected --to merged, adapter or gguf"):
        export("words", tmp_path / "out", form="onnx")  # ty: ignore[invalid-argument-type]


def test_the_command(lora_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "words", "--to", "adapter", "mine"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "mine")
    assert tomllib.loads((lora_run / "config.toml").read_text())["steps"] == 4
    assert main(["export", "wrds", "other"]) == 2
    assert "(did you mean 'words'?)" in capsys.readouterr().err
    assert main(["export", "words", "mine"]) == 1
    assert "never overwrites" in capsys.readouterr().err
