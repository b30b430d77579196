"""Decoding of one token a row through the layers of Llama and its relatives, with fewer and larger operations.

A small model decodes a token in tens of milliseconds, of which the calls of modules and of small operations are half.
Here queries, keys and values are one product, and so are gate and up; queries and keys are rotated together. Every
number is computed by the same operations in the same order as in transformers' modules, so the states are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaModel
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3Model

from coterie.policy.attention import ScoreRule
from coterie.policy.kv import DecodeLayout
from coterie.policy.prepack import Product, Products

DECODERS = (LlamaModel, MistralModel, Qwen2Model, Qwen3Model)
"""Decoders whose layers are `FusedDecoder`'s."""
LINEAR = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
LINEAR += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Norm:
    """Root mean square norm over the last axis."""

    weight: Tensor
    eps: float

    @classmethod
    def of(cls, module: Any) -> Norm:
        return cls(weight=module.weight.detach(), eps=module.variance_epsilon)

    def __call__(self, states: Tensor) -> Tensor:
        wide = states.to(torch.float32)
        variance = wide.pow(2).mean(-1, keepdim=True)
        return self.weight * (wide * torch.rsqrt(variance + self.eps)).to(states.dtype)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    """One decoder layer."""

    before_attention: Norm
    before_mlp: Norm
    qkv: Product
    out: Product
    gate_up: Product
    down: Product
    activation: Any
    query_norm: Norm | None
    key_norm: Norm | None
    heads: int
    """Of queries."""
    key_heads: int
    head_size: int
    rule: ScoreRule
    index: int

    @classmethod
    def of(cls, layer: Any, products: Products) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        size, norms = attention.head_dim, [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        return cls(
            before_attention=Norm.of(layer.input_layernorm),
            before_mlp=Norm.of(layer.post_attention_layernorm),
            qkv=products[attention.q_proj],
            out=products[attention.o_proj],
            gate_up=products[mlp.gate_proj],
            down=products[mlp.down_proj],
            activation=mlp.act_fn,
            query_norm=None if norms[0] is None else Norm.of(norms[0]),
            key_norm=None if norms[1] is None else Norm.of(norms[1]),
            heads=attention.q_proj.out_features // size,
            key_heads=attention.k_proj.out_features // size,
            head_size=size,
            rule=ScoreRule(attention.scaling, _window(attention)),
            index=attention.layer_idx,
        )

    def __call__(self, states: Tensor, cos: Tensor, sin: Tensor, layout: DecodeLayout) -> Tensor:
        """[n, D] → [n, D]; cos and sin [n, 1, head size]."""
        rows, size = states.shape[0], self.head_size
        heads = self.qkv(self.before_attention(states)).view(rows, -1, size)
        rotated = self.heads + self.key_heads
        both, value = heads[:, :rotated], heads[:, rotated:]
        if self.query_norm is not None and self.key_norm is not None:
            both = torch.cat([self.query_norm(both[:, : self.heads]), self.key_norm(both[:, self.heads :])], dim=1)
        both = both * cos + torch.cat((-both[..., size // 2 :], both[..., : size // 2]), dim=-1) * sin
        query, key = both[:, : self.heads, None], both[:, self.heads :, None]
        out = layout.attend(self.index, query, key, value[:, :, None], self.rule)
        states = states + self.out(out.reshape(rows, -1))
        gate, up = self.gate_up(self.before_mlp(states)).chunk(2, dim=-1)
        return states + self.down(self.activation(gate) * up)


def _window(attention: Any) -> int | None:
    """Sliding window of a layer, as its own code hands it to the attention function."""
    if isinstance(attention, LlamaAttention):  # whatever its config says
        return None
    if isinstance(attention, MistralAttention):
        return getattr(attention.config, "sliding_window", None)
    return attention.sliding_window


class FusedDecoder:
    """Final states of one new token a row.

    Args:
        decoder: one of `DECODERS`, see `fused_decoder`.
        products: of its linear layers.
    """

    def __init__(self, decoder: Any, products: Products) -> None:
        self.embed, self.rotary, self.norm = decoder.embed_tokens, decoder.rotary_emb, Norm.of(decoder.norm)
        self.layers = [Layer.of(layer, products) for layer in decoder.layers]

    def __call__(self, tokens: Tensor, positions: Tensor, layout: DecodeLayout) -> Tensor:
        """States [n, D] that the head is given.

        Args:
            tokens: [n] newest of each row.
            positions: [n, 1]
        """
        states = self.embed(tokens)
        cos, sin = self.rotary(states[:, None], positions)  # [n, 1, head size]
        for layer in self.layers:
            states = layer(states, cos, sin, layout)
        return self.norm(states)


def fused_decoder(decoder: Any, products: Products) -> FusedDecoder | None:
    """A `FusedDecoder` of a model's decoder; None where its layers are others, or have adapters."""
    if type(decoder) not in DECODERS:
        return None
    linear = [layer.get_submodule(name) for layer in decoder.layers for name in LINEAR]
    if not all(type(module) is nn.Linear and module in products for module in linear):
        return None
    siblings = [[linear[i + j] for j in part] for i in range(0, len(linear), 7) for part in ((0, 1, 2), (4, 5))]
    if not all(len({id(products[module]) for module in group}) == 1 for group in siblings):
        return None
    return FusedDecoder(decoder, products)
