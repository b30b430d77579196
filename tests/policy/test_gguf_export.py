"""GGUF files: what transformers and coterie's own reader read from them is the model; what is uncertain is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from coterie.cli.main import main
from coterie.data import gguf as reader
from coterie.errors import ConfigError, ModelError, RunError
from coterie.policy import gguf_file
from coterie.policy.export import export
from tiny_models import tiny_model

IDS = torch.arange(3, 40)[None]
SPLIT = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
QWEN = {"type": "Split", "pattern": {"Regex": next(iter(gguf_file._SPLITS))}, "behavior": "Isolated", "invert": False}


def a_model(folder: Path, kind: str, **sizes: Any) -> Path:
    """A tiny model with a byte-level tokenizer that splits text as SmolLM's, or Qwen's."""
    alphabet = [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        "th",
        "the",
    ]
    vocabulary = {token: place for place, token in enumerate(alphabet)}
    core = Tokenizer(models.BPE(vocabulary, [("t", "h"), ("th", "e")]))
    digits = pre_tokenizers.Digits(individual_digits=True)
    core.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(alphabet[:3])
    rope = {"rope_type": "default", "rope_theta": 500.0}
    sizes |= {"vocab_size": len(vocabulary) + 3, "rope_parameters": rope}
    model = tiny_model(kind, dtype=torch.bfloat16, **sizes)
    model.save_pretrained(folder)
    facts = json.loads(core.to_str())
    if kind.startswith("qwen"):
        facts |= {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [QWEN, SPLIT]}, "normalizer": {"type": "NFC"}}
    (folder / "tokenizer.json").write_text(json.dumps(facts), encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}", encoding="utf-8")
    return folder


def written(folder: Path) -> Path:
    (file,) = folder.glob("*.gguf")
    return file


def facts_of(file: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_transformers_reads_the_model_back(kind: str, tmp_path: Path) -> None:
    # Of Qwen 3, transformers takes heads of 128 for granted and reads no other size from the file.
    source = a_model(tmp_path / "model", kind, **({"head_dim": 128} if kind == "qwen3" else {}))
    folder = export(str(source), tmp_path / "out", form="gguf", dtype="float32")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    back = AutoModelForCausalLM.from_pretrained(folder, gguf_file=written(folder).name, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(back(IDS).logits, model(IDS).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["smollm", "qwen2"])
def test_our_own_reader_gives_the_same_weights_and_tokenizer(kind: str, tmp_path: Path) -> None:
    source = a_model(tmp_path / "model", kind)
    folder = export(str(source), tmp_path / "out", form="gguf")
    (tmp_path / "back").mkdir()
    told: list[tuple[int, int]] = []
    reader.convert(written(folder), tmp_path / "back", lambda *counts: told.append(counts))
    assert told[-1][0] == told[-1][1] > told[0][0]
    models_ = [AutoModelForCausalLM.from_pretrained(x, dtype=torch.float32) for x in (source, tmp_path / "back")]
    with torch.no_grad():
        first, second = (model(IDS).logits for model in models_)
    torch.testing.assert_close(second, first, atol=2e-3, rtol=1e-2)
    weights, back = (load_file(place / "model.safetensors") for place in (source, tmp_path / "back"))
    assert weights.keys() == back.keys()
    for name, tensor in weights.items():  # a bfloat16 near 0 is rounded by float16
        torch.testing.assert_close(back[name], tensor, atol=1e-6, rtol=2**-8)
    text = "the 12 thethe <|im_end|>! It's\n\n e\u0301"
    first, second = (Tokenizer.from_file(str(place / "tokenizer.json")) for place in (source, tmp_path / "back"))
    assert first.encode(text).ids == second.encode(text).ids
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert tokenizer.encode(text) == first.encode(text).ids
    facts = facts_of(written(folder))
    assert facts["tokenizer.chat_template"] == "{{ messages[0]['content'] }}"
    assert (facts["tokenizer.ggml.eos_token_id"], facts["tokenizer.ggml.add_bos_token"]) == (2, False)
    assert facts["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]
    assert facts["tokenizer.ggml.token_type"][-1] == 5


@pytest.mark.parametrize(("dtype", "kinds"), [("auto", {"F16"}), ("bfloat16", {"BF16"}), ("q8_0", {"Q8_0", "F16"})])
def test_matrices_have_the_format_that_is_asked_for(dtype: str, kinds: set[str], tmp_path: Path) -> None:
    source = a_model(tmp_path / "model", "llama")  # rows of 32 and of 48, which Q8_0 cannot hold
    folder = export(str(source), tmp_path / "out", form="gguf", dtype=dtype)
    tensors = gguf.GGUFReader(written(folder)).tensors
    assert {tensor.tensor_type.name for tensor in tensors if tensor.name.count("norm") == 0} == kinds
    assert {tensor.tensor_type.name for tensor in tensors if "norm" in tensor.name} == {"F32"}
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", written(folder).name]
    assert "llama-cli" in (folder / "README.md").read_text(encoding="utf-8")


def test_an_adapter_is_merged_first(tmp_path: Path) -> None:
    from coterie.config.schema import LoraConfig, ModelConfig
    from coterie.policy.model import load

    base = a_model(tmp_path / "model", "llama")
    policy = load(
        ModelConfig(name=str(base), lora=LoraConfig(rank=2)), base, dtype=torch.float32, device=torch.device("cpu")
    )
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter.add_(0.05)
    policy.save(tmp_path / "adapter")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / "adapter" / name).write_bytes((base / name).read_bytes())
    merged = export(str(tmp_path / "adapter"), tmp_path / "merged", dtype="float32")
    folder = export(str(tmp_path / "adapter"), tmp_path / "out", form="gguf", dtype="float32")
    told = {tensor.name: tensor.data for tensor in gguf.GGUFReader(written(folder)).tensors}
    weights = load_file(merged / "model.safetensors")
    np.testing.assert_allclose(
        told["blk.0.attn_v.weight"], weights["model.layers.0.self_attn.v_proj.weight"].numpy(), atol=1e-6
    )


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"model_type": "gemma3_text"}, "knows models of llama, mistral, qwen2, qwen3, not of 'gemma3_text'"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1.0}}, "rotary scaling 'llama3'"),
        ({"use_sliding_window": True, "sliding_window": 8}, "a sliding window of 8"),
        ({"hidden_act": "gelu"}, "activation silu, not 'gelu'"),
    ],
)
def test_models_that_would_answer_otherwise_are_refused(change: dict[str, Any], error: str, tmp_path: Path) -> None:
    source = a_model(tmp_path / "model", "llama")
    config = json.loads((source / "config.json").read_text()) | change
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=error):
        gguf_file.write(source, tmp_path / "out.gguf", "float16", name="out")


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{**QWEN, "behavior": "Removed"}, SPLIT]}},
        {"normalizer": {"type": "Lowercase"}},
        {"model": {"type": "Unigram", "vocab": []}},
    ],
)
def test_tokenizers_that_would_split_otherwise_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    source = a_model(tmp_path / "model", "llama")
    facts = json.loads((source / "tokenizer.json").read_text()) | change
    (source / "tokenizer.json").write_text(json.dumps(facts))
    with pytest.raises(ModelError, match=r"llama\.cpp's converter"):
        gguf_file.write(source, tmp_path / "out.gguf", "float16", name="out")


def test_weights_that_the_format_cannot_hold(tmp_path: Path) -> None:
    source = a_model(tmp_path / "model", "llama")
    weights = load_file(source / "model.safetensors")
    for value, dtype, error in ((1e6, "float16", "beyond float16"), (float("nan"), "q8_0", "NaN or infinity")):
        weights["lm_head.weight"][0, 0] = value
        save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match=error):
            export(str(source), tmp_path / "out", form="gguf", dtype=dtype)
        assert not (tmp_path / "out").exists()


def test_a_file_that_reads_back_otherwise_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = a_model(tmp_path / "model", "llama")
    quantize = gguf.quants.quantize
    monkeypatch.setattr(gguf.quants, "quantize", lambda values, kind: quantize(values * 1.01, kind))
    with pytest.raises(RunError, match="reads back with an error"):
        export(str(source), tmp_path / "out", form="gguf")
    assert list(tmp_path.iterdir()) == [source]


def test_words_that_do_not_belong_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = a_model(tmp_path / "model", "llama")
    for form, dtype in (("merged", "q8_0"), ("gguf", "float64")):
        with pytest.raises(ConfigError, match=f"--to {form} --dtype {dtype}"):
            export(str(source), tmp_path / "out", form=form, dtype=dtype)
    assert main(["export", str(source), str(tmp_path / "new"), "--to", "gguf", "--dtype", "q8_0"]) == 0
    assert written(tmp_path / "new").name == "new-q8_0.gguf"
    assert str(tmp_path / "new") in capsys.readouterr().out
