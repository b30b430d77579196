"""Conversion of a GGUF file of a Llama (SmolLM) or Qwen 2 model into a transformers folder in bfloat16.

transformers can read GGUF too, but parses the 98 000 strings of the vocabulary four times and drops the pre-tokenizer's
digit rule; this reads once, keeps the rule, and is several times faster. Format: the GGUF specification of ggml.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from coterie.errors import AssetError, install_command

_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
CONTROL, USER_DEFINED, UNUSED = 3, 4, 5
"""ggml's token types of special tokens, of added ones that are not, and of rows without a token."""
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Rule of Qwen 2's tokenizer, with `%s` for nothing, and of Llama 3's, with a number of digits."""
SAME = 0.3
"""Two matrices that differ by less, as a share of their norm, are one matrix, rounded twice. Others differ by 1.4."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Architecture:
    """What the file of one architecture means."""

    model_type: str
    class_name: str
    pre: str
    """ggml's name of the rule by which the tokenizer splits a text."""
    interleaved: bool
    """The rotary halves of each head are interleaved."""


_ARCHITECTURES = {
    "llama": _Architecture(model_type="llama", class_name="LlamaForCausalLM", pre="smollm", interleaved=True),
    "qwen2": _Architecture(model_type="qwen2", class_name="Qwen2ForCausalLM", pre="qwen2", interleaved=False),
}

Told = Callable[[int, int], None]
"""Told (bytes of tensors that are converted, bytes in all)."""


def convert(source: Path, folder: Path, told: Told | None = None) -> None:
    """Write config, weights (safetensors, bf16), tokenizer and chat template of `source` into `folder`."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise AssetError(f"converting this asset needs the package gguf: {install_command('train')}") from error
    try:
        reader = GGUFReader(source)
    except (ValueError, OSError, IndexError) as error:
        raise AssetError(f"{source.name} is no readable GGUF file: {error}") from error
    facts = {name: field.contents() for name, field in reader.fields.items()}
    _check(facts, source.name)
    tensors = {_name(tensor.name): tensor for tensor in reader.tensors}
    tied = _tie(tensors)
    _write_json(folder / "config.json", _config(facts, tied=tied))
    _write_json(folder / "generation_config.json", _token_ids(facts))
    _write_tokenizer(facts, folder)
    _write_weights(facts, tensors, folder / "model.safetensors", told)


def _check(facts: Mapping[str, Any], name: str) -> None:
    kind = facts.get("general.architecture")
    expected = {
        "general.architecture": kind if kind in _ARCHITECTURES else " or ".join(_ARCHITECTURES),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _ARCHITECTURES[kind].pre if kind in _ARCHITECTURES else None,
        "tokenizer.ggml.add_bos_token": False,
    }
    for key, value in expected.items():
        if facts.get(key, value) != value:
            raise AssetError(
                f"{name} has {key} = {facts[key]!r}, expected {value!r}; convert such a file with "
                "transformers' `from_pretrained(..., gguf_file=...)` and name the folder instead"
            )


def _tie(tensors: dict[str, Any]) -> bool:
    """True if the output is the embedding: one matrix, also where the file has it twice, of which the finer is kept."""
    import numpy as np
    from gguf.quants import dequantize

    embedding, output = tensors["model.embed_tokens.weight"], tensors.get("lm_head.weight")
    if output is None:
        return True
    first, second = (dequantize(x.data[:1024], x.tensor_type).astype(np.float64) for x in (embedding, output))
    if np.linalg.norm(first - second) > SAME * np.linalg.norm(second):
        return False
    tensors["model.embed_tokens.weight"] = max(embedding, output, key=lambda x: x.n_bytes)
    del tensors["lm_head.weight"]
    return True


def _config(facts: Mapping[str, Any], *, tied: bool) -> dict[str, Any]:
    kind = facts["general.architecture"]
    architecture = _ARCHITECTURES[kind]
    facts = {key.removeprefix(f"{kind}."): value for key, value in facts.items()}
    heads, width = int(facts["attention.head_count"]), int(facts["embedding_length"])
    theta = float(facts["rope.freq_base"])
    return {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "hidden_size": width,
        "intermediate_size": int(facts["feed_forward_length"]),
        "num_hidden_layers": int(facts["block_count"]),
        "num_attention_heads": heads,
        "num_key_value_heads": int(facts["attention.head_count_kv"]),
        "head_dim": width // heads,
        "max_position_embeddings": int(facts["context_length"]),
        # float32 stores 1e-5 as 9.9999997e-06; the shortest decimal of the same float32 is what was meant.
        "rms_norm_eps": float(f"{facts['attention.layer_norm_rms_epsilon']:.7g}"),
        "rope_theta": theta,
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "hidden_act": "silu",
        **({"attention_bias": False, "mlp_bias": False} if kind == "llama" else _of_qwen()),
        "tie_word_embeddings": tied,
        "vocab_size": len(facts["tokenizer.ggml.tokens"]),
        "dtype": "bfloat16",
        **_token_ids(facts),
    }


def _of_qwen() -> dict[str, Any]:
    """Without a version, transformers takes a tokenizer with this rule for a broken one of Mistral's, and says so."""
    return {"use_sliding_window": False, "transformers_version": version("transformers")}


