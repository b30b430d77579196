"""Conversion of a GGUF file of a Llama-shaped model into a transformers folder in bfloat16.

transformers can read GGUF too, but parses the 98 000 strings of the vocabulary four times and drops the pre-tokenizer's
digit rule; this reads once, keeps the rule, and is several times faster. Format: the GGUF specification of ggml.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
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
_CONTROL = 3  # ggml's token type for special tokens


def convert(source: Path, folder: Path) -> None:
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
    _write_json(folder / "config.json", _config(facts, tied="lm_head.weight" not in tensors))
    _write_json(folder / "generation_config.json", _token_ids(facts))
    _write_tokenizer(facts, folder)
    _write_weights(facts, tensors, folder / "model.safetensors")


def _check(facts: Mapping[str, Any], name: str) -> None:
    expected = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.add_bos_token": False,
    }
    for key, value in expected.items():
        if facts.get(key, value) != value:
            raise AssetError(
                f"{name} has {key} = {facts[key]!r}, expected {value!r}; convert such a file with "
                "transformers' `from_pretrained(..., gguf_file=...)` and name the folder instead"
            )


def _config(facts: Mapping[str, Any], *, tied: bool) -> dict[str, Any]:
    heads = int(facts["llama.attention.head_count"])
    width = int(facts["llama.embedding_length"])
    theta = float(facts["llama.rope.freq_base"])
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": int(facts["llama.feed_forward_length"]),
        "num_hidden_layers": int(facts["llama.block_count"]),
        "num_attention_heads": heads,
        "num_key_value_heads": int(facts["llama.attention.head_count_kv"]),
        "head_dim": width // heads,
        "max_position_embeddings": int(facts["llama.context_length"]),
        # float32 stores 1e-5 as 9.9999997e-06; the shortest decimal of the same float32 is what was meant.
        "rms_norm_eps": float(f"{facts['llama.attention.layer_norm_rms_epsilon']:.7g}"),
        "rope_theta": theta,
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "vocab_size": len(facts["tokenizer.ggml.tokens"]),
        "dtype": "bfloat16",
        **_token_ids(facts),
    }


def _token_ids(facts: Mapping[str, Any]) -> dict[str, int]:
    keys = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    ids = {ours: facts.get(f"tokenizer.ggml.{theirs}_token_id") for ours, theirs in keys.items()}
    return {key: int(value) for key, value in ids.items() if value is not None}


def _write_tokenizer(facts: Mapping[str, Any], folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = facts["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in facts["tokenizer.ggml.merges"]]
    core = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    # `smollm`: every digit on its own, before GPT-2's byte-level rule.
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    kinds: list[int] = facts["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    core.save(str(folder / "tokenizer.json"))
    named = {key.replace("_id", ""): tokens[index] for key, index in _token_ids(facts).items()}
    unknown = facts.get("tokenizer.ggml.unknown_token_id")
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": int(facts["llama.context_length"]),
            "clean_up_tokenization_spaces": False,
            **named,
            **({} if unknown is None else {"unk_token": tokens[int(unknown)]}),
        },
    )
    template = facts.get("tokenizer.chat_template")
    if template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _write_weights(facts: Mapping[str, Any], tensors: Mapping[str, Any], path: Path) -> None:
    import torch
    from gguf.quants import dequantize
    from safetensors.torch import save_file

    heads = {"q_proj": int(facts["llama.attention.head_count"])}
    heads["k_proj"] = int(facts["llama.attention.head_count_kv"])
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        values = dequantize(tensor.data, tensor.tensor_type)
        part = name.split(".")[-2]
        if part in heads:
            values = _unpermute(values, heads[part])
        weights[name] = torch.tensor(values, dtype=torch.float32).to(torch.bfloat16)
    save_file(weights, path, metadata={"format": "pt"})


def _unpermute(values: Any, heads: int) -> Any:
    """[H*D, E] → [H*D, E]: GGUF interleaves the two rotary halves of each head; transformers keeps them apart."""
    half = values.shape[0] // heads // 2
    return values.reshape(heads, half, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)


def _name(name: str) -> str:
    parts = name.split(".")
    if parts[0] in _TOP and parts[1:] == ["weight"]:
        return f"{_TOP[parts[0]]}.weight"
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _LAYER and parts[3] == "weight":
        return f"model.layers.{parts[1]}.{_LAYER[parts[2]]}.weight"
    raise AssetError(f"the tensor {name!r} is not part of a Llama model; this GGUF file cannot be converted")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
