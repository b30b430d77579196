"""Small random models of an architecture, on which a check of it costs milliseconds.

Every width is replaced by a small one, and every window by one shorter than the check's sequences, so that each branch
of the model's code is reached. What makes an architecture differ from others stays: the kinds of its layers, its rotary
embedding, its score caps, sinks and scalings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig

LAYERS = 6
"""At most; one of each kind of layer has to be among them."""
VOCABULARY = 128
WINDOW = 6
"""Tokens of a sliding window, and of other bounds on what a layer looks back at."""
SWITCH = 16
"""Tokens after which a rotary embedding changes, where it does."""

_WIDTHS: Mapping[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embedding_size", "embedding_dim", "emb_dim"), 64),
    **dict.fromkeys(("word_embed_proj_dim", "lru_width", "input_embedding_size"), 64),
    **dict.fromkeys(("output_embedding_size", "backbone_hidden_size", "router_hidden_size"), 64),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "dff"), 96),
    **dict.fromkeys(("feed_forward_size", "ffn_hidden_size", "dim_ff", "d_inner", "dense_intermediate_size"), 96),
    **dict.fromkeys(("intermediate_size_mlp",), 96),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("shared_intermediate_size", "moe_shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "num_decoder_attention_heads", "num_encoder_attention_heads"), 4),
    **dict.fromkeys(("swa_num_attention_heads", "num_heads", "linear_num_heads"), 4),
    # With few, a key's score is 0 under all of them, and which of the tied keys are kept depends on the row's length:
    **dict.fromkeys(("index_n_heads",), 32),
    **dict.fromkeys(("num_query_groups", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "d_head", "kv_channels", "dim_head", "attention_head_size", "swa_head_dim"), 16),
    **dict.fromkeys(("global_head_dim", "v_head_dim", "linear_head_dim", "index_head_dim", "cross_head_dim"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "rotary_dim"), 8),
    **dict.fromkeys(("qk_head_dim",), 16),
    **dict.fromkeys(("attention_head_dim",), 32),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "o_lora_rank", "adapter_rank", "laurel_rank", "d_rel"), 16),
    **dict.fromkeys(("hidden_size_per_layer_input", "hc_lowrank", "gated_norm_rank"), 16),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 16),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size", "state_size"), 8),
    **dict.fromkeys(("linear_num_value_heads",), 4),
    **dict.fromkeys(("linear_num_key_heads",), 2),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), 16),
    **dict.fromkeys(("n_mamba_heads",), 8),
    **dict.fromkeys(("mamba_dt_rank", "time_step_rank"), 4),
    **dict.fromkeys(("mamba_d_ssm",), 128),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size", "block_size"), 8),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "decoder_vocab_size", "audio_vocab_size"), VOCABULARY),
    **dict.fromkeys(("index_topk", "index_topk_blocks", "index_block_size"), 4),
    **dict.fromkeys(("encoder_hash_byte_group_vocab", "ngram_vocab_size_base"), 256),
}
"""Small width for each name of a width; 0 and None stay."""
_COUNTS: Mapping[str, int] = {
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("zero_expert_num", "mamba_n_groups", "n_groups", "mamba_ngroups", "o_groups"), 2),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "router_top_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"), 1),
    **dict.fromkeys(("max_window_layers", "split_ngram_parts", "num_layers_per_stack", "top_k_experts"), 2),
}
"""Upper bound for each name of a count."""
_MAMBA_HEADS = ("mamba_n_heads", "mamba_num_heads")
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "num_global_key_value_heads")
_LAYER_COUNTS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "decoder_layers",
    "encoder_layers",
    "num_decoder_layers",
    "num_encoder_layers",
    "num_blocks",
)
_WINDOWS = (
    "sliding_window",
    "sliding_window_size",
    "attention_window_size",
    "window_size",
    "local_attention",
    "attention_chunk_size",
    "keep_window_size",
)
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "model_max_length", "context_length")
_PERIODS: Mapping[str, int] = {
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "global_attn_every_n_layers": 2,
    "sliding_window_pattern": 2,
    "_sliding_window_pattern": 2,
    "no_rope_layer_interval": 2,
    "num_kv_shared_layers": 2,
}


def miniature(model: Any, *, switch: int = SWITCH, spread: float = 1.6) -> Any:
    """A float32 model of the class of `model` with few, narrow, random layers, on the CPU.

    The global random generator stays where it is.

    Args:
        switch: tokens after which its rotary embedding changes, where it does.
        spread: of the weights; see `build`.
    """
    return build(type(model), small(model.config, switch=switch), spread)


def build(architecture: Any, config: PreTrainedConfig, spread: float = 1.6) -> Any:
    """A random model, large enough in its weights that every part of it shows in the logits.

    Args:
        spread: a matrix with rows of n numbers has a standard deviation of `spread` / √n.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            model = architecture._from_config(config, attn_implementation="eager")
        finally:
            torch.set_default_dtype(default)
        model = model.float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, spread * parameter.shape[-1] ** -0.5)
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def small(config: PreTrainedConfig, *, switch: int = SWITCH) -> PreTrainedConfig:
    """Configuration of the same architecture with every width small."""
    fields = _small(config, switch)
    return type(config).from_dict(fields)


