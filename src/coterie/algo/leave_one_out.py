"""Sums that leave one out, so exactly that changing the one changes no bit of its sum."""

from __future__ import annotations

import numpy as np


def others(values: np.ndarray) -> np.ndarray:
    """[n] → [n]: the sum of all values but the own one.

    As the sum before plus the sum after it: `values.sum() - values` would keep the own value's rounding, which ruins a
    small sum beside a large value.

    >>> others(np.array([1.0, 2.0, 4.0])).tolist()
    [6.0, 5.0, 3.0]
    """
    before = np.concatenate([[0.0], np.cumsum(values[:-1])]) if values.size else values
    after = np.concatenate([np.cumsum(values[:0:-1])[::-1], [0.0]]) if values.size else values
    return before + after
