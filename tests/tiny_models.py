"""Tiny random models of several architectures, made on the fly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from coterie.policy.model import Policy
from tiny import tiny_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _llama(**sizes: Any) -> Any:
    return LlamaConfig(**sizes)


def _gemma3(**sizes: Any) -> Any:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    return Gemma3TextConfig(**sizes, sliding_window=5, layer_types=kinds, query_pre_attn_scalar=8)


KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (_llama, {}),
    "smollm": (
        _llama,
        {"hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 1, "tie_word_embeddings": True},
    ),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {}),
    "mistral-window": (MistralConfig, {"sliding_window": 5}),
    "gemma3": (_gemma3, {}),
}


def tiny_model(
    kind: str = "llama", *, dtype: torch.dtype = torch.float64, seed: int = 0, **sizes: Any
) -> PreTrainedModel:
    """A random model with transformers' own attention (sdpa stays in float64, eager does not); weights large enough
    that tokens differ."""
    torch.manual_seed(seed)
    make, fixed = KINDS[kind]
    model = AutoModelForCausalLM.from_config(make(**SIZES | fixed | sizes), attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.25)
    return model.to(dtype).eval()


def tiny_policy(
    kind: str = "llama", *, dtype: torch.dtype = torch.float64, seed: int = 0, lora: Any = None, **sizes: Any
) -> Policy:
    return Policy(tiny_model(kind, dtype=dtype, seed=seed, **sizes), name=f"tiny-{kind}", lora=lora)


def tiny_encoder(folder: Path) -> Path:
    """A random BERT with a tokenizer, on disk."""
    tokenizer: Any = tiny_tokenizer()
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(tokenizer), intermediate_size=24, max_position_embeddings=32, **shape)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