def _small(config: PreTrainedConfig, switch: int) -> dict[str, Any]:
    fields = config.to_dict()
    count = next((fields[name] for name in _LAYER_COUNTS if isinstance(fields.get(name), int)), 0)
    layers = _chosen(fields, count)
    out: dict[str, Any] = {}
    for name, value in fields.items():
        inner = getattr(config, name, None) if isinstance(value, Mapping) else None
        if name == "quantization_config":
            continue
        if isinstance(inner, PreTrainedConfig):
            out[name] = _small(inner, switch)
        elif name == "head_dim" and value is None and fields.get("num_attention_heads"):
            out[name] = _WIDTHS["head_dim"]  # the width of a head in the widths above
        elif value is None or isinstance(value, bool):
            out[name] = value
        elif name == "per_layer_config":  # layer → what differs from the rest, such as Gemma 4's wider heads
            wide = {int(layer): dict(part) for layer, part in value.items()}
            out[name] = {
                str(new): {key: 2 * _WIDTHS[key] if key in _WIDTHS else item for key, item in wide[old].items()}
                for new, old in enumerate(layers)
                if old in wide
            }
        elif name == "attention_hidden_size":
            out[name] = 64 * max(1, value // fields["hidden_size"])
        elif name in _LAYER_COUNTS:
            out[name] = len(layers)
        elif name in _KEY_HEADS:
            heads = max((fields[key] for key in ("num_attention_heads", "n_head") if fields.get(key)), default=value)
            out[name] = 1 if value == 1 else 4 if value == heads else 2
        elif name in _WINDOWS:
            out[name] = WINDOW
        elif name in _POSITIONS:
            out[name] = 256
        elif name == "original_max_position_embeddings":
            out[name] = switch
        elif name in ("rope_parameters", "rope_scaling"):
            out[name] = _rope(value, switch)
        elif name.endswith("token_id"):
            out[name] = {"bos_token_id": 1, "eos_token_id": 2}.get(name, 0)
        elif isinstance(value, list) and count and len(value) == count:
            out[name] = [value[layer] for layer in layers]
            if isinstance(value[0], int) and name in _WIDTHS:
                out[name] = [_WIDTHS[name]] * len(layers)
        elif name in _MAMBA_HEADS or (name == "num_heads" and "state_size" in fields):
            out[name] = 64 * (fields.get("mamba_expand") or fields.get("expand") or 2) // 16
        elif name == "head_dim" and value == fields.get("qk_rope_head_dim"):
            out[name] = _WIDTHS["qk_rope_head_dim"]
        elif name in _WIDTHS and isinstance(value, int):
            out[name] = _WIDTHS[name] if value else value
        elif name in _COUNTS and isinstance(value, int):
            out[name] = min(value, _COUNTS[name])
        elif name in _PERIODS and isinstance(value, int):
            out[name] = min(value, _PERIODS[name])
        else:
            out[name] = value
    return out


def _chosen(fields: Mapping[str, Any], count: int) -> list[int]:
    """Indices of the layers that stay: the first of every kind, then others in order, up to `LAYERS`."""
    lists = [value for name, value in fields.items() if isinstance(value, list) and count and len(value) == count]
    if not count:
        return []
    first: dict[str, int] = {}
    for layer in range(count):
        first.setdefault(repr([value[layer] for value in lists]), layer)
    chosen = list(first.values())[:LAYERS]
    others = [layer for layer in range(count) if layer not in chosen]
    return sorted(chosen + others[: max(0, min(4, count) - len(chosen))])


def _rope(value: Any, switch: int) -> Any:
    if not isinstance(value, Mapping):
        return value
    out = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            out[name] = _rope(item, switch)
        elif name == "original_max_position_embeddings" and item is not None:
            out[name] = switch
        elif name in ("short_factor", "long_factor") and isinstance(item, Sequence):
            out[name] = list(item)[:8]
        elif name == "mrope_section":
            out[name] = [4, 2, 2]
        else:
            out[name] = item
    return out
