"""How much of a completion repeats itself or its prompt, counted in n-grams of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

REPEATED = 3
"""Tokens of an n-gram that counts as said before."""
COPIED = 8
"""Tokens of an n-gram that counts as copied: shorter ones recur by chance, and a good answer names its question."""


def ngram_ids(tokens: Sequence[int] | NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """[max(0, len - n + 1)] a number for every n-gram, equal exactly where the n-grams are.

    Two overlapping windows of a width name the window that they cover together, so the width doubles in each round;
    nothing is hashed, so nothing collides.

    >>> ngram_ids([7, 8, 7, 8, 7], 2).tolist()
    [0, 1, 0, 1]
    """
    if n < 1:
        raise ValueError(f"n = {n}; an n-gram has at least one token")
    if len(tokens) < n:
        return np.empty(0, dtype=np.int64)
    ids = np.unique(np.asarray(tokens, dtype=np.int64), return_inverse=True)[1]
    width = 1
    while width < n:
        step = min(width, n - width)
        pairs = ids[:-step] * len(ids) + ids[step:]
        ids = np.unique(pairs, return_inverse=True)[1]
        width += step
    return ids


def repetition(tokens: Sequence[int], n: int = REPEATED) -> float:
    """1 - distinct / all n-grams; 0 for a completion shorter than n tokens.

    >>> repetition([1, 2, 3, 1, 2, 3])
    0.25
    """
    ids = ngram_ids(tokens, n)
    return 1.0 - len(np.unique(ids)) / len(ids) if len(ids) else 0.0


def copied(tokens: Sequence[int], prompt_tokens: Sequence[int], n: int = COPIED) -> float:
    """Share of the completion's n-grams that occur in the prompt; 0 for a completion shorter than n tokens.

    >>> copied([5, 6, 7, 9], [4, 5, 6, 7], n=2)
    0.6666666666666666
    """
    if len(tokens) < n or len(prompt_tokens) < n:
        return 0.0
    ids = ngram_ids([*prompt_tokens, *tokens], n)
    said = ids[len(prompt_tokens) :]
    asked = ids[: len(prompt_tokens) - n + 1]
    return float(np.isin(said, asked).mean())
