"""Changes to a reward that depend on the rollout's length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def soft_overlong(lengths: Sequence[int] | np.ndarray, *, maximum: int, cache: int) -> np.ndarray:
    """DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13): 0 up to maximum - cache, then linearly down to -1 at
    `maximum`, -1 beyond.

    Args:
        lengths: [n] completion tokens.
        maximum: tokens at which the punishment is full.
        cache: width of the falling part, in tokens.

    Raises:
        ValueError: cache is not within 1 … maximum.

    >>> soft_overlong([16384, 18432, 20480, 30000], maximum=20480, cache=4096).tolist()
    [0.0, -0.5, -1.0, -1.0]
    """
    if not 0 < cache <= maximum:
        raise ValueError(f"cache = {cache}; expected more than 0 and at most maximum = {maximum}")
    over = (np.asarray(lengths, dtype=np.float64) - (maximum - cache)) / cache
    return 0.0 - np.clip(over, 0.0, 1.0)
