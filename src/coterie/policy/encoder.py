"""What a prompt means to a sentence encoder: a second, small and frozen model of the user's choice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from coterie.algo.precision import widened
from coterie.errors import ModelError
from coterie.policy.pretrained import pretrained, refuse_unsafe

LONGEST = 512
"""Tokens that are read of a text; fewer where the encoder was made for fewer."""


class Encoder:
    """Mean-pooled, normalised last hidden states, as sentence-transformers makes them of most encoders.

    One text at a time: no padding, so that a text means the same to the bit in whatever company it is read.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.name = tokenizer, name
        limits = (tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", LONGEST), LONGEST)
        self.longest = int(min(limits))

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """[P, D] float64, rows of length 1."""
        rows = [widened(self._states(text)).mean(0).numpy(force=True) for text in texts]
        means = np.stack(rows) if rows else np.zeros((0, int(self.model.config.hidden_size)))
        return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)

    def _states(self, text: str) -> torch.Tensor:
        """[T, D]"""
        found = self.tokenizer(text, truncation=True, max_length=self.longest, return_tensors="pt")
        ids = found["input_ids"].to(self.model.device)
        if not ids.numel():
            return torch.zeros(1, int(self.model.config.hidden_size))
        return self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]


def load_encoder(source: str, device: torch.device) -> Encoder:
    """An encoder from a local folder or by transformers id.

    Raises:
        ModelError: as for any model, and one whose states cannot be had of a text alone.
    """
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
