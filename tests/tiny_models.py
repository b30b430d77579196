"""Tiny random models of several architectures, made on the fly."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from coterie.policy.model import Policy

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

CONFIGS: dict[str, Any] = {
    "llama": lambda **kw: LlamaConfig(**SIZES | kw),
    "smollm": lambda **kw: LlamaConfig(
        **SIZES | {"hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 1} | kw,
        tie_word_embeddings=True,
    ),
    "qwen2": lambda **kw: Qwen2Config(**SIZES | kw),
    "qwen3": lambda **kw: Qwen3Config(**SIZES | kw),
    "mistral-window": lambda **kw: MistralConfig(**SIZES | kw, sliding_window=5),
    "gemma3": lambda **kw: Gemma3TextConfig(
        **SIZES | kw,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        query_pre_attn_scalar=8,
    ),
}


def tiny_model(
    kind: str = "llama", *, dtype: torch.dtype = torch.float64, seed: int = 0, **sizes: Any
) -> PreTrainedModel:
    """A random model with transformers' own attention (sdpa stays in float64, eager does not); weights large enough
    that tokens differ."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind](**sizes), attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.25)
    return model.to(dtype).eval()


def tiny_policy(
    kind: str = "llama", *, dtype: torch.dtype = torch.float64, seed: int = 0, lora: Any = None, **sizes: Any
) -> Policy:
    return Policy(tiny_model(kind, dtype=dtype, seed=seed, **sizes), name=f"tiny-{kind}", lora=lora)