def _token_ids(facts: Mapping[str, Any]) -> dict[str, int]:
    keys = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    ids = {ours: facts.get(f"tokenizer.ggml.{theirs}_token_id") for ours, theirs in keys.items()}
    return {key: int(value) for key, value in ids.items() if value is not None}


def _write_tokenizer(facts: Mapping[str, Any], folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models

    tokens: list[str] = facts["tokenizer.ggml.tokens"]
    kinds: list[int] = facts["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ", 1)) for merge in facts["tokenizer.ggml.merges"]]
    vocabulary = {token: n for n, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != UNUSED}
    core = Tokenizer(models.BPE(vocabulary, merges))
    _set_split(core, facts["general.architecture"])
    core.decoder = decoders.ByteLevel()
    for token, number in vocabulary.items():
        if kinds[number] in (CONTROL, USER_DEFINED):
            special = kinds[number] == CONTROL
            core.add_tokens([AddedToken(token, special=special, normalized=False)])
    core.save(str(folder / "tokenizer.json"))
    named = {key.replace("_id", ""): tokens[index] for key, index in _token_ids(facts).items()}
    unknown = facts.get("tokenizer.ggml.unknown_token_id")
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": int(facts[f"{facts['general.architecture']}.context_length"]),
            "clean_up_tokenization_spaces": False,
            **named,
            **({} if unknown is None else {"unk_token": tokens[int(unknown)]}),
        },
    )
    template = facts.get("tokenizer.chat_template")
    if template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _set_split(core: Any, architecture: str) -> None:
    """Set the rule by which a text is split before merges."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    if architecture == "qwen2":
        core.normalizer = normalizers.NFC()
        rule = pre_tokenizers.Split(Regex(SPLIT % ""), "isolated")
        whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    else:  # `smollm`: every digit on its own, before GPT-2's byte-level rule.
        rule = pre_tokenizers.Digits(individual_digits=True)
        whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([rule, whole])


def _write_weights(facts: Mapping[str, Any], tensors: Mapping[str, Any], path: Path, told: Told | None) -> None:
    import torch
    from gguf.quants import dequantize
    from safetensors.torch import save_file

    kind = facts["general.architecture"]
    heads: dict[str, int] = {}
    if _ARCHITECTURES[kind].interleaved:
        heads["q_proj"] = int(facts[f"{kind}.attention.head_count"])
        heads["k_proj"] = int(facts[f"{kind}.attention.head_count_kv"])
    weights: dict[str, torch.Tensor] = {}
    done, total = 0, sum(int(tensor.n_bytes) for tensor in tensors.values())
    for name, tensor in tensors.items():
        values = dequantize(tensor.data, tensor.tensor_type)
        part = name.split(".")[-2]
        if part in heads:
            values = _unpermute(values, heads[part])
        weights[name] = torch.tensor(values, dtype=torch.float32).to(torch.bfloat16)
        done += int(tensor.n_bytes)
        if told is not None:
            told(done, total)
    save_file(weights, path, metadata={"format": "pt"})


def _unpermute(values: Any, heads: int) -> Any:
    """[H*D, E] → [H*D, E]: GGUF interleaves the two rotary halves of each head; transformers keeps them apart."""
    half = values.shape[0] // heads // 2
    return values.reshape(heads, half, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)


def _name(name: str) -> str:
    parts = name.split(".")
    if parts[0] in _TOP and parts[1:] == ["weight"]:
        return f"{_TOP[parts[0]]}.weight"
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _LAYER and parts[3] in ("weight", "bias"):
        return f"model.layers.{parts[1]}.{_LAYER[parts[2]]}.{parts[3]}"
    raise AssetError(f"the tensor {name!r} is not part of a Llama or Qwen 2 model; this file cannot be converted")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
