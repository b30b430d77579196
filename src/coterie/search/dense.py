"""Dense retrieval: the cosine of a query and every passage, both embedded by the encoder asset (all-MiniLM-L6-v2)."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from coterie import machine
from coterie.data import assets
from coterie.errors import DataError
from coterie.search.backends import Row
from coterie.search.bm25 import best
from coterie.search.words import LONGEST

ENCODER = "minilm-l6"
TOKENS = 256
"""Of a passage; the rest is not read."""
BATCH_TOKENS = 2048
"""Tokens of a forward pass: more no longer fill the processor's caches."""


class Dense:
    """Stores an embedding a passage, in half precision."""

    name = "dense"
    schema = "CREATE TABLE IF NOT EXISTS vectors (id INTEGER PRIMARY KEY, content BLOB);"
    tables = ("vectors",)

    def add(self, database: sqlite3.Connection, rows: Sequence[Row]) -> None:
        vectors = encoder().embed([f"{title}. {text}" if title else text for _, title, text in rows])
        stored = zip((row[0] for row in rows), vectors.astype("<f2"), strict=True)
        database.executemany("INSERT INTO vectors VALUES (?, ?)", ((number, row.tobytes()) for number, row in stored))
        database.execute("INSERT OR REPLACE INTO facts VALUES ('encoder', ?)", (assets.ASSETS[ENCODER].sha256,))

    def remove(self, database: sqlite3.Connection, rows: Sequence[Row]) -> None:
        database.executemany("DELETE FROM vectors WHERE id = ?", [(row[0],) for row in rows])

    def finish(self, database: sqlite3.Connection) -> None:
        """Nothing: each passage was embedded when it was added."""

    def opened(self, database: sqlite3.Connection) -> DenseRanking:
        made_with = database.execute("SELECT value FROM facts WHERE key = 'encoder'").fetchone()
        if made_with != (assets.ASSETS[ENCODER].sha256,):
            raise DataError(f"this search index was embedded by another encoder than {ENCODER}; build it again")
        rows = database.execute("SELECT id, content FROM vectors ORDER BY id").fetchall()
        vectors = np.frombuffer(b"".join(content for _, content in rows), "<f2").astype(np.float32)
        return DenseRanking(np.array([number for number, _ in rows], np.int64), vectors.reshape(len(rows), -1))


class DenseRanking:
    """Compares a query with every passage.

    Args:
        vectors: [N, D] float32.
    """

    def __init__(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        self._ids, self._vectors = ids, vectors
        self._embedded = lru_cache(maxsize=1 << 14)(lambda query: encoder().embed([query])[0])

    def ranked(self, query: str, k: int) -> list[tuple[int, float]]:
        if not query.strip():
            return []
        return best(self._ids, self._vectors @ self._embedded(query[:LONGEST]), k)


class SentenceEncoder:
    """Mean-pooled, normalised last hidden states, as sentence-transformers makes them.

    Texts of one length share a forward pass: without padding nothing is computed in vain, attention needs no mask, and
    a text's embedding hardly depends on the others.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings [P, D] float32 of unit length."""
        import torch

        plain = [text.encode("utf-8", "replace").decode() for text in texts]
        tokens = self.tokenizer(plain, truncation=True, max_length=TOKENS)["input_ids"] if plain else []
        means = np.zeros((len(tokens), int(self.model.config.hidden_size)), np.float32)
        by_length: dict[int, list[int]] = {}
        for number, ids in enumerate(tokens):
            by_length.setdefault(len(ids), []).append(number)
        for length, numbers in by_length.items():
            size = max(1, BATCH_TOKENS // length)
            for start in range(0, len(numbers), size):
                batch = numbers[start : start + size]
                with torch.no_grad():
                    states = self.model(input_ids=torch.tensor([tokens[number] for number in batch])).last_hidden_state
                means[batch] = states.float().mean(1).numpy()
        return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)


@lru_cache(maxsize=1)
def encoder() -> SentenceEncoder:
    """The encoder asset, fetched if need be and loaded once a process.

    It computes in bfloat16 where the CPU does so natively, which is several times as fast. Its embeddings then have a
    cosine of 0.9999 with those of float32 (tests/search/test_backends.py).
    """
    return load_encoder("bfloat16" if machine.facts().native_bf16 else "float32")


def load_encoder(dtype: Literal["bfloat16", "float32"]) -> SentenceEncoder:
    """The encoder asset, computing in this number format."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = assets.ensure(ENCODER)
    return SentenceEncoder(
        AutoModel.from_pretrained(folder, local_files_only=True, add_pooling_layer=False, dtype=getattr(torch, dtype)),
        AutoTokenizer.from_pretrained(folder, local_files_only=True),
    )
