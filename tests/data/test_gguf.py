"""A GGUF file made here, with the rotary permutation that ggml's writers apply, comes back as the model it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from coterie.data.gguf import _tie, convert
from coterie.errors import AssetError
from tiny import CHATML, tiny_tokenizer

gguf = pytest.importorskip("gguf")

HEADS, KEY_HEADS, WIDTH, INNER, LAYERS = 4, 2, 32, 64, 2
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tensors(vocabulary: int) -> dict[str, np.ndarray]:
    """Weights of a tied Llama in transformers' naming and layout, exact in bfloat16 and in Q8_0."""
    random = np.random.default_rng(0)
    small = WIDTH // HEADS * KEY_HEADS
    shapes = {"model.embed_tokens": (vocabulary, WIDTH), "model.norm": (WIDTH,)}
    for layer in range(LAYERS):
        part = f"model.layers.{layer}."
        shapes |= {part + "input_layernorm": (WIDTH,), part + "post_attention_layernorm": (WIDTH,)}
        shapes |= {part + f"self_attn.{name}": (WIDTH, WIDTH) for name in ("q_proj", "o_proj")}
        shapes |= {part + f"self_attn.{name}": (small, WIDTH) for name in ("k_proj", "v_proj")}
        shapes |= {part + f"mlp.{name}": (INNER, WIDTH) for name in ("gate_proj", "up_proj")}
        shapes |= {part + "mlp.down_proj": (WIDTH, INNER)}
    values = {name: random.integers(-127, 128, shape).astype(np.float32) for name, shape in shapes.items()}
    for value in values.values():
        value[..., 0] = 127  # so that every block of 32 has the scale 1
        value[..., 32:33] = 127
    return values


def permuted(values: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's convert_hf_to_gguf.py writes q and k."""
    rows, width = values.shape
    return values.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def write(path: Path, weights: dict[str, np.ndarray], tokenizer: Any, **changed: Any) -> Path:
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(vocabulary["vocab"], key=vocabulary["vocab"].__getitem__)
    writer = gguf.GGUFWriter(path, changed.get("architecture", "llama"))
    for key, value in {"context_length": 64, "embedding_length": WIDTH, "block_count": LAYERS}.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_uint32("llama.feed_forward_length", INNER)
    writer.add_uint32("llama.attention.head_count", HEADS)
    writer.add_uint32("llama.attention.head_count_kv", KEY_HEADS)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32("llama.rope.freq_base", 10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(changed.get("pre", "smollm"))
    writer.add_token_list(tokens)
    writer.add_token_types([3 if index < 3 else 1 for index in range(len(tokens))])
    writer.add_token_merges([" ".join(pair) for pair in vocabulary["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHATML)
    for name, value in weights.items():
        part, layer = name, ""
        if name.startswith("model.layers."):
            _, _, layer, part = name.split(".", 3)
        heads = {"self_attn.q_proj": HEADS, "self_attn.k_proj": KEY_HEADS}.get(part)
        stored = value if heads is None else permuted(value, heads)
        target = f"blk.{layer}.{NAMES[part]}.weight" if layer else f"{NAMES.get(part, part)}.weight"
        if stored.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(target, gguf.quants.quantize(stored, kind), raw_dtype=kind)
        else:
            writer.add_tensor(target, stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("converted")
    source = write(place.with_suffix(".gguf"), tensors(len(tiny_tokenizer())), tiny_tokenizer())
    convert(source, place)
    return place


def test_every_weight_comes_back_in_place(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    expected = tensors(len(tiny_tokenizer()))
    assert set(weights) == {f"{name}.weight" for name in expected}
    for name, value in expected.items():
        tensor = weights[f"{name}.weight"]
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor.float(), torch.from_numpy(value)), name


def test_transformers_opens_the_folder_as_it_is(folder: Path) -> None:
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, use_safetensors=True)
    model, info = loaded
    assert isinstance(model, LlamaForCausalLM)
    assert not any(info.values())
    assert model.dtype == torch.bfloat16
    assert (model.config.rms_norm_eps, model.config.tie_word_embeddings) == (1e-5, True)
    assert model.generation_config.eos_token_id == 2


def test_the_tokenizer_keeps_ids_template_and_the_digit_rule(folder: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tiny = tiny_tokenizer()
    assert tokenizer.encode("how many legs<|im_end|>") == tiny.encode("how many legs<|im_end|>")
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("\n\n12")) == ["Ċ", "Ċ", "1", "2"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.chat_template == CHATML


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"architecture": "mamba"},
            "has general.architecture = 'mamba', expected 'llama or qwen2'; convert such a file with",
        ),
        ({"pre": "qwen2"}, "has tokenizer.ggml.pre = 'qwen2', expected 'smollm'"),
    ],
)
def test_other_models_are_refused(changed: dict[str, str], message: str, tmp_path: Path) -> None:
    source = write(tmp_path / "other.gguf", {}, tiny_tokenizer(), **changed)
    with pytest.raises(AssetError, match=message):
        convert(source, tmp_path)


class Stored:
    """A tensor of a file."""

    def __init__(self, values: np.ndarray, kind: str) -> None:
        self.tensor_type = gguf.GGMLQuantizationType[kind]
        self.data = gguf.quants.quantize(values.astype(np.float32), self.tensor_type)
        self.n_bytes = self.data.nbytes


def test_one_matrix_that_is_stored_twice_is_tied() -> None:
    random = np.random.default_rng(0)
    matrix, other = random.normal(size=(2, 64, 32))
    coarse, fine = Stored(matrix, "Q5_0"), Stored(matrix, "Q8_0")
    stored = {"model.embed_tokens.weight": coarse, "lm_head.weight": fine}
    assert _tie(stored)
    assert stored == {"model.embed_tokens.weight": fine}
    assert _tie(stored)
    apart = {"model.embed_tokens.weight": coarse, "lm_head.weight": Stored(other, "Q8_0")}
    assert not _tie(apart)
    assert len(apart) == 2


def test_unknown_tensors_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "odd.gguf", {"rope_freqs": np.ones(4, np.float32)}, tiny_tokenizer())
    with pytest.raises(AssetError, match=r"the tensor 'rope_freqs.weight' is not part of a Llama or Qwen 2 model"):
        convert(source, tmp_path)


def test_what_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"not a model at all, only text")
    with pytest.raises(AssetError, match=r"x.gguf is no readable GGUF file"):
        convert(tmp_path / "x.gguf", tmp_path)
