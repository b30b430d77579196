"""Prompt embeddings: mean hidden states of the policy half way up, or of a frozen sentence encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from coterie.algo.sampling import widened
from coterie.batches.batch import pack_prompts
from coterie.errors import ModelError
from coterie.policy.attention import PackedLayout
from coterie.policy.kernels import eager
from coterie.policy.model import Policy, pretrained, refuse_unsafe

_TOKENS = 2048
"""Of one forward pass."""


@torch.no_grad()
def embed_prompts(policy: Policy, prompts: Sequence[Sequence[int]]) -> np.ndarray:
    """Mean hidden states of each prompt after half of the layers, [P, D] float64.

    States in the middle say more of a text's meaning than the last ones, which are about the next token (Skean et al.
    2025, Layer by Layer, arXiv:2502.02013), and cost half as much.

    Args:
        prompts: token ids of each, as the policy is given them.
    """
    embeddings: list[np.ndarray] = []
    todo = list(prompts)
    with eager(policy):
        while todo:
            batch = [todo.pop(0)]
            while todo and sum(map(len, batch)) + len(todo[0]) <= _TOKENS:
                batch.append(todo.pop(0))
            embeddings += _pass(policy, batch)
    return np.stack(embeddings) if embeddings else np.zeros((0, policy.head.in_features))


def _pass(policy: Policy, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
    row = pack_prompts(prompts)
    tokens, positions = (torch.from_numpy(array).to(policy.device)[None] for array in (row.tokens, row.positions))
    hidden = widened(policy.mid_layer_states(tokens, positions, PackedLayout(row.segments, policy.device))[0])
    shared = hidden[: row.head].sum(0)
    return [
        ((shared + hidden[start : start + length].sum(0)) / (row.head + length)).numpy(force=True)
        for start, length in ((segment.start, segment.prompt) for segment in row.segments)
    ]


LONGEST = 512
"""Tokens that are read of a text; fewer where the encoder was made for fewer."""


class Encoder:
    """Mean-pooled, normalised last hidden states, as sentence-transformers makes them of most encoders.

    One text at a time: without padding its embedding does not depend on the other texts, to the last bit.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.name = tokenizer, name
        limits = (tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", LONGEST), LONGEST)
        self.longest = int(min(limits))

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Normalised embeddings [P, D] float64."""
        rows = [widened(self._states(text)).mean(0).numpy(force=True) for text in texts]
        means = np.stack(rows) if rows else np.zeros((0, int(self.model.config.hidden_size)))
        return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)

    def _states(self, text: str) -> torch.Tensor:
        """[T, D]"""
        encoding = self.tokenizer(text, truncation=True, max_length=self.longest, return_tensors="pt")
        ids = encoding["input_ids"].to(self.model.device)
        if not ids.numel():
            return torch.zeros(1, int(self.model.config.hidden_size))
        return self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]


def load_encoder(source: str, device: torch.device) -> Encoder:
    """An encoder from a local folder or by transformers id."""
    if Path(source).is_dir():
        refuse_unsafe(Path(source))
    model = pretrained(AutoModel, source, torch.float32, unused=("pooler.",)).to(device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        encoder = Encoder(model, tokenizer, name=source)
        embedded = encoder.embed(["What is 1 + 1?"])
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(
            f"{source!r} cannot embed a text: {reason}; expected an encoder with its tokenizer, such as BERT or MiniLM"
        ) from error
    if not np.isfinite(embedded).all():
        raise ModelError(f"{source!r} embeds a text as numbers that are not finite; its weights are damaged")
    return encoder
