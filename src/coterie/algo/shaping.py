"""Length penalty and repetition measures of completions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def soft_overlong(lengths: Sequence[int] | np.ndarray, *, maximum: int, cache: int) -> np.ndarray:
    """DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13): 0 up to maximum - cache, then linearly down to -1 at
    `maximum`, -1 beyond.

    Args:
        lengths: [n] completion tokens.
        maximum: tokens at which the punishment is full.
        cache: width of the falling part, in tokens.

    >>> soft_overlong([16384, 18432, 20480, 30000], maximum=20480, cache=4096).tolist()
    [0.0, -0.5, -1.0, -1.0]
    """
    if not 0 < cache <= maximum:
        raise ValueError(f"cache = {cache}; expected more than 0 and at most maximum = {maximum}")
    over = (np.asarray(lengths, dtype=np.float64) - (maximum - cache)) / cache
    return 0.0 - np.clip(over, 0.0, 1.0)


# Repetition of the completion itself or of its prompt, in n-grams of tokens.

REPEATED = 3
"""Tokens of an n-gram that counts as a repetition."""
COPIED = 8
"""Tokens of an n-gram that counts as copied: shorter ones recur by chance, and a good answer names its question."""


def ngram_ids(tokens: Sequence[int] | NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """[max(0, len - n + 1)] ids of all n-grams, equal exactly where the n-grams are.

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
    """Share of repeated n-grams, 1 - distinct / all; 0 for a completion shorter than n tokens.

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
    completion_ids = ids[len(prompt_tokens) :]
    prompt_ids = ids[: len(prompt_tokens) - n + 1]
    return float(np.isin(completion_ids, prompt_ids).mean())
