"""A GGUF file, which llama.cpp and what is built on it open, from a transformers model folder.

Written for the architectures and tokenizers whose counterparts in llama.cpp are certain; others are refused, since a
file with another rule for splitting text loads and answers worse. Format: the GGUF specification of ggml.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from coterie.data.gguf import CONTROL, SPLIT, UNUSED, USER_DEFINED
from coterie.errors import ConfigError, ModelError, RunError, install_command

FORMATS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "q8_0": "Q8_0"}
"""`--dtype` → ggml's type of matrices; vectors are always float32, as llama.cpp has them."""
ARCHITECTURES = {"llama": "LLAMA", "mistral": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}
"""`model_type` of transformers → architecture of llama.cpp."""
ROTATED = "LLAMA"
"""The architecture in which llama.cpp interleaves the two rotary halves of each head."""
_SPLITS = {SPLIT % "": "qwen2", SPLIT % "{1,3}": "llama-bpe"}
"""Regular expression of a tokenizer → llama.cpp's name of the rule."""
NORMAL = 1
"""ggml's token type of a word."""
BLOCK = 32
"""Weights that share a scale in Q8_0; a row of another length is kept in float16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """A transformers folder, read."""

    folder: Path
    config: Mapping[str, Any]
    architecture: str
    tokenizer: Mapping[str, Any]

    @property
    def layers(self) -> int:
        return int(self.config["num_hidden_layers"])

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Name and float32 values of every weight; of tied ones the embedding alone."""
        heads = {"q_proj": int(self.config["num_attention_heads"])}
        heads["k_proj"] = int(self.config.get("num_key_value_heads") or heads["q_proj"])
        for file in sorted(self.folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118 - it is no dict
                    if name == "lm_head.weight" and self.config.get("tie_word_embeddings"):
                        continue
                    values = weights.get_tensor(name).to(torch.float32).numpy()
                    part = name.split(".")[-2]
                    if self.architecture == ROTATED and part in heads:
                        values = _interleaved(values, heads[part])
                    yield name, values


def write(folder: Path, file: Path, dtype: str, *, name: str) -> None:
    """Write the model of a folder as one GGUF file, open it again, and compare every tensor.

    Args:
        dtype: of `FORMATS`.
        name: of the model, in the file's metadata.

    Raises:
        ConfigError: the package gguf is not installed.
        ModelError: an architecture, a rotary scaling or a tokenizer without a certain counterpart in llama.cpp, or
            weights that the format cannot hold.
        RunError: what was written reads back otherwise.
    """
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(f"--to gguf needs the package gguf: {install_command('train')}") from error
    source = _read(folder)
    kind = FORMATS[dtype]
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[source.architecture]])
    writer.add_name(name)
    writer.add_file_type({"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_sizes(writer, source)
    _add_tokenizer(writer, source)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[source.architecture], source.layers)
    for tensor, values in source.tensors():
        target = names.get_name(tensor, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ModelError(f"the tensor {tensor} of {folder} has no counterpart in llama.cpp; export it --to merged")
        stored = gguf.GGMLQuantizationType[_kind_of(values, kind)]
        writer.add_tensor(target, _quantized(values, stored, tensor), raw_dtype=stored)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    _compare(file, source, names)


def _read(folder: Path) -> _Source:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise ModelError(
            f"--to gguf knows models of {', '.join(ARCHITECTURES)}, not of {kind!r}; export it --to merged"
        )
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    scaling = rope.get("rope_type", rope.get("type", "default"))
    window = config.get("sliding_window") if config.get("use_sliding_window", kind == "mistral") else None
    if scaling != "default" or window:
        what = f"rotary scaling {scaling!r}" if scaling != "default" else f"a sliding window of {window}"
        raise ModelError(f"--to gguf does not write {what}; export it --to merged and use llama.cpp's converter")
    if config.get("hidden_act", "silu") != "silu":
        raise ModelError(f"--to gguf knows the activation silu, not {config['hidden_act']!r}; export it --to merged")
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ModelError(f"{folder} has no tokenizer.json; --to gguf writes byte-level BPE tokenizers alone")
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    return _Source(folder=folder, config=config, architecture=ARCHITECTURES[kind], tokenizer=tokenizer)


def _add_sizes(writer: Any, source: _Source) -> None:
    config = source.config
    heads = int(config["num_attention_heads"])
    head = int(config.get("head_dim") or config["hidden_size"] // heads)
    rope = config.get("rope_parameters") or {}
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(source.layers)
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_vocab_size(int(config["vocab_size"]))


def _add_tokenizer(writer: Any, source: _Source) -> None:
    """Vocabulary, merges, special tokens, the rule for splitting text, and the chat template."""
    from tokenizers import Tokenizer

    core, config = source.tokenizer["model"], source.config
    if core.get("type") != "BPE" or core.get("byte_fallback"):
        raise ModelError(
            f"--to gguf writes byte-level BPE tokenizers, this is {core.get('type')}; export it --to merged and use "
            "llama.cpp's converter"
        )
    size = int(config["vocab_size"])
    tokens, types = [f"[PAD{place}]" for place in range(size)], [UNUSED] * size
    for token, place in core["vocab"].items():
        tokens[place], types[place] = token, NORMAL
    for added in source.tokenizer.get("added_tokens", ()):
        tokens[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_split_rule(source.tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in core["merges"]])
    ids = {name: _first(config.get(f"{name}_token_id")) for name in ("bos", "eos", "pad")}
    for name, add in (("bos", writer.add_bos_token_id), ("eos", writer.add_eos_token_id)):
        if ids[name] is not None:
            add(ids[name])
    if ids["pad"] is not None:
        writer.add_pad_token_id(ids["pad"])
    began = Tokenizer.from_file(str(source.folder / "tokenizer.json")).encode("a").ids
    writer.add_add_bos_token(bool(began) and began[0] == ids["bos"])
    template = source.folder / "chat_template.jinja"
    if template.is_file():
        writer.add_chat_template(template.read_text(encoding="utf-8"))


def _first(token: Any) -> int | None:
    """The id, or the first of several."""
    return token[0] if isinstance(token, list) and token else None if isinstance(token, list) else token


def _split_rule(tokenizer: Mapping[str, Any]) -> str:
    """llama.cpp's name of the rule by which the tokenizer splits a text before its merges."""
    before = tokenizer.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    shapes = [
        tuple(sorted((key, str(value)) for key, value in step.items() if key != "trim_offsets")) for step in steps
    ]

    def shape(**step: Any) -> tuple[tuple[str, str], ...]:
        return tuple(sorted((key, str(value)) for key, value in step.items()))

    whole = shape(type="ByteLevel", add_prefix_space=False, use_regex=True)
    bytes_alone = shape(type="ByteLevel", add_prefix_space=False, use_regex=False)
    normalizer = (tokenizer.get("normalizer") or {}).get("type")
    if shapes == [whole] and normalizer is None:
        return "gpt-2"
    if shapes == [shape(type="Digits", individual_digits=True), whole] and normalizer is None:
        return "smollm"
    if len(steps) == 2 and shapes[1] == bytes_alone and steps[0].get("type") == "Split":
        rule = _SPLITS.get(steps[0].get("pattern", {}).get("Regex"))
        if rule is not None and steps[0].get("behavior") == "Isolated" and normalizer == {"qwen2": "NFC"}.get(rule):
            return rule
    raise ModelError(
        "--to gguf knows the tokenizers of GPT-2, SmolLM, Llama 3 and Qwen 2 and 3; this one splits text by another "
        f"rule ({json.dumps(before)[:300]}). Export it --to merged and use llama.cpp's converter"
    )


def _interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    """[H*D, …] → [H*D, …]: transformers keeps the two rotary halves of each head apart; llama.cpp interleaves them."""
    half = values.shape[0] // heads // 2
    return values.reshape(heads, 2, half, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def _kind_of(values: np.ndarray, kind: str) -> str:
    if values.ndim < 2:
        return "F32"
    return "F16" if kind == "Q8_0" and values.shape[-1] % BLOCK else kind


def _quantized(values: np.ndarray, kind: Any, name: str) -> np.ndarray:
    from gguf import quants

    if not np.isfinite(values).all():
        raise ModelError(
            f"the tensor {name} holds NaN or infinity: the training diverged; export an earlier checkpoint"
        )
    if kind.name == "F16" and values.size and float(np.abs(values).max()) > float(np.finfo(np.float16).max):
        raise ModelError(f"the tensor {name} reaches beyond float16; use --dtype bfloat16 or q8_0")
    return quants.quantize(np.ascontiguousarray(values), kind)


def _compare(file: Path, source: _Source, names: Any) -> None:
    """Open the file and compare every tensor with its source, within the rounding of its format."""
    from gguf import GGUFReader, quants

    stored = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    for name, values in source.tensors():
        tensor = stored.pop(names.get_name(name, try_suffixes=(".weight", ".bias")), None)
        if tensor is None:
            raise RunError(f"{file} reads back without the tensor {name}; export again")
        back = quants.dequantize(tensor.data, tensor.tensor_type).reshape(values.shape)
        largest = float(np.abs(values).max(initial=0.0))
        step = {"Q8_0": largest / 254 + largest / 2**11, "F16": largest / 2**11, "BF16": largest / 2**8}.get(
            tensor.tensor_type.name, 0.0
        )
        worst = float(np.abs(back - values).max(initial=0.0))
        if worst > 1.02 * step + 1e-7:
            raise RunError(f"{file}: the tensor {name} reads back with an error of {worst:.3g}; export again")
    if stored:
        raise RunError(f"{file} reads back with tensors that the model lacks: {', '.join(sorted(stored)[:3])}")
